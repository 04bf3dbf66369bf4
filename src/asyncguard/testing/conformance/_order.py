"""Who is let in when: arrival, head starts, newest first, tenants in turn, a pace."""

# ruff: noqa: PLR2004, S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from asyncguard.errors import QueueFull
from asyncguard.testing.conformance._scene import HOLD, Line, Scene, Suite, in_a_loop, release, soon
from asyncguard.ticket import ALL, Rate


class Orders(Suite):
    """Order, priority, tenant, share, rate: nobody barges, and no permit is idle."""

    @pytest.mark.parametrize("limit", [1, 2])
    @in_a_loop
    async def test_who_came_first_is_let_in_first(self, scene: Scene, limit: int) -> None:
        guard = scene.guard(limit=limit)
        permits = [await guard.acquire() for _ in range(limit)]
        line = Line(guard)
        names = [f"number {number}" for number in range(8)]
        for name in names:
            await line.join(name, hold=HOLD / 4)
        await release(*permits)
        assert await line.order() == names

    @in_a_loop
    async def test_a_newcomer_overtakes_nobody_who_was_let_in_and_has_not_run(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("first")
        await permit.release()
        await line.join("second")
        assert await line.order() == ["first", "second"]

    @in_a_loop
    async def test_a_holder_that_comes_again_goes_to_the_end_of_the_line(self, scene: Scene) -> None:
        guard = scene.guard()
        order: list[str] = []

        async def work(name: str) -> None:
            for _ in range(3):
                async with guard:
                    order.append(name)
                    await asyncio.sleep(HOLD)

        await soon(asyncio.gather(work("a"), work("b")))
        assert order in (["a", "b"] * 3, ["b", "a"] * 3)

    @in_a_loop
    async def test_a_freed_permit_is_taken_at_once_by_whoever_waits(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        permits = [await guard.acquire() for _ in range(2)]
        line = Line(guard)
        for name in ("a", "b", "c"):
            await line.join(name, hold=HOLD)
        for permit in permits:
            await permit.release()
            assert (await guard.inspect()).in_use == 2, "who releases hands it over in the same step"
        await line.order()

    @in_a_loop
    async def test_small_ones_behind_a_large_one_come_in_with_what_is_left(self, scene: Scene) -> None:
        guard = scene.guard(limit=4)
        permit = await guard.acquire(permits=3)
        line = Line(guard)
        await line.join("two", hold=2 * HOLD, permits=2)
        await line.join("one", hold=2 * HOLD)
        await line.join("other", hold=2 * HOLD)
        assert (await guard.inspect()).waiting == 3, "nobody overtakes whoever needs more"
        await permit.release()
        assert (await guard.inspect()).in_use == 4
        assert await line.order() == ["two", "one", "other"]

    # --- priority ------------------------------------------------------------------------------

    @in_a_loop
    async def test_a_head_start_overtakes_what_came_less_than_that_before(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("early")
        await line.join("late")
        await line.join("with 60 s", priority=60)
        await line.join("with 600 s", priority=600)
        await asyncio.sleep(3 * HOLD)
        await line.join("with too little", priority=HOLD)
        await permit.release()
        assert await line.order() == ["with 600 s", "with 60 s", "early", "late", "with too little"]

    # --- lifo ----------------------------------------------------------------------------------

    @in_a_loop
    async def test_the_newest_is_let_in_first(self, scene: Scene) -> None:
        guard = scene.guard(order="lifo")
        permit = await guard.acquire()
        line = Line(guard)
        for name in ("a", "b", "c"):
            await line.join(name)
        await permit.release()
        assert await line.order() == ["c", "b", "a"]

    @in_a_loop
    async def test_a_full_queue_of_the_newest_first_refuses_the_oldest(self, scene: Scene) -> None:
        guard = scene.guard(order="lifo", max_waiting=2)
        permit = await guard.acquire()
        line = Line(guard)
        for name in ("oldest", "older", "newest"):
            await line.join(name)
        await line.refused("oldest", QueueFull)
        await permit.release()
        assert await line.order() == ["newest", "older"]

    # --- fair ----------------------------------------------------------------------------------

    @in_a_loop
    async def test_tenants_take_turns(self, scene: Scene) -> None:
        guard = scene.guard(order="fair")
        permit = await guard.acquire(tenant="holder")
        line = Line(guard)
        for name in ("a1", "a2", "a3", "a4", "b1", "b2"):
            await line.join(name, tenant=name[0], hold=HOLD)
        await permit.release()
        order = await line.order()
        assert order[:2] == ["a1", "b1"]
        assert order.index("b2") <= 3, "one who asks for little waits for nobody's flood"
        assert [name for name in order if name[0] == "a"] == ["a1", "a2", "a3", "a4"]

    @in_a_loop
    async def test_a_tenant_gets_in_proportion_to_its_share(self, scene: Scene) -> None:
        guard = scene.guard(order="fair")
        permit = await guard.acquire(tenant="holder")
        line = Line(guard)
        for name in ("a1", "a2", "a3", "b1", "b2"):
            await line.join(name, tenant=name[0], share=8 if name[0] == "a" else 1, hold=HOLD)
        await permit.release()
        assert await line.order() == ["a1", "b1", "a2", "a3", "b2"]

    @in_a_loop
    async def test_a_full_queue_refuses_the_last_of_the_tenant_with_most_waiting(self, scene: Scene) -> None:
        guard = scene.guard(order="fair", max_waiting=3)
        permit = await guard.acquire(tenant="holder")
        line = Line(guard)
        for name in ("a1", "a2", "a3", "b1"):
            await line.join(name, tenant=name[0])
        await line.refused("a3", QueueFull)
        await permit.release()
        assert (await line.order())[:2] == ["a1", "b1"]

    # --- rate ----------------------------------------------------------------------------------

    @in_a_loop
    async def test_grants_come_at_the_pace_and_not_much_later(self, scene: Scene) -> None:
        interval = 0.06
        guard = scene.guard(limit=9, rate=Rate(1, per=interval))
        start = time.monotonic()
        permits = await soon(asyncio.gather(*(guard.acquire() for _ in range(4))))
        took = time.monotonic() - start
        tokens = sorted(permit.token for permit in permits)
        gaps = [after - before for before, after in itertools.pairwise(tokens)]
        assert min(gaps) >= interval * 1e6 - 2, "tokens are microseconds"
        assert 3 * interval * 0.9 < took < 3 * interval + 1
        await release(*permits)

    @in_a_loop
    async def test_a_burst_comes_in_at_once_after_a_quiet_time(self, scene: Scene) -> None:
        guard = scene.guard(limit=9, rate=Rate(1, per=0.3, burst=3))
        permits = [await guard.acquire(timeout=0) for _ in range(3)]
        line = Line(guard)
        await line.join("fourth")
        picture = await guard.inspect()
        assert (picture.in_use, picture.waiting) == (3, 1)
        await release(*permits)
        assert (await guard.inspect()).waiting == 1, "permits are free, and the pace holds"
        assert await line.order() == ["fourth"]

    @in_a_loop
    async def test_a_head_that_leaves_does_not_leave_the_others_waiting_for_ever(self, scene: Scene) -> None:
        guard = scene.guard(rate=Rate(1, per=0.1))
        async with guard:
            pass
        line = Line(guard)
        await line.join("head", permits=ALL)
        await line.join("behind")
        await line.cancel("head")
        assert await line.order() == ["behind"]

    @in_a_loop
    async def test_a_pace_is_kept_by_each_key(self, scene: Scene) -> None:
        guard = scene.guard(rate=Rate(1, per=0.2))
        for key in ("a", "b", "c"):
            async with guard.permit(key=key, timeout=0):
                pass
        start = time.monotonic()
        async with guard.permit(key="a") as permit:
            assert permit.waited > 0
        assert time.monotonic() - start < 2
