"""Each task of a scenario is cancelled before each step that any of them takes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from jumping import JumpingLoop, LoopClock
from stepping import Stepped

from asyncguard import ALL, AsyncGuard, GuardError, Rate

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncguard import Guard

    Scenario = Callable[[AsyncGuard, "Running"], list[Coroutine[None, None, object]]]


class Running:
    """How many permits are in use, as the work itself counts them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._now: Counter[str | None] = Counter()

    async def work(self, key: str | None = None, permits: int = 1, steps: int = 2) -> None:
        self._now[key] += permits
        try:
            for _ in range(steps):
                assert self._now[key] <= self._limit
                await asyncio.sleep(0)
        finally:
            self._now[key] -= permits


def blocks(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None)

    async def task() -> None:
        async with guard:
            await running.work()
        async with guard:
            await running.work()

    return [task() for _ in range(4)]


def several_ways(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None)

    @guard(timeout=100)
    async def decorated() -> None:
        await running.work()

    async def entry() -> None:
        async with guard.permit(timeout=50):
            await running.work()

    async def by_hand() -> None:
        permit = await guard.acquire()
        try:
            await running.work()
        finally:
            await permit.release()

    async def timed() -> None:
        async with asyncio.timeout(70):
            await by_hand()

    return [decorated(), entry(), by_hand(), timed()]


def several_permits(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", limit=3, max_wait=None)

    async def task(permits: int) -> None:
        async with guard.permit(permits=permits):
            await running.work(permits=permits)

    async def alone() -> None:
        async with guard.permit(permits=ALL):
            await running.work(permits=3)

    return [task(1), task(2), alone(), task(1), task(3), task(1)]


def keys(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None)

    async def task(key: str) -> None:
        async with guard.permit(key=key):
            await running.work(key)

    return [task("a"), task("b"), task("a"), task("b"), task("a")]


def head_starts(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None)

    async def task(priority: float) -> None:
        async with guard.permit(priority=priority):
            await running.work()

    return [task(0), task(0), task(5), task(0), task(9)]


def tenants(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None, order="fair")

    async def task(tenant: str) -> None:
        async with guard.permit(tenant=tenant):
            await running.work()

    return [task("a"), task("a"), task("b"), task("a"), task("c")]


def newest_first_with_a_short_queue(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None, order="lifo", max_waiting=2)

    async def task() -> None:
        try:
            async with guard:
                await running.work()
        except GuardError:
            pass

    return [task() for _ in range(5)]


def nested(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    outer, inner = ag.guard("outer", limit=2, max_wait=None), ag.guard("inner", max_wait=None)

    async def task() -> None:
        async with outer:
            await asyncio.sleep(0)
            async with inner:
                await running.work()
            await asyncio.sleep(0)

    return [task() for _ in range(4)]


def paced(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None, rate=Rate(1, per=10))

    async def task() -> None:
        async with guard:
            await running.work()

    async def by_hand() -> None:
        permit = await guard.acquire()
        try:
            await running.work()
        finally:
            await permit.release()

    return [task(), by_hand(), task(), task()]


def impatient(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=3)

    async def task(hold: float) -> None:
        try:
            async with guard:
                await running.work()
                await asyncio.sleep(hold)
        except GuardError:
            pass

    return [task(2), task(3), task(1), task(1)]


def overrunning(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard = ag.guard("report", max_wait=None, max_hold=5)

    async def task(hold: float) -> None:
        try:
            async with guard:
                await running.work()
                await asyncio.sleep(hold)
        except GuardError:
            pass

    return [task(9), task(1), task(9), task(5)]


def parents(ag: AsyncGuard, running: Running) -> list[Coroutine[None, None, object]]:
    guard, inner = ag.guard("report", max_wait=None), ag.guard("inner", max_wait=None)

    async def child() -> None:
        async with inner:
            await running.work()

    async def task() -> None:
        async with guard, asyncio.TaskGroup() as tasks:
            tasks.create_task(child())
            tasks.create_task(child())

    return [task() for _ in range(3)]


LIMITS: dict[Scenario, int] = {
    blocks: 1,
    several_ways: 1,
    several_permits: 3,
    keys: 1,
    head_starts: 1,
    tenants: 1,
    newest_first_with_a_short_queue: 1,
    nested: 1,
    paced: 1,
    impatient: 1,
    overrunning: 1,
    parents: 1,
}


async def play(clock: LoopClock, scenario: Scenario, victim: int, at: int) -> tuple[int, int]:
    """Run a scenario, cancel one of its tasks before a step; return how many tasks and steps it has."""
    ag = AsyncGuard(clock=clock)
    steps = 0
    was_cancelled = False
    tasks: list[asyncio.Task[object]] = []

    def before_step() -> None:
        nonlocal steps, was_cancelled
        if steps == at:
            was_cancelled = tasks[victim].cancel()
        steps += 1

    coroutines = scenario(ag, Running(LIMITS[scenario]))
    tasks += [asyncio.create_task(Stepped(coroutine, before_step)) for coroutine in coroutines]
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1000)
    for number, (task, result) in enumerate(zip(tasks, results, strict=True)):
        if number == victim and was_cancelled:
            assert task.cancelled(), f"{result!r}: the cancellation was swallowed"
            assert task.cancelling() == 1
        else:
            assert result is None, f"task {number} got {result!r}"
            assert task.cancelling() == 0
    for guard in ag._guards.values():
        await assert_idle(guard)
    return len(tasks), steps


async def assert_idle(guard: Guard) -> None:
    picture = await guard.inspect()
    assert picture.holders == ()
    assert picture.queue == ()
    async with guard.permit(permits=ALL, timeout=100):
        pass


@pytest.mark.parametrize("scenario", LIMITS, ids=lambda scenario: scenario.__name__)
def test_wherever_a_task_is_cancelled_nothing_is_left_behind(scenario: Scenario) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        clock = LoopClock(runner.get_loop())

        def run(victim: int, at: int) -> tuple[int, int]:
            try:
                return runner.run(play(clock, scenario, victim, at))
            except BaseException as error:
                error.add_note(f"task {victim} was cancelled before step {at}")
                raise

        tasks, steps = run(0, -1)
        for victim in range(tasks):
            for at in range(steps):
                run(victim, at)
