"""What a guard costs in one process, beside the locks that Python and anyio ship.

Rounds are interleaved (A B C A B C ...), so that whatever else the machine does meets all alike; a
figure is the median of its rounds, and the bounds are on ratios within the run.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import anyio

from asyncguard import AsyncGuard
from benchmarks.table import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from benchmarks.table import Progress

_PASSES = 20_000
_TASKS = 100
_HANDOFFS_EACH = 100
_WAITING = 100_000
_KEYS = 1_000_000

Block = Any
"""Whatever can be entered with `async with`."""


def measure(progress: Progress) -> list[Row]:
    """Measure every question of this file."""
    return [
        *_uncontended(progress),
        *_handoff(progress),
        *_memory_per_waiter(progress),
        *_growth(progress),
        *_keys(progress),
    ]


async def _pass_through(block: Block) -> float:
    start = time.perf_counter()
    for _ in range(_PASSES):
        async with block:
            pass
    return (time.perf_counter() - start) / _PASSES * 1e6


def _uncontended(progress: Progress) -> list[Row]:
    guard = AsyncGuard().guard("bench")
    blocks: dict[str, Callable[[], Block]] = {
        "asyncio.Lock": asyncio.Lock,
        "AsyncGuard": lambda: guard,
        "anyio.CapacityLimiter": lambda: anyio.CapacityLimiter(1),
    }
    runs = {name: functools.partial(_run, _in_loop, make) for name, make in blocks.items()}
    spread = interleaved("uncontended enter + leave", runs, progress)
    ours = spread["AsyncGuard"]
    return [
        Row("uncontended enter + leave, us", spread),
        Row("  against asyncio.Lock", ratio=ours / spread["asyncio.Lock"], at_most=4.0, aim=2.0),
        Row(
            "  against anyio.CapacityLimiter",
            ratio=ours / spread["anyio.CapacityLimiter"],
            at_most=0.25,
            aim=0.12,
        ),
    ]


def _run(
    measured: Callable[[Callable[[], Block]], Coroutine[Any, Any, float]], make: Callable[[], Block]
) -> float:
    return asyncio.run(measured(make))


async def _in_loop(make: Callable[[], Block]) -> float:
    return await _pass_through(make())


async def _hand_over(make: Callable[[], Block]) -> float:
    block = make()

    async def work() -> None:
        for _ in range(_HANDOFFS_EACH):
            async with block:
                await asyncio.sleep(0)

    start = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_TASKS)))
    return (time.perf_counter() - start) / (_TASKS * _HANDOFFS_EACH) * 1e6


def _handoff(progress: Progress) -> list[Row]:
    patient = AsyncGuard().guard("bench", max_waiting=None, max_wait=None)
    bounded = AsyncGuard().guard("bench", max_waiting=1000, max_wait=30)
    blocks: dict[str, Callable[[], Block]] = {
        "asyncio.Lock": asyncio.Lock,
        "AsyncGuard": lambda: patient,
        "with bounds": lambda: bounded,
    }
    runs = {name: functools.partial(_run, _hand_over, make) for name, make in blocks.items()}
    spread = interleaved("contended handoff, 100 tasks", runs, progress)
    lock = spread["asyncio.Lock"]
    return [
        Row("contended handoff among 100 tasks, us", spread),
        Row(
            "  against asyncio.Lock, both without bounds",
            ratio=spread["AsyncGuard"] / lock,
            at_most=1.3,
            aim=1.0,
        ),
        Row("  with bounds on queue and wait", ratio=spread["with bounds"] / lock),
    ]


def _memory_per_waiter(progress: Progress) -> list[Row]:
    progress.say(f"memory of {_WAITING:,} waiting tickets")
    bytes_each = asyncio.run(_weigh_waiters())
    return [
        Row("a waiting ticket beyond its task, bytes", ratio=bytes_each, at_most=1024, aim=614),
    ]


async def _weigh_waiters() -> float:
    guard = AsyncGuard().guard("bench", max_waiting=None)
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait_for_the_gate() -> None:
        await gate

    async def wait_for_the_guard() -> None:
        async with guard:
            pass

    async with guard:
        plain = await _weigh(wait_for_the_gate)
        guarded = await _weigh(wait_for_the_guard)
    gate.cancel()
    return (guarded - plain) / _WAITING


async def _weigh(work: Callable[[], Any]) -> int:
    """Bytes that so many tasks take while they wait."""
    gc.collect()
    tracemalloc.start()
    tasks = [asyncio.create_task(work()) for _ in range(_WAITING)]
    await asyncio.sleep(0)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return taken


def _growth(progress: Progress) -> list[Row]:
    few, many = 1_000, _WAITING
    figures = {}
    for waiting in (few, many):
        progress.say(f"enter, leave from the middle and grant with {waiting:,} waiting")
        figures[f"{waiting:,}"] = asyncio.run(_time_a_queue(waiting))
    ratio = figures[f"{many:,}"] / figures[f"{few:,}"]
    return [
        Row("enter, leave from the middle, grant, us", figures),
        Row(f"  with {many:,} waiting against {few:,}", ratio=ratio, at_most=3.0, aim=1.5),
    ]


async def _time_a_queue(waiting: int) -> float:
    """Microseconds of a ticket that enters, a ticket that gives up, and a ticket that is granted."""
    guard = AsyncGuard().guard("bench", max_waiting=None, max_wait=None)
    permit = await guard.acquire()
    tasks = [asyncio.create_task(guard.acquire()) for _ in range(waiting)]
    await asyncio.sleep(0)
    rounds = 500
    start = time.perf_counter()
    for number in range(rounds):
        tasks.append(asyncio.create_task(guard.acquire()))
        tasks[waiting // 2 + number].cancel()
        await permit.release()
        permit = await tasks[number]
    taken = (time.perf_counter() - start) / rounds * 1e6
    for task in tasks[rounds:]:
        task.cancel()
    await asyncio.gather(*tasks[rounds:], return_exceptions=True)
    await permit.release()
    return taken


def _keys(progress: Progress) -> list[Row]:
    progress.say(f"{_KEYS:,} keys used once")
    microseconds, left = asyncio.run(_use_keys())
    return [
        Row("a key used once, us", ratio=microseconds, at_most=6.0, aim=3.0),
        Row("  bytes left behind by each", ratio=left, at_most=0.1, aim=0.1),
    ]


async def _use_keys() -> tuple[float, float]:
    guard = AsyncGuard().guard("bench")
    await _use(guard, 1000)
    start = time.perf_counter()
    await _use(guard, _KEYS)
    taken = (time.perf_counter() - start) / _KEYS * 1e6
    gc.collect()
    tracemalloc.start()
    few = _KEYS // 20
    await _use(guard, few)  # so that what is kept of the last thousand is there already
    before, _ = tracemalloc.get_traced_memory()
    await _use(guard, few)
    gc.collect()
    left, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken, (left - before) / few


async def _use(guard: Any, keys: int) -> None:
    for key in range(keys):
        async with guard.permit(key=key):
            pass
