"""Who is turned away, why, and what the error says."""

# ruff: noqa: PLR2004, S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio
import time

import pytest

from asyncguard.errors import (
    Draining,
    HopelessWait,
    Paused,
    QueueFull,
    TooLarge,
    TooManyKeys,
    WaitTimeout,
)
from asyncguard.testing.conformance._scene import (
    HOLD,
    Line,
    Scene,
    Suite,
    in_a_loop,
    release,
    soon,
    teach,
    until,
)
from asyncguard.ticket import ALL, Rate


class Refusals(Suite):
    """max_waiting, max_wait, timeout, hopeless waits, max_keys, draining."""

    @in_a_loop
    async def test_a_full_queue_refuses_the_next_one(self, scene: Scene) -> None:
        guard = scene.guard(max_waiting=2)
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("a")
        await line.join("b")
        with pytest.raises(QueueFull) as caught:
            await asyncio.create_task(guard.acquire())
        refusal = caught.value
        assert (refusal.reason, refusal.guard, refusal.key) == ("full", "report", None)
        assert (refusal.waiting, refusal.limit) == (2, 1)
        await line.cancel("a")
        await line.join("c")
        await permit.release()
        assert await line.order() == ["b", "c"]

    @in_a_loop
    async def test_each_key_has_a_queue_of_its_own(self, scene: Scene) -> None:
        guard = scene.guard(max_waiting=1)
        permits = [await guard.acquire(key=key) for key in "ab"]
        line = Line(guard)
        for key in "ab":
            await line.join(key, key=key)
        await line.join("too many", key="a")
        assert (await line.refused("too many", QueueFull)).key == "a"
        await release(*permits)
        await line.order()

    @in_a_loop
    async def test_where_nobody_may_wait_only_a_free_permit_will_do(self, scene: Scene) -> None:
        guard = scene.guard(max_waiting=0)
        permit = await guard.acquire()
        with pytest.raises(QueueFull):
            await guard.acquire(timeout=60)
        await permit.release()
        await release(await soon(guard.acquire()))

    # --- time ----------------------------------------------------------------------------------

    @in_a_loop
    async def test_a_ticket_waits_as_long_as_it_is_prepared_to(self, scene: Scene) -> None:
        guard = scene.guard(max_wait=0.15)
        permit = await guard.acquire(key="a")
        for timeout, least in ((None, 0.15), (0.05, 0.05), (60, 0.15)):
            start = time.monotonic()
            with pytest.raises(WaitTimeout) as caught:
                await guard.acquire(key="a", timeout=timeout)
            assert least * 0.9 <= time.monotonic() - start < least + 2
            refusal = caught.value
            assert (refusal.reason, refusal.guard, refusal.key) == ("timeout", "report", "a")
        assert (await until(guard, lambda seen: not seen.waiting)).refused == {"timeout": 3}
        await permit.release()

    @in_a_loop
    async def test_who_will_not_wait_at_all_is_refused_at_once(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire(timeout=0)
        with pytest.raises(WaitTimeout):
            await soon(guard.acquire(timeout=0, permits=ALL))
        assert (await guard.inspect()).waiting == 0
        await permit.release()

    @in_a_loop
    async def test_one_who_gives_up_does_not_hold_up_those_behind(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("both", permits=2, timeout=0.05)
        await line.join("one")
        await line.refused("both", WaitTimeout)
        assert await line.order() == ["one"]
        await permit.release()

    @in_a_loop
    async def test_one_granted_when_it_gives_up_is_granted_or_refused_but_not_both(
        self, scene: Scene
    ) -> None:
        guard = scene.guard()
        for number in range(12):
            patience = 0.01 + number / 4000
            permit = await guard.acquire()
            waiting = asyncio.create_task(guard.acquire(timeout=patience))
            await asyncio.sleep(0.0115)
            await permit.release()
            try:
                second = await soon(waiting)
            except WaitTimeout:
                pass
            else:
                await second.release()
            await release(await soon(guard.acquire()))

    # --- hopeless ------------------------------------------------------------------------------

    @in_a_loop
    async def test_a_hopeless_wait_is_refused_at_the_door(self, scene: Scene) -> None:
        guard = scene.guard()
        await teach(guard, 2 * HOLD)
        await until(guard, lambda seen: seen.mean_hold)
        permit = await guard.acquire()
        line = Line(guard)
        for name in ("a", "b", "c", "d"):
            await line.join(name, hold=HOLD)
        with pytest.raises(HopelessWait) as caught:
            await soon(guard.acquire(timeout=2 * HOLD))
        refusal = caught.value
        assert refusal.reason == "hopeless"
        assert refusal.estimated_wait is not None
        assert refusal.estimated_wait > 4 * HOLD
        await line.join("first", priority=600, timeout=2)
        await permit.release()
        assert (await line.order())[0] == "first", "what counts is the place in the order"

    @in_a_loop
    async def test_one_is_always_let_in_to_see_whether_the_estimate_is_right(self, scene: Scene) -> None:
        guard = scene.guard()
        await teach(guard, 3 * HOLD)
        await until(guard, lambda seen: seen.mean_hold)
        permit = await guard.acquire()
        with pytest.raises(WaitTimeout):
            await guard.acquire(timeout=HOLD / 2)
        await permit.release()

    @in_a_loop
    async def test_who_gives_up_hears_how_long_another_would_wait(self, scene: Scene) -> None:
        guard = scene.guard()
        await teach(guard, HOLD)
        await until(guard, lambda seen: seen.mean_hold)
        permit = await guard.acquire()
        with pytest.raises(WaitTimeout) as caught:
            await soon(guard.acquire(timeout=HOLD / 2))
        await permit.release()
        assert caught.value.estimated_wait is not None
        assert (caught.value.waiting, caught.value.limit) == (0, 1)

    @in_a_loop
    async def test_a_pace_is_foreseen_before_any_work_was_seen(self, scene: Scene) -> None:
        guard = scene.guard(limit=9, rate=Rate(1, per=60))
        await release(await guard.acquire())
        line = Line(guard)
        await line.join("probe")
        with pytest.raises(HopelessWait) as caught:
            await guard.acquire(timeout=90)
        assert caught.value.estimated_wait == pytest.approx(119, abs=5)
        await line.cancel("probe")

    # --- other reasons -------------------------------------------------------------------------

    @in_a_loop
    async def test_what_asks_for_more_than_the_limit_became_is_too_large(self, scene: Scene) -> None:
        guard = scene.guard(limit=3)
        await guard.set_limit(2)
        with pytest.raises(TooLarge) as caught:
            await guard.acquire(permits=3)
        assert (caught.value.reason, caught.value.limit) == ("too_large", 2)
        async with guard.permit(permits=ALL):
            assert (await guard.inspect()).in_use == 2
        await guard.set_limit(None)

    @in_a_loop
    async def test_too_many_keys_are_refused(self, scene: Scene) -> None:
        guard = scene.guard(max_keys=2)
        permits = [await guard.acquire(key=key) for key in "ab"]
        with pytest.raises(TooManyKeys) as caught:
            await guard.acquire(key="c")
        assert (caught.value.reason, caught.value.key) == ("too_many_keys", "c")
        line = Line(guard)
        await line.join("one more of a", key="a")
        await release(*permits)
        await line.order()

    @in_a_loop
    async def test_a_paused_guard_refuses_who_will_not_wait(self, scene: Scene) -> None:
        guard = scene.guard()
        await guard.pause()
        with pytest.raises(Paused) as caught:
            await guard.acquire(timeout=0)
        assert caught.value.reason == "paused"
        await guard.resume()

    @in_a_loop
    async def test_while_it_drains_who_waits_is_refused_and_who_works_goes_on(self, scene: Scene) -> None:
        ag = scene.ag()
        guard = scene.guard()
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("waits")
        ag.drain()
        assert (await line.refused("waits", Draining)).reason == "draining"
        with pytest.raises(Draining):
            await guard.acquire()
        picture = await until(guard, lambda seen: not seen.waiting)
        assert picture.in_use == 1
        assert not permit.lost
        await permit.release()

    @in_a_loop
    async def test_closing_refuses_who_waits_and_it_can_be_used_again(self, scene: Scene) -> None:
        ag = scene.ag()
        guard = scene.guard()
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("waits")
        await ag.aclose()
        await line.refused("waits", Draining)
        assert (await until(guard, lambda seen: not seen.waiting)).in_use == 1, "permits stay with holders"
        await line.join("again")
        await permit.release()
        assert await line.order() == ["again"]
