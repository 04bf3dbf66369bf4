"""A task that waits for what it holds itself is told so."""

from __future__ import annotations

import asyncio

import pytest

from asyncguard import AsyncGuard, Guard, WaitTimeout, WouldDeadlock


async def test_a_task_that_asks_for_what_it_holds_is_told(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    async with guard:
        with pytest.raises(WouldDeadlock, match="report"):
            await guard.acquire()
        with pytest.raises(WouldDeadlock):
            async with guard:
                pytest.fail("not reached")
        with pytest.raises(WouldDeadlock):
            async with guard.permit():
                pytest.fail("not reached")
        assert (await guard.inspect()).waiting == 0
    async with guard:
        pass


async def test_it_is_told_for_its_key(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    async with guard.permit(key="a"), guard.permit(key="b"):
        with pytest.raises(WouldDeadlock, match="key 'a'"):
            await guard.acquire(key="a")


async def test_it_is_told_through_a_variant(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    variant = guard.replace(max_wait=5)
    async with guard:
        with pytest.raises(WouldDeadlock):
            await variant.acquire()


async def test_it_is_told_with_other_blocks_between(hub: AsyncGuard) -> None:
    guard, other = hub.guard("report", max_wait=None), hub.guard("other")
    async with guard, other, other.permit(key="a"):
        with pytest.raises(WouldDeadlock):
            await guard.acquire()


async def test_it_is_told_although_nobody_may_wait(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=0)
    async with guard:
        with pytest.raises(WouldDeadlock):
            await guard.acquire()


async def test_while_permits_are_left_there_is_no_deadlock(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    async with guard, guard:
        with pytest.raises(WouldDeadlock):
            await guard.acquire()


async def test_what_was_released_inside_its_block_is_not_held(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard as permit:
        await permit.release()
        async with guard:
            pass


async def test_a_child_that_is_not_awaited_may_wait_for_its_parents_permit(hub: AsyncGuard) -> None:
    guard = hub.guard("report")

    async def child() -> float:
        async with guard as permit:
            return permit.waited

    async with guard:
        task = asyncio.create_task(child())
        await asyncio.sleep(2)
    assert await task == pytest.approx(2)


async def test_a_child_may_wait_for_what_it_saw_its_parent_hold_after_a_block_of_its_own(
    hub: AsyncGuard,
) -> None:
    guard, other = hub.guard("report"), hub.guard("other")

    async def child() -> None:
        async with other, guard:
            pass

    async with guard:
        task = asyncio.create_task(child())
        await asyncio.sleep(2)
    await task


async def test_a_child_that_is_awaited_is_saved_by_the_time_limit(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=3)

    async def child() -> None:
        async with guard:
            pass

    async with guard:
        with pytest.raises(WaitTimeout):
            await asyncio.create_task(child())


async def test_guards_of_two_asyncguards_share_nothing_but_a_name(hub: AsyncGuard) -> None:
    ours, theirs = hub.guard("report"), AsyncGuard().guard("report")
    async with theirs:
        permit = await ours.acquire()
        waiting = asyncio.create_task(ours.acquire(timeout=1))
        await asyncio.sleep(0)
        await permit.release()
        await (await waiting).release()
    async with ours:
        blocker = asyncio.create_task(_hold(theirs, 0.05))
        await asyncio.sleep(0)
        async with theirs:
            pass
        await blocker


async def _hold(guard: Guard, seconds: float) -> None:
    async with guard:
        await asyncio.sleep(seconds)
