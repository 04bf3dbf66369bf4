"""Work is cancelled while it waits, runs or ends: nothing is left behind, and the next one gets in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncguard import AsyncGuard, HoldExceeded, Permit, WaitTimeout, current_permit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncguard import Guard

    Way = Callable[[Guard], Coroutine[None, None, None]]


async def by_block(guard: Guard) -> None:
    async with guard:
        await asyncio.sleep(10)


async def by_entry(guard: Guard) -> None:
    async with guard.permit():
        await asyncio.sleep(10)


async def by_hand(guard: Guard) -> None:
    permit = await guard.acquire()
    try:
        await asyncio.sleep(10)
    finally:
        await permit.release()


async def by_decorator(guard: Guard) -> None:
    @guard
    async def work() -> None:
        await asyncio.sleep(10)

    await work()


ways = pytest.mark.parametrize("way", [by_block, by_entry, by_hand, by_decorator])


@pytest.fixture
async def guard(hub: AsyncGuard) -> Guard:
    return hub.guard("report", max_wait=None)


async def is_idle(guard: Guard) -> bool:
    picture = await guard.inspect()
    async with guard.permit(timeout=0):
        return not picture.holders and not picture.queue


async def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert task.cancelling() == 1


@ways
async def test_cancelled_before_it_began(guard: Guard, way: Way) -> None:
    await cancel(asyncio.create_task(way(guard)))
    assert await is_idle(guard)


@ways
async def test_cancelled_while_it_waits(guard: Guard, way: Way) -> None:
    async with guard:
        task = asyncio.create_task(way(guard))
        await asyncio.sleep(1)
        assert (await guard.inspect()).waiting == 1
        await cancel(task)
        assert (await guard.inspect()).waiting == 0
    assert await is_idle(guard)


@ways
async def test_cancelled_while_it_works(guard: Guard, way: Way) -> None:
    task = asyncio.create_task(way(guard))
    await asyncio.sleep(1)
    assert (await guard.inspect()).in_use == 1
    await cancel(task)
    assert await is_idle(guard)


@ways
async def test_granted_and_cancelled_in_the_same_tick(guard: Guard, way: Way) -> None:
    permit = await guard.acquire()
    task = asyncio.create_task(way(guard))
    behind = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    await permit.release()
    assert (await guard.inspect()).holders[0].since > 0, "granted, and not yet run"
    await cancel(task)
    passed_on = await asyncio.wait_for(behind, 1)
    await passed_on.release()
    assert await is_idle(guard)


@ways
async def test_cancelled_and_then_granted_in_the_same_tick(guard: Guard, way: Way) -> None:
    permit = await guard.acquire()
    task = asyncio.create_task(way(guard))
    behind = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    task.cancel()
    await permit.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    await (await asyncio.wait_for(behind, 1)).release()
    assert await is_idle(guard)


@ways
async def test_cancelled_in_the_tick_in_which_it_would_have_ended(guard: Guard, way: Way) -> None:
    task = asyncio.create_task(way(guard))
    await asyncio.sleep(10)
    await cancel(task)
    assert await is_idle(guard)


@ways
async def test_a_cancelled_head_does_not_block_those_behind_it(guard: Guard, way: Way) -> None:
    permit = await guard.acquire()
    head = asyncio.create_task(way(guard))
    await asyncio.sleep(1)
    behind = [asyncio.create_task(guard.acquire()) for _ in range(2)]
    await asyncio.sleep(1)
    await cancel(head)
    await permit.release()
    for task in behind:
        await (await asyncio.wait_for(task, 1)).release()
    assert await is_idle(guard)


async def test_a_cancelled_head_that_wanted_all_lets_in_those_behind_it_at_once(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3, max_wait=None)
    permit = await guard.acquire()
    head = asyncio.create_task(guard.acquire(permits=3))
    await asyncio.sleep(1)
    behind = [asyncio.create_task(guard.acquire()) for _ in range(2)]
    await asyncio.sleep(1)
    head.cancel()
    for task in behind:
        await (await asyncio.wait_for(task, 1)).release()
    await permit.release()


@ways
async def test_a_cancelled_middle_leaves_the_order_as_it_was(guard: Guard, way: Way) -> None:
    order: list[int] = []

    async def note(number: int) -> None:
        async with guard:
            order.append(number)

    permit = await guard.acquire()
    tasks = []
    for number in range(100):
        tasks.append(asyncio.create_task(way(guard) if number % 3 == 1 else note(number)))
        await asyncio.sleep(0)
    for task in tasks[1::3]:
        await cancel(task)
    await permit.release()
    await asyncio.gather(*tasks[::3], *tasks[2::3])
    assert order == [number for number in range(100) if number % 3 != 1]


@ways
async def test_all_who_wait_are_cancelled(guard: Guard, way: Way) -> None:
    async with guard:
        tasks = [asyncio.create_task(way(guard)) for _ in range(50)]
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
    assert await is_idle(guard)


@ways
async def test_cancelled_twice(guard: Guard, way: Way) -> None:
    async with guard:
        task = asyncio.create_task(way(guard))
        await asyncio.sleep(1)
        task.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 2
    assert await is_idle(guard)


@ways
@pytest.mark.parametrize("held", [True, False], ids=["waiting", "working"])
async def test_asyncio_timeout_ends_it(guard: Guard, way: Way, held: bool) -> None:
    permit = await guard.acquire() if held else None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await way(guard)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    if permit is not None:
        await permit.release()
    assert await is_idle(guard)


@ways
@pytest.mark.parametrize("held", [True, False], ids=["waiting", "working"])
async def test_move_on_after_ends_it(guard: Guard, way: Way, held: bool) -> None:
    permit = await guard.acquire() if held else None
    with anyio.move_on_after(3) as scope:
        await way(guard)
    assert scope.cancelled_caught
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await anyio.sleep(1)
    if permit is not None:
        await permit.release()
    assert await is_idle(guard)


@ways
async def test_fail_after_ends_it(guard: Guard, way: Way) -> None:
    async with guard:
        with pytest.raises(TimeoutError):
            with anyio.fail_after(3):
                await asyncio.create_task(way(guard))
    assert await is_idle(guard)


@ways
@pytest.mark.parametrize("held", [True, False], ids=["waiting", "working"])
async def test_a_cancelled_task_group_ends_it(guard: Guard, way: Way, held: bool) -> None:
    permit = await guard.acquire() if held else None
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(way, guard)
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    if permit is not None:
        await permit.release()
    assert await is_idle(guard)


@ways
async def test_in_a_scope_cancelled_from_the_start_it_does_not_begin_to_wait(guard: Guard, way: Way) -> None:
    async with guard:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await asyncio.create_task(way(guard))
        await anyio.sleep(1)
        assert (await guard.inspect()).waiting <= 1
        picture = await guard.inspect()
    del picture
    # The task of its own was cancelled with the scope that awaited it.
    assert await is_idle(guard)


async def test_a_shield_lets_the_work_end(guard: Guard) -> None:
    ended = False
    with anyio.move_on_after(1):
        async with guard:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)
                ended = True
            await anyio.sleep(1)
            pytest.fail("not reached")
    assert ended
    assert await is_idle(guard)


async def test_work_may_catch_a_cancellation_and_go_on_under_its_permit(guard: Guard) -> None:
    async def work() -> str:
        async with guard as permit:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                await asyncio.sleep(1)
                assert current_permit() is permit
                return "cleaned up"
        return "not reached"

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    task.cancel()
    assert await task == "cleaned up"
    assert await is_idle(guard)


async def test_a_timeout_and_a_cancellation_in_the_same_tick(guard: Guard) -> None:
    async with guard:
        task = asyncio.create_task(guard.acquire(timeout=5))
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, WaitTimeout)):
            await task
        assert (await guard.inspect()).waiting == 0
    assert await is_idle(guard)


async def test_cancelled_while_max_hold_is_expiring(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    for delay in (4, 5):
        task = asyncio.create_task(by_block(guard))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, HoldExceeded)):
            await task
        if delay == 4:
            assert task.cancelled()
        assert await is_idle(guard)


async def test_a_cancellation_from_outside_is_not_replaced_by_the_loss(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)

    async def work() -> None:
        async with guard:
            try:
                await asyncio.sleep(10)
            finally:
                own = asyncio.current_task()
                assert own is not None
                own.cancel()  # as somebody else would, in the same tick

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1
    assert await is_idle(guard)


async def test_the_loss_leaves_the_count_of_cancellations_as_it_was(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    with pytest.raises(HoldExceeded):
        await by_block(guard)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    async with asyncio.timeout(100):
        await asyncio.sleep(1)


async def test_the_loss_is_told_to_a_task_that_cleans_up_after_a_cancellation(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)

    async def work() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            try:
                await by_block(guard)  # the count of cancellations is 1 already
            except HoldExceeded:
                return "told"
        return "not told"

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    task.cancel()
    assert await task == "told"
    assert task.cancelling() == 1


async def test_a_timeout_around_a_lost_block_is_not_confused_with_the_loss(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    with pytest.raises(HoldExceeded):
        async with asyncio.timeout(6):
            await by_block(guard)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(4):
            await by_block(guard)
    with pytest.raises((TimeoutError, HoldExceeded)):
        async with asyncio.timeout(5):
            await by_block(guard)
    assert await is_idle(guard)


async def test_a_hold_that_was_cancelled_says_nothing_about_how_long_work_takes(guard: Guard) -> None:
    permit = await guard.acquire()
    waiting = asyncio.create_task(by_block(guard))
    await asyncio.sleep(1)
    await permit.release()
    await cancel(waiting)  # granted, and not yet run
    working = asyncio.create_task(by_block(guard))
    await asyncio.sleep(1)
    await cancel(working)
    assert (await guard.inspect()).hold.count == 1, "that of the permit which was released"


async def test_a_permit_got_just_before_the_cancellation_is_released_by_its_loss(guard: Guard) -> None:
    permit = await guard.acquire()
    task: asyncio.Task[Permit] = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    await permit.release()
    await asyncio.sleep(0)
    assert task.done(), "too late to be cancelled"
    assert not task.cancel()
    await (await task).release()
    assert await is_idle(guard)
