"""Permits taken by hand."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from asyncguard import ALL, AsyncGuard, WaitTimeout, WouldBlock, current_permit


async def test_a_permit_is_held_until_it_is_released(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    assert (await guard.inspect()).in_use == 1
    await permit.release()
    assert (await guard.inspect()).in_use == 0


async def test_releasing_twice_does_not_free_another_ones_permit(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    first = await guard.acquire()
    await first.release()
    second = await guard.acquire()
    await first.release()
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    await second.release()


async def test_another_task_may_release_it(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    await asyncio.create_task(permit.release())
    assert (await guard.inspect()).in_use == 0


async def test_a_permit_taken_by_hand_tells_the_same_as_that_of_a_block(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    first = await guard.acquire(key="a")
    getting = asyncio.create_task(guard.acquire(key="a"))
    await asyncio.sleep(3)
    await first.release()
    permit = await getting
    assert (permit.guard, permit.key) == ("report", "a")
    assert permit.waited == pytest.approx(3)
    assert permit.token > first.token
    await asyncio.sleep(2)
    assert permit.held == pytest.approx(2)
    assert not permit.lost
    assert repr(permit) == "<Permit of guard 'report', key 'a': held>"
    await permit.release()
    assert repr(permit) == "<Permit of guard 'report', key 'a': released>"
    await asyncio.sleep(2)
    assert permit.held == pytest.approx(2)


async def test_a_permit_taken_by_hand_is_nobodys_current_one(hub: AsyncGuard) -> None:
    permit = await hub.guard("report").acquire()
    with pytest.raises(LookupError):
        current_permit()
    await permit.release()


async def test_a_free_permit_is_taken_without_waiting(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    permits = [guard.acquire_nowait(), guard.acquire_nowait()]
    with pytest.raises(WouldBlock, match="report"):
        guard.acquire_nowait()
    for permit in permits:
        await permit.release()


async def test_a_permit_is_not_taken_from_those_who_wait(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3)
    two = await guard.acquire(permits=2)
    waiting = asyncio.create_task(guard.acquire(permits=ALL))
    await asyncio.sleep(0)
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    await two.release()
    await (await waiting).release()


async def test_an_attempt_that_would_block_leaves_nothing_behind(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2, order="fair")
    permit = guard.acquire_nowait()
    asks: list[dict[str, Any]] = [{"permits": 2}, {"permits": ALL}, {"priority": 3, "permits": 2}]
    for ask in asks:
        with pytest.raises(WouldBlock):
            guard.acquire_nowait(tenant="a", **ask)
    assert (await guard.inspect()).waiting == 0
    other = guard.acquire_nowait()
    await other.release()
    await permit.release()


async def test_no_waiting_at_all_is_a_timeout_of_zero(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire(timeout=0)
    with pytest.raises(WaitTimeout) as caught:
        await guard.acquire(timeout=0)
    assert caught.value.reason == "timeout"
    await permit.release()


async def test_a_dropped_permit_is_released_with_a_warning(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    with pytest.warns(ResourceWarning, match="'report' was dropped"):
        del permit
    async with guard.permit(timeout=0):
        pass


async def test_a_dropped_permit_passes_to_who_waits(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    permit = guard.acquire_nowait()
    waiting = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    with pytest.warns(ResourceWarning):
        del permit
    await (await waiting).release()


async def test_a_permit_dropped_in_a_cycle_is_released_by_the_collector(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    cycle: list[object] = [guard.acquire_nowait()]
    cycle.append(cycle)
    with pytest.warns(ResourceWarning):  # noqa: PT031
        del cycle
        gc.collect()
    async with guard.permit(timeout=0):
        pass


async def test_a_permit_that_nobody_fetched_from_a_task_is_released(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    task = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    with pytest.warns(ResourceWarning):  # noqa: PT031
        del task
        gc.collect()
    async with guard.permit(timeout=0):
        pass


async def test_bad_arguments_are_told_at_the_call_and_not_when_awaited(hub: AsyncGuard) -> None:
    with pytest.raises(ValueError, match="timeout"):
        _ = hub.guard("report").acquire(timeout=-1)


async def test_the_limit_of_a_variant_governs_what_its_calls_may_ask(hub: AsyncGuard) -> None:
    variant = hub.guard("report").replace(limit=3)
    permit = await variant.acquire(permits=3)
    await permit.release()
