"""What an operator may do to a guard while it runs."""

from __future__ import annotations

import asyncio

import pytest

from asyncguard import AsyncGuard, Evicted, PermitLost, TooLarge


async def hold(hub: AsyncGuard, key: str | None = None, permits: int = 1) -> None:
    guard = hub.guard("report", limit=2)
    async with guard.permit(key=key, permits=permits):
        await asyncio.sleep(10)


async def test_a_paused_guard_lets_its_holders_go_on_and_nobody_in(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    first = asyncio.create_task(hold(hub))
    await asyncio.sleep(1)
    await guard.pause()
    second = asyncio.create_task(hold(hub))
    await first
    assert ((await guard.inspect()).in_use, (await guard.inspect()).waiting) == (0, 1)
    await guard.resume()
    await second


async def test_one_key_is_paused_and_no_other(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    await guard.pause("a")
    paused = asyncio.create_task(hold(hub, "a"))
    await hold(hub, "b")
    assert (await guard.inspect("a")).waiting == 1
    await guard.resume("a")
    await paused


async def test_a_limit_stands_until_it_is_cleared(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    await guard.set_limit(1)
    tasks = [asyncio.create_task(hold(hub)) for _ in range(2)]
    with pytest.raises(TooLarge):
        await hold(hub, permits=2)
    await asyncio.sleep(1)
    assert (await guard.inspect()).waiting == 1
    await guard.set_limit(None)
    assert (await guard.inspect()).in_use == 2
    await asyncio.gather(*tasks)


async def test_a_limit_of_none_at_all_is_no_limit_to_set(hub: AsyncGuard) -> None:
    with pytest.raises(ValueError, match="limit: expected 1 to 1,000,000,000, got 0"):
        await hub.guard("report").set_limit(0)


async def test_who_holds_loses_the_permit_and_who_waits_is_refused(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    tasks = [asyncio.create_task(hold(hub)) for _ in range(3)]
    await asyncio.sleep(1)
    picture = await guard.inspect()
    assert await guard.evict(picture.queue[0].id)
    assert await guard.evict(picture.holders[0].id)
    assert not await guard.evict(picture.holders[0].id)
    first, second, third = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, PermitLost)
    assert second is None
    assert isinstance(third, Evicted)
