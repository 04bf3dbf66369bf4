"""What an operator may do to a guard while it runs."""

# ruff: noqa: PLR2004, S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio

import pytest

from asyncguard.errors import Evicted, PermitLost, TooLarge
from asyncguard.testing.conformance._scene import (
    Line,
    Scene,
    Suite,
    evict,
    in_a_loop,
    release,
    soon,
    until,
)
from asyncguard.ticket import ALL


class Operators(Suite):
    """Pause, resume, set_limit, evict, variants."""

    @in_a_loop
    async def test_a_paused_guard_lets_holders_go_on_and_nobody_in(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()
        await guard.pause()
        line = Line(guard)
        await line.join("first")
        await permit.release()
        await line.join("second")
        picture = await guard.inspect()
        assert (picture.paused, picture.in_use, picture.waiting) == (True, 0, 2)
        assert picture.estimated_wait is None
        await guard.resume()
        assert await line.order() == ["first", "second"]
        assert not (await guard.inspect()).paused

    @in_a_loop
    async def test_one_key_is_paused_and_no_other(self, scene: Scene) -> None:
        guard = scene.guard()
        await guard.pause("a")
        line = Line(guard)
        await line.join("a", key="a")
        await release(await soon(guard.acquire(key="b")), await soon(guard.acquire()))
        assert (await guard.inspect("a")).paused
        assert not (await guard.inspect("b")).paused
        await guard.resume("a")
        assert await line.order() == ["a"]

    @in_a_loop
    async def test_a_raised_limit_lets_in_who_waits_and_stands_until_it_is_cleared(
        self, scene: Scene
    ) -> None:
        guard = scene.guard()
        permits = [await guard.acquire()]
        waiting = [asyncio.create_task(guard.acquire()) for _ in range(2)]
        await until(guard, lambda seen: seen.waiting == 2)
        await guard.set_limit(3)
        permits += [await soon(task) for task in waiting]
        assert ((await guard.inspect()).limit, (await guard.inspect()).in_use) == (3, 3)
        await guard.set_limit(None)
        assert (await guard.inspect()).limit == 1
        line = Line(guard)
        await line.join("next")
        await release(*permits[:2])
        assert (await guard.inspect()).waiting == 1, "lowering takes no permit away: they drain"
        await release(permits[2])
        assert await line.order() == ["next"]

    @in_a_loop
    async def test_a_lowered_limit_drains_and_refuses_who_asks_for_more(self, scene: Scene) -> None:
        guard = scene.guard(limit=3)
        permits = [await guard.acquire() for _ in range(3)]
        line = Line(guard)
        await line.join("two", permits=2)
        await line.join("one")
        await line.join("all", permits=ALL)
        await guard.set_limit(1)
        assert (await line.refused("two", TooLarge)).reason == "too_large"
        assert (await guard.inspect()).in_use == 3
        await release(*permits[:2])
        picture = await guard.inspect()
        assert (picture.in_use, picture.waiting) == (1, 2)
        await release(permits[2])
        assert await line.order() == ["one", "all"]
        await guard.set_limit(None)

    @in_a_loop
    async def test_a_limit_of_one_key_goes_before_that_of_the_guard(self, scene: Scene) -> None:
        guard = scene.guard()
        await guard.set_limit(2)
        await guard.set_limit(3, "a")
        limits = [(await guard.inspect(key)).limit for key in ("a", "b", None)]
        assert limits == [3, 2, 2]
        permits = [await soon(guard.acquire(key="a")) for _ in range(3)]
        line = Line(guard)
        await line.join("fourth", key="a")
        await guard.set_limit(None, "a")
        assert (await guard.inspect("a")).limit == 2
        await guard.set_limit(None)
        assert (await guard.inspect("a")).limit == 1
        await release(*permits)
        assert await line.order() == ["fourth"]

    # --- evict ---------------------------------------------------------------------------------

    @in_a_loop
    async def test_an_evicted_waiter_is_refused(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire(key="a")
        line = Line(guard)
        await line.join("out", key="a")
        await line.join("behind", key="a")
        await evict(guard, "out")
        assert (await line.refused("out", Evicted)).reason == "evicted"
        assert (await guard.inspect("a")).waiting == 1
        await permit.release()
        assert await line.order() == ["behind"]

    @in_a_loop
    async def test_an_evicted_head_that_needed_much_lets_in_those_behind_it(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("all", permits=ALL)
        await line.join("one")
        await evict(guard, "all")
        await line.refused("all", Evicted)
        assert await line.order() == ["one"]
        await permit.release()

    @in_a_loop
    async def test_an_evicted_holder_is_cancelled_and_the_next_one_comes_in(self, scene: Scene) -> None:
        guard = scene.guard()
        task = await Line(guard).join("out", hold=60)
        line = Line(guard)
        await line.join("next")
        await evict(guard, "out")
        with pytest.raises(PermitLost):
            await soon(task)
        assert await line.order() == ["next"]

    @in_a_loop
    async def test_an_evicted_permit_that_wants_only_to_know_is_lost(self, scene: Scene) -> None:
        guard = scene.guard(on_lost="notify")
        async with guard.permit(label="out") as permit:
            assert not permit.lost
            await evict(guard, "out")
            await soon(permit.lost.wait())
            second = await soon(guard.acquire(label="in"))
        assert (await guard.inspect()).in_use == 1, "whoever lost a permit frees nobody else's"
        await second.release()

    @pytest.mark.parametrize("permits", [1, 2, ALL])
    @in_a_loop
    async def test_an_evicted_permit_by_hand_is_lost(self, scene: Scene, permits: int | str) -> None:
        guard = scene.guard(limit=3)
        permit = await guard.acquire(permits=permits, label="out")  # type: ignore[arg-type]
        await evict(guard, "out")
        await soon(permit.lost.wait())
        assert (await guard.inspect()).in_use == 0
        second = await soon(guard.acquire(permits=3))
        await permit.release()
        assert (await guard.inspect()).in_use == 3
        await second.release()

    @in_a_loop
    async def test_evicting_whom_nobody_knows_changes_nothing(self, scene: Scene) -> None:
        guard = scene.guard()
        async with guard:
            (gone,) = (await guard.inspect()).holders
            assert not await guard.evict("no such id")
        assert not await guard.evict(gone.id)
        assert (await guard.inspect()).refused == {}

    # --- variants ------------------------------------------------------------------------------

    @in_a_loop
    async def test_a_variant_of_a_guard_shares_its_permits_and_queue(self, scene: Scene) -> None:
        if self.shared:
            pytest.skip("on a shared backend the revision decides which declaration stands")
        guard = scene.guard()
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("first")
        await line.join("second", via=guard.replace(max_wait=60))
        picture = await guard.inspect()
        assert (picture.in_use, picture.waiting) == (1, 2)
        guard.replace(limit=3)
        assert await line.order() == ["first", "second"]
        assert (await guard.inspect()).limit == 3
        await permit.release()
