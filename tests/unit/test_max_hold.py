"""`max_hold` and losing a permit: the work is told, and what comes out of the block."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard, Evicted, HoldExceeded, Permit, PermitLost, current_permit

if TYPE_CHECKING:
    from asyncguard import Guard


async def evict(hub: AsyncGuard, guard: Guard, *, holder: bool = True) -> None:
    picture = await guard.inspect()
    ticket_id = picture.holders[0].id if holder else picture.queue[0].id
    assert await hub.open().evict(guard.declaration, ticket_id)


async def test_work_that_overruns_is_cancelled(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    start = asyncio.get_running_loop().time()
    with pytest.raises(HoldExceeded, match="max_hold=5") as caught:
        async with guard:
            await asyncio.sleep(100)
    assert asyncio.get_running_loop().time() - start == pytest.approx(5)
    assert isinstance(caught.value, PermitLost)


async def test_work_that_ends_in_time_is_left_alone(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    for _ in range(3):
        async with guard as permit:
            await asyncio.sleep(4)
        assert not permit.lost
    await asyncio.sleep(100)


async def test_the_time_counts_from_the_grant_and_not_from_the_arrival(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)

    async def work() -> None:
        async with guard:
            await asyncio.sleep(4)

    await asyncio.gather(work(), work(), work())


async def test_its_permit_passes_on_when_the_work_has_ended(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    running = 0

    async def work() -> None:
        nonlocal running
        async with guard:
            running += 1
            assert running == 1
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(1)  # cleaning up takes a while
                running -= 1

    results = await asyncio.gather(*(work() for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [HoldExceeded] * 3


async def test_work_that_will_not_be_cancelled_is_told_in_the_end(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    with pytest.raises(HoldExceeded):  # noqa: PT012
        async with guard as permit:
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                assert permit.lost
            await asyncio.sleep(3)


async def test_another_error_of_the_work_is_not_hidden(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with guard:
            try:
                await asyncio.sleep(100)
            finally:
                raise ZeroDivisionError
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_decorated_function_overruns_too(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)

    @guard(key="account")
    async def build(account: int) -> None:  # noqa: ARG001
        await asyncio.sleep(100)

    with pytest.raises(HoldExceeded, match="key '7'"):
        await build(7)


async def test_waiting_for_another_guard_does_not_save_it(hub: AsyncGuard) -> None:
    outer, inner = hub.guard("outer", max_hold=5), hub.guard("inner", max_wait=None)
    permit = await inner.acquire()
    with pytest.raises(HoldExceeded):
        async with outer, inner:
            pytest.fail("not reached")
    assert (await inner.inspect()).waiting == 0
    await permit.release()


async def test_two_blocks_lost_at_once_come_out_as_the_outer_ones_loss(hub: AsyncGuard) -> None:
    outer, inner = hub.guard("outer", max_hold=5), hub.guard("inner", max_hold=5)
    with pytest.raises(HoldExceeded, match="outer"):
        async with outer, inner:
            await asyncio.sleep(100)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_permit_taken_by_hand_is_passed_on_when_it_overruns(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5, max_wait=None)
    permit = await guard.acquire()
    waiting = asyncio.create_task(guard.acquire())
    await permit.lost.wait()
    assert permit.lost
    assert permit.held == pytest.approx(5)
    second = await waiting
    await permit.release()
    assert (await guard.inspect()).in_use == 1, "a late release frees nobody else's permit"
    await second.release()
    assert not second.lost


async def test_a_permit_taken_without_waiting_overruns_too(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    permit = guard.acquire_nowait()
    await asyncio.sleep(6)
    assert permit.lost.is_set()
    async with guard.permit(timeout=0):
        pass
    await permit.release()


async def test_who_only_wants_to_know_is_not_cancelled(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5, on_lost="notify")
    async with guard as permit:
        assert not permit.lost
        await asyncio.sleep(10)
        assert permit.lost
        await permit.lost.wait()
        assert (await guard.inspect()).in_use == 1, "it is held until the work has ended"


async def test_waiting_for_the_loss_can_be_given_up(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard as permit:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await permit.lost.wait()


async def test_an_evicted_holder_is_cancelled_and_the_next_one_comes_in(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    permits: list[Permit] = []

    async def work() -> None:
        async with guard as permit:
            permits.append(permit)
            await asyncio.sleep(10)

    tasks = [asyncio.create_task(work()) for _ in range(2)]
    await asyncio.sleep(1)
    await evict(hub, guard)
    with pytest.raises(PermitLost, match="taken away after 1") as caught:
        await tasks[0]
    assert not isinstance(caught.value, HoldExceeded)
    assert permits[0].lost
    await tasks[1]
    assert not permits[1].lost


async def test_an_evicted_holder_is_told_that_it_holds_no_more(hub: AsyncGuard) -> None:
    guard = hub.guard("report", on_lost="notify")
    async with guard as permit:
        await evict(hub, guard)
        assert permit.lost
        with pytest.raises(LookupError):
            current_permit()
        async with guard.permit(timeout=0):
            pass
    assert (await guard.inspect()).in_use == 0


async def test_an_evicted_permit_taken_by_hand_is_lost(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    told = asyncio.create_task(permit.lost.wait())
    await asyncio.sleep(1)
    await evict(hub, guard)
    await told
    assert permit.lost
    second = await guard.acquire(timeout=0)
    await permit.release()
    assert (await guard.inspect()).in_use == 1
    await second.release()


async def test_an_evicted_waiter_is_refused(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    permit = await guard.acquire()
    first, second = asyncio.create_task(guard.acquire()), asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    await evict(hub, guard, holder=False)
    with pytest.raises(Evicted) as caught:
        await first
    assert caught.value.reason == "evicted"
    await permit.release()
    await (await second).release()


async def test_one_evicted_after_the_grant_and_before_it_ran_is_refused(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    permit = await guard.acquire()
    waiting = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    await permit.release()
    await evict(hub, guard)
    with pytest.raises((Evicted, PermitLost)):
        await waiting


async def test_evicting_nobody_changes_nothing(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard:
        picture = await guard.inspect()
    assert not await hub.open().evict(guard.declaration, picture.holders[0].id)
    assert not await hub.open().evict(guard.declaration, "no such id")
    await evict_again(hub, guard)


async def evict_again(hub: AsyncGuard, guard: Guard) -> None:
    with pytest.raises(PermitLost):  # noqa: PT012
        async with guard:
            await evict(hub, guard)
            assert (await guard.inspect()).holders == ()
            await asyncio.sleep(1)


async def test_holders_of_several_permits_and_of_all_are_evicted(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3)
    for permits in (2, 3, "all", 1):
        permit = await guard.acquire(permits=permits)
        await evict(hub, guard)
        assert (await guard.inspect()).in_use == 0
        assert permit.lost
    everything = await guard.acquire(permits=3, timeout=0)
    await everything.release()


async def test_who_was_evicted_is_not_told_of_an_overrun_too(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=5)
    cancelled = 0

    async def work() -> None:
        nonlocal cancelled
        async with guard:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled += 1
                await asyncio.sleep(60)  # it cleans up for long
                raise

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    (holder,) = (await guard.inspect()).holders
    await guard.evict(holder.id)
    with pytest.raises(PermitLost) as caught:
        await task
    assert type(caught.value) is PermitLost
    assert cancelled == 1
