"""How many hold at once, what becomes of a permit, and what its token says."""

# ruff: noqa: PLR2004, S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard.errors import HoldExceeded, TooManyKeys, WouldBlock, WouldDeadlock
from asyncguard.testing.conformance._scene import (
    HOLD,
    SOON,
    Line,
    Scene,
    Suite,
    in_a_loop,
    release,
    soon,
    until,
)
from asyncguard.ticket import ALL

if TYPE_CHECKING:
    from asyncguard.guard import Guard


class Limits(Suite):
    """Limit, permits, ALL, max_hold, keys that come and go, tokens."""

    @pytest.mark.parametrize("limit", [1, 3])
    @in_a_loop
    async def test_as_many_hold_as_the_limit_says_and_no_more(self, scene: Scene, limit: int) -> None:
        guard = scene.guard(limit=limit)
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            async with guard:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(HOLD / 2)
                inside -= 1

        await soon(asyncio.gather(*(work() for _ in range(12))))
        assert most == limit

    @in_a_loop
    async def test_every_key_has_permits_of_its_own(self, scene: Scene) -> None:
        guard = scene.guard()
        permits = [await soon(guard.acquire(key=key)) for key in ("a", "b", None, 7)]
        waiting = asyncio.create_task(guard.acquire(key="7"))
        await until(guard, lambda seen: seen.waiting == 1, 7)
        assert (await guard.inspect("a")).in_use == 1
        assert (await guard.inspect()).in_use == 4
        await release(*permits)
        await release(await soon(waiting))

    @in_a_loop
    async def test_guards_of_other_names_have_permits_of_their_own(self, scene: Scene) -> None:
        ag = scene.ag()
        async with ag.guard("one"), ag.guard("other"):
            assert (await ag.guard("one").inspect()).in_use == 1

    @in_a_loop
    async def test_one_ticket_can_take_several_permits(self, scene: Scene) -> None:
        guard = scene.guard(limit=3)
        two = await guard.acquire(permits=2)
        one = await soon(guard.acquire())
        line = Line(guard)
        await line.join("two", permits=2)
        await one.release()
        assert (await guard.inspect()).waiting == 1, "one is free, and two are needed"
        await two.release()
        assert await line.order() == ["two"]

    @in_a_loop
    async def test_who_takes_all_is_alone_and_blocks_those_behind(self, scene: Scene) -> None:
        guard = scene.guard(limit=3)
        shared = [await guard.acquire() for _ in range(2)]
        line = Line(guard)
        await line.join("alone", permits=ALL, hold=HOLD)
        await line.join("one")
        await line.join("other")
        assert (await guard.inspect()).waiting == 3, "a permit is free, and whoever needs all is first"
        await shared[0].release()
        assert (await guard.inspect()).waiting == 3
        await shared[1].release()
        picture = await until(guard, lambda seen: seen.holders)
        assert (picture.in_use, picture.waiting) == (3, 2)
        assert (await line.order())[0] == "alone"

    @in_a_loop
    async def test_a_permit_passes_on_when_the_work_fails(self, scene: Scene) -> None:
        guard = scene.guard()
        with pytest.raises(ZeroDivisionError):
            async with guard:
                raise ZeroDivisionError
        await (await soon(guard.acquire())).release()

    @in_a_loop
    async def test_a_permit_is_released_once(self, scene: Scene) -> None:
        guard = scene.guard()
        first = await guard.acquire()
        await first.release()
        second = await soon(guard.acquire())
        await first.release()
        assert (await guard.inspect()).in_use == 1, "a second release frees nobody else's permit"
        await second.release()

    @in_a_loop
    async def test_a_permit_that_is_free_is_taken_without_waiting(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        if not self.answers_at_once:
            with pytest.raises(NotImplementedError):
                guard.acquire_nowait()
            pytest.skip("the backend says that it can't be asked without waiting for it")
        permits = [guard.acquire_nowait(), guard.acquire_nowait(key="a", permits=2)]
        with pytest.raises(WouldBlock):
            guard.acquire_nowait(permits=2)
        with pytest.raises(WouldBlock):
            guard.acquire_nowait(key="a")
        assert (await guard.inspect()).waiting == 0, "who only tries leaves no trace"
        await release(*permits)

    @in_a_loop
    async def test_who_only_tries_overtakes_nobody(self, scene: Scene) -> None:
        if not self.answers_at_once:
            pytest.skip("the backend says that it can't be asked without waiting for it")
        guard = scene.guard(limit=2)
        one = await guard.acquire()
        line = Line(guard)
        await line.join("two", permits=2)
        with pytest.raises(WouldBlock):
            guard.acquire_nowait()
        await one.release()
        assert await line.order() == ["two"]

    @in_a_loop
    async def test_a_task_that_would_wait_for_itself_is_told(self, scene: Scene) -> None:
        guard = scene.guard()
        async with guard.permit(key="a"):
            with pytest.raises(WouldDeadlock):
                await soon(guard.acquire(key="a"))
            async with guard.permit(key="b"):
                pass
            picture = await until(guard, lambda seen: not seen.waiting, "a")
            assert picture.in_use == 1

    # --- how long it is held -------------------------------------------------------------------

    @in_a_loop
    async def test_work_that_overruns_is_cancelled_and_its_permit_passes_on(self, scene: Scene) -> None:
        guard = scene.guard(max_hold=0.05)
        line = Line(guard)

        async def overrun() -> None:
            async with guard as permit:
                await line.join("next")
                try:
                    await asyncio.sleep(60)
                finally:
                    assert permit.held >= 0.045, "as its backend measures time"

        with pytest.raises(HoldExceeded):
            await overrun()
        assert await line.order() == ["next"]

    @in_a_loop
    async def test_a_permit_by_hand_that_overruns_passes_on_too(self, scene: Scene) -> None:
        guard = scene.guard(max_hold=0.05)
        permit = await guard.acquire()
        second = await soon(guard.acquire())
        assert permit.lost
        await permit.release()
        assert (await guard.inspect()).in_use == 1, "a late release frees nobody else's permit"
        await second.release()

    @in_a_loop
    async def test_work_that_wants_only_to_know_of_its_overrun_goes_on(self, scene: Scene) -> None:
        guard = scene.guard(max_hold=0.03, on_lost="notify")
        async with guard as permit:
            await soon(permit.lost.wait())
            assert (await guard.inspect()).in_use == 1, "it is held until the work has ended"

    @in_a_loop
    async def test_a_lease_is_renewed_while_the_work_goes_on(self, scene: Scene) -> None:
        guard = scene.guard()
        lease = scene.lease
        if not lease:
            pytest.skip("the backend has no leases: it sees who is alive")
        if lease > 2:
            pytest.skip(f"a lease of {lease:g} s is too long to wait for; open the backend with one of 1 s")
        async with guard as permit:
            line = Line(guard)
            await line.join("next")
            await asyncio.sleep(2.5 * lease)
            assert not permit.lost
            assert (await guard.inspect()).waiting == 1
        assert await line.order() == ["next"]

    # --- keys that come and go -----------------------------------------------------------------

    @in_a_loop
    async def test_unused_keys_make_room_for_others(self, scene: Scene) -> None:
        guard = scene.guard(max_keys=3)
        _skip_if_keys_stay(scene)
        for number in range(12):
            await _use_when_there_is_room(guard, f"key {number}")
        assert (await guard.inspect()).keys <= 3

    @in_a_loop
    async def test_tokens_grow_over_the_deletion_of_an_unused_key(self, scene: Scene) -> None:
        guard = scene.guard(max_keys=2)
        _skip_if_keys_stay(scene)
        tokens = []
        for number in range(6):
            tokens.append(await _use_when_there_is_room(guard, "a"))
            await _use_when_there_is_room(guard, f"other {number}")
            await _use_when_there_is_room(guard, f"another {number}")
        assert tokens == sorted(set(tokens))

    # --- tokens --------------------------------------------------------------------------------

    @pytest.mark.parametrize("limit", [1, 4])
    @in_a_loop
    async def test_tokens_grow_from_grant_to_grant(self, scene: Scene, limit: int) -> None:
        guard = scene.guard(limit=limit, max_waiting=None)
        tokens: list[int] = []

        async def work() -> None:
            async with guard as permit:
                tokens.append(permit.token)

        for _ in range(20):
            await work()
        await soon(asyncio.gather(*(work() for _ in range(40))))
        assert len(tokens) == len(set(tokens))
        assert tokens[:20] == sorted(tokens[:20])
        if limit == 1:
            assert tokens == sorted(tokens)
        assert all(0 < token < 2**53 for token in tokens)

    # --- all of it together --------------------------------------------------------------------

    @pytest.mark.parametrize("order", ["fifo", "lifo", "fair"])
    @in_a_loop
    async def test_whatever_happens_the_limit_holds_and_no_permit_is_idle(
        self, scene: Scene, order: Any
    ) -> None:
        chance = random.Random(order)  # noqa: S311
        guard = scene.guard(limit=3, order=order, max_waiting=None)
        in_use = 0

        async def work() -> None:
            nonlocal in_use
            permits: Any = chance.choice([1, 1, 1, 2, 3, ALL])
            taken = 3 if permits == ALL else permits
            ask = {"permits": permits, "priority": chance.choice([0, 0, 3]), "tenant": chance.choice("abc")}
            async with guard.permit(**ask):
                in_use += taken
                try:
                    assert in_use <= 3
                    await asyncio.sleep(chance.random() * HOLD / 2)
                finally:
                    in_use -= taken

        async def live() -> None:
            await asyncio.sleep(chance.random() / 4)
            task = asyncio.create_task(work())
            await asyncio.wait([task], timeout=chance.choice([HOLD, 60]))
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None

        async def look() -> None:
            while not living.done():
                picture = await guard.inspect()
                assert picture.in_use <= 3
                if picture.queue:
                    free = picture.limit - picture.in_use
                    assert free < picture.queue[0].permits, "a permit is free that the first could take"
                await asyncio.sleep(HOLD / 4)

        living = asyncio.gather(*(live() for _ in range(60)))
        await look()
        await living


def _skip_if_keys_stay(scene: Scene) -> None:
    stay = 2 * scene.lease
    if stay > SOON / 2:
        pytest.skip(f"an unused key stays for two leases, {stay:g} s; open the backend with leases of 1 s")


async def _use_when_there_is_room(guard: Guard, key: str) -> int:
    end = time.monotonic() + SOON
    while True:
        try:
            async with guard.permit(key=key) as permit:
                return permit.token
        except TooManyKeys:
            assert time.monotonic() < end, "keys that nobody uses any more make room for others"
            await asyncio.sleep(HOLD / 4)
