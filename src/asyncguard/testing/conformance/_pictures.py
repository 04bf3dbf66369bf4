"""What `inspect` and observers show of a guard."""

# ruff: noqa: PLR2004, S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio
import time

import pytest

from asyncguard.errors import QueueFull
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
from asyncguard.ticket import ALL


class Pictures(Suite):
    """Holders, queue, positions, estimates, percentiles, counts, events."""

    @in_a_loop
    async def test_a_guard_that_nobody_used_is_empty(self, scene: Scene) -> None:
        picture = await scene.guard(limit=2).inspect()
        assert (picture.guard, picture.key, picture.limit) == ("report", None, 2)
        assert (picture.in_use, picture.waiting, picture.granted) == (0, 0, 0)
        assert (picture.holders, picture.queue, picture.paused) == ((), (), False)
        assert (picture.mean_hold, picture.hold.count, picture.wait.p50) == (None, 0, None)
        assert picture.refused == {}

    @in_a_loop
    async def test_a_picture_says_who_holds(self, scene: Scene) -> None:
        guard = scene.guard(limit=3)
        first = await guard.acquire(permits=2, label="monthly", tenant="t")
        second = await guard.acquire()
        await asyncio.sleep(HOLD)
        picture = await guard.inspect()
        assert (picture.in_use, picture.limit, picture.granted) == (3, 3, 2)
        one, other = picture.holders
        assert (one.label, one.tenant, one.permits, one.key) == ("monthly", "t", 2, None)
        assert (other.label, other.tenant, other.permits) == ("", "", 1)
        assert (one.token, other.token) == (first.token, second.token)
        assert one.id != other.id
        assert one.owner
        assert HOLD * 0.9 <= one.held < SOON_AFTER
        assert one.since == pytest.approx(time.time(), abs=60)
        await release(first, second)

    @in_a_loop
    async def test_a_picture_says_who_waits_in_the_order_of_grants(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        permit = await guard.acquire(permits=2)
        line = Line(guard)
        await line.join("a", tenant="t")
        await line.join("b", permits=2)
        await line.join("c", priority=60)
        await line.join("d", permits=ALL)
        await asyncio.sleep(HOLD)
        picture = await guard.inspect()
        assert [(w.label, w.position, w.permits) for w in picture.queue] == [
            ("c", 0, 1),
            ("a", 1, 1),
            ("b", 2, 2),
            ("d", 3, 2),
        ]
        assert [waiter.tenant for waiter in picture.queue] == ["", "t", "", ""]
        assert all(HOLD * 0.9 <= waiter.waited < SOON_AFTER for waiter in picture.queue)
        assert len({picture.holders[0].id, *(waiter.id for waiter in picture.queue)}) == 5
        assert picture.waiting == 4
        await permit.release()
        assert await line.order() == ["c", "a", "b", "d"]

    @in_a_loop
    async def test_a_picture_of_the_guard_has_all_keys_in_it(self, scene: Scene) -> None:
        guard = scene.guard()
        permits = [await guard.acquire(key=key) for key in ("a", "b", None)]
        line = Line(guard)
        await line.join("of a", key="a")
        picture = await guard.inspect()
        assert (picture.key, picture.in_use, picture.waiting, picture.keys) == (None, 3, 1, 3)
        assert {holder.key for holder in picture.holders} == {"a", "b", None}
        assert [waiter.key for waiter in picture.queue] == ["a"]
        of_a = await guard.inspect("a")
        assert (of_a.key, of_a.in_use, of_a.waiting, of_a.keys) == ("a", 1, 1, 1)
        await release(*permits)
        await line.order()

    @in_a_loop
    async def test_looking_at_a_key_does_not_make_it(self, scene: Scene) -> None:
        guard = scene.guard(max_keys=2)
        for number in range(9):
            assert (await guard.inspect(number)).granted == 0
        async with guard:
            assert (await guard.inspect()).keys == 1

    # --- what was seen -------------------------------------------------------------------------

    @in_a_loop
    async def test_nothing_is_estimated_before_five_holds_were_seen(self, scene: Scene) -> None:
        guard = scene.guard()
        await teach(guard, times=4)
        permit = await guard.acquire()
        picture = await guard.inspect()
        assert (picture.estimated_wait, picture.mean_hold) == (None, None)
        await asyncio.sleep(HOLD)
        await permit.release()
        picture = await until(guard, lambda seen: seen.mean_hold)
        assert picture.estimated_wait == 0

    @in_a_loop
    async def test_the_estimate_counts_those_ahead(self, scene: Scene) -> None:
        guard = scene.guard()
        await teach(guard, 2 * HOLD)
        mean = (await until(guard, lambda seen: seen.mean_hold)).mean_hold
        assert mean is not None
        assert 2 * HOLD * 0.9 <= mean < SOON_AFTER
        permit = await guard.acquire()
        line = Line(guard)
        for name in ("a", "b", "c"):
            await line.join(name)
        picture = await guard.inspect()
        first, second, third = (waiter.estimated_wait for waiter in picture.queue)
        assert first is not None
        assert second is not None
        assert third is not None
        assert first <= mean
        assert (second - first, third - second) == pytest.approx((mean, mean), rel=0.1)
        assert picture.estimated_wait == pytest.approx(third + mean, rel=0.1)
        await permit.release()
        await line.order()

    @in_a_loop
    async def test_a_new_key_is_estimated_by_what_the_others_took(self, scene: Scene) -> None:
        guard = scene.guard()
        await teach(guard, 2 * HOLD, key="old")
        await until(guard, lambda seen: seen.mean_hold)
        permit = await guard.acquire(key="new")
        line = Line(guard)
        await line.join("waits", key="new")
        assert (await guard.inspect("new")).queue[0].estimated_wait is not None
        await permit.release()
        await line.order()

    @in_a_loop
    async def test_percentiles_tell_how_long_tickets_waited_and_held(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()
        line = Line(guard)
        for number in range(9):
            await line.join(f"number {number}", hold=HOLD)
        await permit.release()
        await line.order()
        picture = await until(guard, lambda seen: seen.hold.count == 10)
        assert (picture.granted, picture.wait.count) == (10, 10)
        hold, wait = picture.hold, picture.wait
        assert hold.p50 is not None
        assert HOLD * 0.9 <= hold.p50 < SOON_AFTER
        assert wait.p50 is not None
        assert wait.p90 is not None
        assert wait.p99 is not None
        assert 2 * HOLD < wait.p50 <= wait.p90 <= wait.p99

    @in_a_loop
    async def test_work_that_was_cancelled_is_granted_and_says_nothing_of_holds(self, scene: Scene) -> None:
        guard = scene.guard()
        line = Line(guard)
        for number in range(3):
            await line.join(f"number {number}", hold=60)
            await line.cancel(f"number {number}")
        picture = await until(guard, lambda seen: not seen.holders)
        assert (picture.granted, picture.hold.count) == (3, 0)

    @in_a_loop
    async def test_refusals_are_counted_by_reason(self, scene: Scene) -> None:
        guard = scene.guard(max_waiting=0)
        permit = await guard.acquire()
        for _ in range(3):
            with pytest.raises(QueueFull):
                await guard.acquire()
        assert (await guard.inspect()).refused == {"full": 3}
        await permit.release()

    # --- events --------------------------------------------------------------------------------

    @in_a_loop
    async def test_observers_hear_what_pictures_show(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        permit = await guard.acquire(label="work", tenant="t", key="k", permits=2)
        (holder,) = (await guard.inspect("k")).holders
        await permit.release()
        entered, granted, released = (event for _, event in scene.events)
        assert [entered.kind, granted.kind, released.kind] == ["entered", "granted", "released"]
        for event in (entered, granted, released):
            assert (event.guard, event.key, event.label, event.tenant) == ("report", "k", "work", "t")
            assert (event.permits, event.ticket) == (2, holder.id)
        assert granted.token == released.token == permit.token == holder.token
        assert entered.token is None
        assert entered.at <= granted.at <= released.at

    @in_a_loop
    async def test_a_permit_tells_how_long_it_waited_and_held(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()
        waiting = asyncio.create_task(guard.acquire())
        await until(guard, lambda seen: seen.waiting == 1)
        await asyncio.sleep(2 * HOLD)
        await permit.release()
        second = await soon(waiting)
        await asyncio.sleep(HOLD)
        await second.release()
        assert 2 * HOLD * 0.9 <= second.waited < SOON_AFTER
        assert HOLD * 0.9 <= second.held < SOON_AFTER
        assert permit.waited < SOON_AFTER


SOON_AFTER = 2.0
"""Seconds that no short work takes, on a machine that is busy too."""
