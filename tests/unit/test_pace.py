"""`rate=`: grants come at a pace, whoever waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard, Rate, WaitTimeout

if TYPE_CHECKING:
    from asyncguard import Guard


async def enter(guard: Guard) -> float:
    async with guard:
        return asyncio.get_running_loop().time()


async def test_blocks_come_in_at_the_pace(hub: AsyncGuard) -> None:
    guard = hub.guard("report", rate=Rate(1, per=10), max_wait=None)
    start = asyncio.get_running_loop().time()
    times = await asyncio.gather(*(enter(guard) for _ in range(4)))
    assert [time - start for time in times] == pytest.approx([0, 10, 20, 30], abs=1e-4)


async def test_permits_taken_by_hand_come_at_the_pace(hub: AsyncGuard) -> None:
    guard = hub.guard("report", rate=Rate(2, per=10), max_wait=None, limit=5)
    start = asyncio.get_running_loop().time()
    permits = [await guard.acquire(key="a") for _ in range(4)]
    assert asyncio.get_running_loop().time() - start == pytest.approx(15, abs=1e-4)
    for permit in permits:
        await permit.release()


async def test_a_burst_comes_in_at_once_after_a_quiet_time(hub: AsyncGuard) -> None:
    guard = hub.guard("report", rate=Rate(1, per=10, burst=3), max_wait=None)
    for _ in range(2):
        start = asyncio.get_running_loop().time()
        times = await asyncio.gather(*(enter(guard) for _ in range(5)))
        assert [time - start for time in times] == pytest.approx([0, 0, 0, 10, 20], abs=1e-4)
        await asyncio.sleep(100)


async def test_a_head_that_leaves_does_not_leave_the_others_waiting_for_ever(hub: AsyncGuard) -> None:
    guard = hub.guard("report", rate=Rate(1, per=10), max_wait=None)
    await enter(guard)
    head = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    behind = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    head.cancel()
    await (await asyncio.wait_for(behind, 20)).release()


async def test_one_that_will_not_wait_so_long_is_refused(hub: AsyncGuard) -> None:
    guard = hub.guard("report", rate=Rate(1, per=10), max_wait=None)
    await enter(guard)
    with pytest.raises(WaitTimeout):
        await guard.acquire(timeout=5)
    with pytest.raises(WaitTimeout):
        await guard.acquire(timeout=0)
    await (await guard.acquire(timeout=6)).release()


async def test_a_pace_set_by_a_variant_holds_for_the_guard_it_came_from(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    guard.replace(rate=Rate(1, per=10))
    start = asyncio.get_running_loop().time()
    times = await asyncio.gather(*(enter(guard) for _ in range(3)))
    assert [time - start for time in times] == pytest.approx([0, 10, 20], abs=1e-4)


async def test_a_pace_is_kept_over_the_deletion_of_an_idle_key(hub: AsyncGuard) -> None:
    guard = hub.guard("report", rate=Rate(1, per=10), max_wait=None)
    start = asyncio.get_running_loop().time()
    for number in range(3):
        async with guard.permit(key="a"):
            assert asyncio.get_running_loop().time() - start == pytest.approx(10 * number, abs=1e-4)
        async with guard.permit(key=f"other {number}"):
            pass
