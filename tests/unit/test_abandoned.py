"""What nobody holds on to any more, and collections at the worst moment."""

from __future__ import annotations

import asyncio
import gc
import selectors
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from jumping import LoopClock

    from asyncguard import Guard


@pytest.fixture
async def guard(hub: AsyncGuard) -> Guard:
    return hub.guard("report", max_wait=None)


class Stop:
    """Something to wait for that never comes, outside of any task."""

    def __await__(self) -> Any:
        yield


async def by_block(guard: Guard) -> None:
    async with guard:
        await Stop()


async def by_entry(guard: Guard) -> None:
    async with guard.permit():
        await Stop()


async def by_hand(guard: Guard) -> None:
    permit = await guard.acquire()
    try:
        await Stop()
    finally:
        if permit:
            await permit.release()


ways = pytest.mark.parametrize("way", [by_block, by_entry, by_hand])


def begin(coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
    coroutine.send(None)
    return coroutine


@ways
async def test_a_coroutine_closed_while_it_works_passes_the_permit_on(guard: Guard, way: Any) -> None:
    begin(way(guard)).close()
    async with guard.permit(timeout=0):
        pass


@ways
async def test_a_coroutine_closed_while_it_waits_leaves_the_queue(guard: Guard, way: Any) -> None:
    permit = await guard.acquire()
    waiting = begin(way(guard))
    assert (await guard.inspect()).waiting == 1
    waiting.close()
    assert (await guard.inspect()).waiting == 0
    await permit.release()


@ways
async def test_a_coroutine_dropped_while_it_waits_leaves_the_queue(guard: Guard, way: Any) -> None:
    permit = await guard.acquire()
    waiting = begin(way(guard))
    del waiting
    gc.collect()
    assert (await guard.inspect()).waiting == 0
    await permit.release()


@ways
async def test_one_granted_and_dropped_before_it_ran_passes_the_permit_on(guard: Guard, way: Any) -> None:
    permit = await guard.acquire()
    waiting = begin(way(guard))
    behind = asyncio.create_task(guard.acquire())
    await asyncio.sleep(0)
    await permit.release()
    del waiting
    gc.collect()
    await (await asyncio.wait_for(behind, 1)).release()


@ways
@pytest.mark.parametrize("operation", ["enter", "leave", "inspect", "evict", "configure"])
@pytest.mark.timeout(5)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # dropped with the permit
async def test_a_coroutine_collected_inside_the_critical_section_is_no_deadlock(
    hub: AsyncGuard, guard: Guard, clock: LoopClock, way: Any, operation: str
) -> None:
    working = begin(way(guard))
    permit = await guard.acquire(key="a")
    waiting = asyncio.create_task(guard.acquire())
    await asyncio.sleep(0)
    clock.interrupt = working.close  # what a collection would do to one that is in a cycle
    if operation == "enter":
        await (await guard.acquire(key="b")).release()
    elif operation == "leave":
        await permit.release()
    elif operation == "inspect":
        await guard.inspect("a")
    elif operation == "evict":
        await hub.open().evict(guard.declaration, "nobody")
    else:
        await hub.open().configure(guard.declaration, "a", paused=False)
    assert clock.interrupt is None
    await (await asyncio.wait_for(waiting, 1)).release()
    await permit.release()


@pytest.mark.parametrize("operation", ["enter", "leave", "inspect"])
@pytest.mark.timeout(5)
async def test_a_permit_dropped_inside_the_critical_section_is_released_after_it(
    guard: Guard, clock: LoopClock, operation: str
) -> None:
    permits = [await guard.acquire()]
    other = await guard.acquire(key="a")
    waiting = asyncio.create_task(guard.acquire())
    await asyncio.sleep(0)
    clock.interrupt = permits.clear
    with pytest.warns(ResourceWarning):  # noqa: PT031
        if operation == "enter":
            await (await guard.acquire(key="b")).release()
        elif operation == "leave":
            await other.release()
        else:
            await guard.inspect("a")
    await (await asyncio.wait_for(waiting, 1)).release()
    await other.release()


async def test_a_permit_dropped_while_too_many_keys_are_refused_is_released(
    hub: AsyncGuard, clock: LoopClock
) -> None:
    guard = hub.guard("report", max_keys=1, max_wait=None)
    permits = [await guard.acquire(key="a")]
    waiting = asyncio.create_task(guard.acquire(key="a"))
    await asyncio.sleep(0)
    clock.interrupt = permits.clear
    with pytest.warns(ResourceWarning), pytest.raises(Exception, match="max_keys"):
        await guard.acquire(key="b")
    await (await asyncio.wait_for(waiting, 1)).release()


async def _begin_in_a_task(guard: Guard) -> Coroutine[Any, Any, Any]:
    return begin(by_block(guard))


async def test_a_generator_that_nobody_closes_is_closed_by_the_loop(guard: Guard) -> None:
    async def rows() -> AsyncIterator[int]:
        async with guard:
            yield 1

    async def first() -> int:
        async for row in rows():
            return row
        return 0

    assert await first() == 1
    gc.collect()
    await asyncio.sleep(1)
    async with guard.permit(timeout=0):
        pass


async def test_a_task_that_ended_does_not_live_on_in_the_guard(guard: Guard) -> None:
    async def work() -> None:
        async with guard:
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(work()) for _ in range(50)]
    references = [weakref.ref(task) for task in tasks]
    while tasks:  # gather() would keep them
        await tasks.pop()
    gc.collect()
    alive = [reference for reference in references if reference() is not None]
    assert len(alive) <= 1


class _CollectingSelector(selectors.DefaultSelector):
    """Has a collection come just when its loop has seen that nothing is ready, and goes to sleep."""

    garbage: list[Any]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self.garbage.clear()
        return super().select(timeout)


def test_a_permit_collected_as_the_loop_falls_asleep_wakes_it() -> None:
    selector = _CollectingSelector()
    selector.garbage = []
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        guard = AsyncGuard().guard("report")

        async def waits() -> None:
            selector.garbage.append(await guard.acquire())
            async with asyncio.timeout(5), guard:
                pass

        start = time.monotonic()
        with pytest.warns(ResourceWarning, match="dropped"):
            runner.run(waits())
        assert time.monotonic() - start < 2
