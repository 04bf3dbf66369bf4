"""Declaring guards: the same name, variants, and what a hub tells about itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, Draining, Rate, TooLarge, WouldBlock

if TYPE_CHECKING:
    from asyncguard import Guard


def test_the_same_name_with_the_same_options_is_the_same_guard() -> None:
    ag = AsyncGuard()
    guard = ag.guard("report", limit=2, rate=Rate(1, per=2))
    assert ag.guard("report", limit=2, rate=Rate(1, per=2)) is guard
    assert AsyncGuard().guard("report", limit=2) is not guard


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("limit", 2),
        ("max_waiting", None),
        ("max_wait", 3.5),
        ("max_hold", 9.0),
        ("order", "lifo"),
        ("rate", Rate(1, per=2)),
        ("max_keys", 7),
        ("on_lost", "notify"),
    ],
)
def test_other_options_are_a_value_error_that_names_the_difference(option: str, value: Any) -> None:
    ag = AsyncGuard()
    ag.guard("report")
    with pytest.raises(ValueError, match=f"'report'.* {option}=.* instead of ") as caught:
        ag.guard("report", **{option: value})
    others = {"limit", "max_waiting", "max_wait", "max_hold", "order", "rate", "max_keys", "on_lost"} - {
        option
    }
    assert not [other for other in others if f"{other}=" in str(caught.value)]


def test_a_guard_shows_its_name_and_limit() -> None:
    guard = AsyncGuard().guard("report", limit=3)
    assert (guard.name, guard.limit) == ("report", 3)
    assert repr(guard) == "<Guard 'report', limit 3>"


def test_a_hub_explains_itself() -> None:
    ag = AsyncGuard(namespace="shop", revision=7)
    ag.guard("report", max_hold=3)
    ag.guard("ledger", limit=2)
    text = ag.explain()
    for part in (
        "'shop'",
        "revision 7",
        "this process alone",
        "'report'",
        "max_hold=3",
        "'ledger'",
        "limit=2",
    ):
        assert part in text
    assert repr(ag) == "<AsyncGuard 'shop' with 2 guards>"


async def test_a_variant_with_a_name_of_its_own_is_a_guard_of_its_own(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=5)
    other = guard.replace(name="other", limit=2)
    assert (other.name, other.limit, other.options.max_wait) == ("other", 2, 5)
    assert hub.guard("other", limit=2, max_wait=5) is other
    async with guard, other:
        assert guard.limit == 1


async def test_a_variant_of_the_same_name_shares_permits_and_queue(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    patient = guard.replace(max_wait=None)
    async with guard:
        with pytest.raises(WouldBlock):
            patient.acquire_nowait()


async def test_a_lower_limit_lets_nobody_in_while_more_are_held(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3, max_wait=None)
    permits = [await guard.acquire() for _ in range(3)]
    waiting = [asyncio.create_task(guard.acquire()) for _ in range(3)]
    await asyncio.sleep(1)
    guard.replace(limit=1)
    for held, permit in zip((2, 1, 1), permits, strict=True):
        await permit.release()
        assert (await guard.inspect()).in_use == held
    for task in waiting:
        await (await task).release()


async def test_a_higher_limit_lets_in_who_waits(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    waiting = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    variant = guard.replace(limit=2)
    second = await waiting
    assert (await variant.inspect()).limit == 2
    assert (await guard.inspect()).in_use == 2
    await permit.release()
    await second.release()


async def test_a_lower_limit_drains_and_refuses_who_asks_for_more(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3)
    permits = [await guard.acquire() for _ in range(3)]
    two = asyncio.create_task(guard.acquire(permits=2))
    one = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    guard.replace(limit=1)
    with pytest.raises(TooLarge):
        await two
    assert (await guard.inspect()).in_use == 3
    await permits[0].release()
    await permits[1].release()
    assert (await guard.inspect()).in_use == 1
    await permits[2].release()
    await (await one).release()


async def test_the_variant_that_was_made_last_is_the_rule(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    guard.replace(limit=2)
    last = guard.replace(max_wait=5)
    assert (await last.inspect()).limit == last.limit


async def test_the_declaration_of_a_variant_is_what_the_name_now_stands_for(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    variant = guard.replace(limit=2)
    assert hub.guard("report", limit=2) is variant
    with pytest.raises(ValueError, match="limit"):
        hub.guard("report")


async def test_a_hub_that_closes_refuses_who_waits_and_leaves_who_works(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    waiting = [asyncio.create_task(guard.acquire(timeout=timeout)) for timeout in (None, 3, 5)]
    await asyncio.sleep(1)
    await hub.aclose()
    for task in waiting:
        with pytest.raises(Draining) as caught:
            await task
        assert caught.value.reason == "draining"
    assert (await guard.inspect()).in_use == 1
    await permit.release()


async def test_a_hub_is_used_again_after_it_closed(hub: AsyncGuard) -> None:
    guard = hub.guard("report")

    @guard
    def build() -> int:
        return 7

    for _ in range(3):
        async with hub:
            assert await _use(guard)
    assert await _use(guard)


async def _use(guard: Guard) -> bool:
    async with guard:
        return True


async def test_while_it_drains_nobody_comes_in_and_holders_finish(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with hub:
        async with guard as permit:
            waiting = asyncio.create_task(guard.acquire())
            await asyncio.sleep(1)
            hub.drain()
            for attempt in (waiting, guard.acquire(), _use(guard)):
                with pytest.raises(Draining):
                    await attempt
            with pytest.raises(Draining):
                guard.acquire_nowait()
            assert repr(permit).endswith("held>")
        assert repr(permit).endswith("released>")
    async with guard.permit(timeout=0):
        pass


async def test_one_may_look_while_it_drains(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with hub, guard:
        hub.drain()
        assert (await guard.inspect()).in_use == 1


async def test_a_block_that_began_in_another_task_ends_while_it_drains(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with hub:
        await asyncio.create_task(guard.__aenter__())
        hub.drain()
        await guard.__aexit__(None, None, None)
    assert (await guard.inspect()).in_use == 0


async def test_its_lifespan_is_that_of_an_application(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with hub.lifespan(None), guard:
        pass
