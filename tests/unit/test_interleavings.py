"""What two threads do to one guard, whereever the one is interrupted by the other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from interleaving import every_interleaving

from asyncguard import AsyncGuard, Evicted, PermitLost, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncguard import Guard, Permit


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that waits for nothing, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")


def assert_idle(guard: Guard, place: str) -> None:
    picture = now(guard.inspect())
    assert picture.holders == (), place
    assert picture.queue == (), place
    backend: Any = guard.bound_to
    for partition in backend._admissions[guard.name].partitions.values():
        assert (partition.waiting, len(partition.holders)) == (0, 0), place
    permits = [guard.acquire_nowait() for _ in range(guard.limit)]
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    assert [permit.token for permit in permits] == sorted({permit.token for permit in permits})
    for permit in permits:
        now(permit.release())


def work_in_a_loop(guard: Guard, **ask: Any) -> None:
    async def work() -> None:
        async with guard.permit(timeout=5, **ask):
            await asyncio.sleep(0)

    asyncio.run(work())


def plain_block_in_a_loop(guard: Guard) -> None:
    async def work() -> None:
        async with guard:
            await asyncio.sleep(0)

    asyncio.run(work())


def try_once(guard: Guard) -> None:
    with contextlib.suppress(WouldBlock):
        now(guard.acquire_nowait().release())


def release(guard: Guard, permit: Permit) -> None:
    del guard
    now(permit.release())


def pause_and_resume(guard: Guard) -> None:
    backend: Any = guard.bound_to
    now(backend.configure(guard.declaration, None, paused=True))
    now(backend.configure(guard.declaration, None, paused=False))


def widen_and_narrow(guard: Guard) -> None:
    backend: Any = guard.bound_to
    now(backend.configure(guard.declaration, None, limit=guard.limit + 1))
    now(backend.configure(guard.declaration, None, limit=None))


def look(guard: Guard) -> None:
    picture = now(guard.inspect())
    assert picture.in_use <= guard.limit


def evict_all(guard: Guard) -> None:
    backend: Any = guard.bound_to
    picture = now(guard.inspect())
    for ticket in (*picture.holders, *picture.queue):
        now(backend.evict(guard.declaration, ticket.id))


def lossy(function: Callable[[Guard], None]) -> Callable[[Guard], None]:
    def run(guard: Guard) -> None:
        with contextlib.suppress(Evicted, PermitLost):
            function(guard)

    run.__name__ = function.__name__
    return run


ACTIONS: list[Callable[[Guard], None]] = [
    work_in_a_loop,
    plain_block_in_a_loop,
    try_once,
    pause_and_resume,
    widen_and_narrow,
    look,
]


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("other", ACTIONS, ids=lambda action: action.__name__)
def test_a_release_is_interrupted(other: Callable[[Guard], None], limit: int) -> None:
    guards: list[Guard] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report", limit=limit)
        guards.append(guard)
        permits = [guard.acquire_nowait() for _ in range(limit)]
        for permit in permits[1:]:
            now(permit.release())
        return lambda: release(guard, permits[0]), lambda: other(guard)

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)


@pytest.mark.parametrize("other", ACTIONS, ids=lambda action: action.__name__)
@pytest.mark.parametrize("one", [try_once, widen_and_narrow], ids=lambda action: action.__name__)
def test_an_action_is_interrupted_by_another(
    one: Callable[[Guard], None], other: Callable[[Guard], None]
) -> None:
    guards: list[Guard] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        try_once(guard)
        return lambda: one(guard), lambda: other(guard)

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)


@pytest.mark.parametrize("other", [try_once, look, plain_block_in_a_loop], ids=lambda action: action.__name__)
def test_entering_a_block_is_interrupted(other: Callable[[Guard], None]) -> None:
    guards: list[Guard] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        try_once(guard)
        return lambda: plain_block_in_a_loop(guard), lambda: other(guard)

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)


def test_two_threads_release_one_permit_while_another_waits() -> None:
    guards: list[Guard] = []
    waited: list[int] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        permit = guard.acquire_nowait()

        def release_and_work() -> None:
            release(guard, permit)
            work_in_a_loop(guard)
            waited.append(1)

        return lambda: release(guard, permit), release_and_work

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)
    assert waited


@pytest.mark.parametrize("one", [plain_block_in_a_loop, work_in_a_loop], ids=lambda action: action.__name__)
def test_a_block_is_evicted_at_any_moment(one: Callable[[Guard], None]) -> None:
    guards: list[Guard] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        try_once(guard)
        return lambda: lossy(one)(guard), lambda: evict_all(guard)

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)


def test_a_permit_is_evicted_while_it_is_released() -> None:
    guards: list[Guard] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        permit = guard.acquire_nowait()
        return lambda: evict_all(guard), lambda: release(guard, permit)

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)


def test_work_that_is_evicted_while_it_enters_does_not_run_on() -> None:
    guards: list[Guard] = []
    ran_on: list[str] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        try_once(guard)

        async def work() -> None:
            async with guard:
                await asyncio.sleep(0.001)
                evicted = not now(guard.inspect()).holders
                await asyncio.sleep(0.001)  # it is told by now
                if evicted:
                    ran_on.append("ran on without a permit")

        return lambda: lossy(lambda _: asyncio.run(work()))(guard), lambda: evict_all(guard)

    for place in every_interleaving(make):
        assert not ran_on, place


@pytest.mark.parametrize("swapped", [False, True])
def test_a_permit_is_lost_while_a_thread_asks_whether_it_is(swapped: bool) -> None:
    guards: list[Guard] = []
    permits: list[Permit] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report", on_lost="notify")
        guards.append(guard)
        permit = guard.acquire_nowait()
        permits.append(permit)
        if swapped:
            return lambda: evict_all(guard), lambda: permit.lost
        return lambda: permit.lost, lambda: evict_all(guard)

    for place in every_interleaving(make):
        assert permits[-1].lost, place
        assert permits[-1].lost.is_set(), place


def test_two_loops_begin_to_wait_at_once() -> None:
    ag = AsyncGuard()
    left, right = ag.guard("left"), ag.guard("right")
    permits: list[Permit] = []

    def wait(guard: Guard) -> None:
        async def work() -> None:
            task = asyncio.create_task(guard.acquire(timeout=5))
            await asyncio.sleep(0)
            now(permits.pop(0 if guard is left else -1).release())
            await (await task).release()

        asyncio.run(work())

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        permits[:] = [left.acquire_nowait(), right.acquire_nowait()]
        return lambda: wait(left), lambda: wait(right)

    for place in every_interleaving(make):
        assert_idle(left, place)
        assert_idle(right, place)


def test_a_cancelled_waiter_meets_a_release_from_another_thread() -> None:
    guards: list[Guard] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        permit = guard.acquire_nowait()

        async def work() -> None:
            task = asyncio.create_task(guard.acquire())
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).release()

        return lambda: asyncio.run(work()), lambda: release(guard, permit)

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)


def test_a_wait_that_times_out_meets_a_release_from_another_thread() -> None:
    guards: list[Guard] = []

    def make() -> tuple[Callable[[], object], Callable[[], object]]:
        guard = AsyncGuard().guard("report")
        guards.append(guard)
        permit = guard.acquire_nowait()

        async def work() -> None:
            with contextlib.suppress(Exception):
                await (await guard.acquire(timeout=0.0001)).release()

        return lambda: asyncio.run(work()), lambda: release(guard, permit)

    for place in every_interleaving(make):
        assert_idle(guards[-1], place)
