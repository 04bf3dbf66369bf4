"""A guarded `def` runs in a thread, and its permit is held for as long as the thread works."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard, HoldExceeded, WouldBlock, current_permit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncguard import Guard, Permit


@pytest.fixture
def anyio_backend() -> str:
    """Have time be real here: threads don't jump."""
    return "asyncio"


@pytest.fixture
async def guard(hub: AsyncGuard) -> Guard:
    return hub.guard("report")


class Gate:
    """What a thread waits at, and the word that it has come there."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._open = threading.Event()

    def wait(self) -> None:
        self._loop.call_soon_threadsafe(self.reached.set)
        self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def until(condition: Callable[[], Coroutine[None, None, bool]]) -> None:
    """Look again and again, as a thread's end has no other sign; the test's time limit ends it."""
    while not await condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_it_does_not_block_the_loop(guard: Guard) -> None:
    gate = Gate()

    @guard
    def build() -> str:
        gate.wait()
        return threading.current_thread().name

    task = asyncio.create_task(build())
    await gate.reached.wait()
    gate.open()
    assert await task != threading.current_thread().name


async def test_the_thread_sees_its_permit_and_the_context(guard: Guard) -> None:
    who = contextvars.ContextVar[str]("who")
    who.set("me")

    @guard(key="account")
    def build(account: int) -> tuple[Permit, str | None, str]:  # noqa: ARG001
        permit = current_permit()
        assert permit.held >= 0
        assert not permit.lost.is_set()
        return permit, permit.key, who.get()

    permit, key, name = await build(7)
    assert (permit.key, key, name) == ("7", "7", "me")
    with pytest.raises(LookupError):
        current_permit()


async def test_its_permit_passes_on_when_it_returns(guard: Guard) -> None:
    running = 0

    @guard
    def build(number: int) -> int:
        nonlocal running
        running += 1
        assert running == 1
        running -= 1
        return number

    assert await asyncio.gather(*(build(number) for number in range(20))) == list(range(20))


async def test_its_permit_is_held_until_it_returns_although_the_caller_was_cancelled(guard: Guard) -> None:
    gate = Gate()
    lost = None

    @guard
    def build() -> None:
        gate.wait()
        nonlocal lost
        lost = current_permit().lost.is_set()

    task = asyncio.create_task(build())
    await gate.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    waiting = asyncio.create_task(guard.acquire())
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.open()
    await (await waiting).release()
    assert lost is False, "the permit was its own all the time"


async def test_a_caller_that_gives_up_does_not_let_the_next_one_in(guard: Guard) -> None:
    gate = Gate()

    @guard
    def build() -> None:
        gate.wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await build()
    assert (await guard.inspect()).in_use == 1
    gate.open()

    async def idle() -> bool:
        return (await guard.inspect()).in_use == 0

    await until(idle)


async def test_the_error_of_a_thread_comes_out(guard: Guard) -> None:
    @guard
    def build() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await build()
    assert (await guard.inspect()).in_use == 0


async def test_a_stop_iteration_becomes_a_runtime_error_as_in_a_coroutine(guard: Guard) -> None:
    @guard
    def build() -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await build()
    assert (await guard.inspect()).in_use == 0


async def test_a_def_that_returns_a_coroutine_is_guarded_to_its_end(guard: Guard) -> None:
    async def part() -> int:
        assert current_permit().guard == "report"
        assert (await guard.inspect()).in_use == 1
        return 7

    @guard
    def build() -> Coroutine[None, None, int]:
        return part()

    assert await build() == 7
    assert (await guard.inspect()).in_use == 0


async def test_one_that_ran_too_long_is_told_and_holds_its_permit_until_it_returns(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=0.01)
    gate = Gate()
    lost: list[bool] = []

    @guard
    def build() -> None:
        lost.append(current_permit().lost.is_set())
        gate.wait()
        lost.append(current_permit().lost.is_set())

    with pytest.raises(HoldExceeded, match="max_hold"):
        await build()
    assert (await guard.inspect()).in_use == 1
    gate.open()

    async def idle() -> bool:
        return (await guard.inspect()).in_use == 0

    await until(idle)
    assert lost == [False, True]


async def test_guarded_work_in_a_loop_of_the_threads_own_nests(guard: Guard, hub: AsyncGuard) -> None:
    other = hub.guard("other")

    async def inside() -> tuple[str, str]:
        outer = current_permit().guard
        async with other:
            return outer, current_permit().guard

    @guard
    def build() -> tuple[str, str]:
        return asyncio.run(inside())

    assert await build() == ("report", "other")


async def test_many_more_run_at_once_than_the_loops_own_threads(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=64, max_waiting=None)
    together = threading.Barrier(64)

    @guard
    def build() -> None:
        together.wait(10)

    await asyncio.gather(*(build() for _ in range(64)))
