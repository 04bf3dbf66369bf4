"""Several AsyncGuards, and several processes, on one backend."""

# ruff: noqa: PLR2004, S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio
import multiprocessing
import time
import warnings
from typing import TYPE_CHECKING

import pytest

from asyncguard.errors import Draining, Evicted, PermitLost, QueueFull
from asyncguard.testing.conformance._scene import (
    HOLD,
    SOON,
    Line,
    MakeAsyncGuard,
    Scene,
    Suite,
    evict,
    in_a_loop,
    release,
    soon,
    until,
)

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from asyncguard.guard import Guard


class Sharing(Suite):
    """What is so between clients, where a backend has more than one."""

    @pytest.fixture
    def _shared(self) -> None:
        if not self.shared:
            pytest.skip("the backend says that AsyncGuards share nothing")

    @in_a_loop
    async def test_other_namespaces_have_permits_of_their_own(self, scene: Scene) -> None:
        other = Scene(scene.make_ag, shared=self.shared)
        permits = [await scene.guard().acquire(), await soon(other.guard().acquire())]
        assert (await other.guard().inspect()).in_use == 1
        await release(*permits)
        await other.end()

    @in_a_loop
    async def test_where_nothing_is_shared_another_asyncguard_has_permits_of_its_own(
        self, scene: Scene
    ) -> None:
        if self.shared:
            pytest.skip("the backend says that AsyncGuards share permits")
        one, other = _two(scene)
        async with one, other:
            assert (await one.inspect()).in_use == 1

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_the_limit_holds_over_all(self, scene: Scene) -> None:
        guards = _two(scene, limit=2)
        inside = most = 0

        async def work(guard: Guard) -> None:
            nonlocal inside, most
            async with guard:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(HOLD / 2)
                inside -= 1

        await soon(asyncio.gather(*(work(guards[number % 2]) for number in range(12))))
        assert most == 2

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_one_line_is_for_all_and_a_permit_passes_on_at_once(self, scene: Scene) -> None:
        one, other = _two(scene)
        permit = await one.acquire()
        line = Line(one)
        names = [f"number {number}" for number in range(8)]
        for number, name in enumerate(names):
            await line.join(name, via=(one, other)[number % 2])
        start = time.monotonic()
        await permit.release()
        assert await line.order() == names
        assert time.monotonic() - start < 1, "who is next is told, and doesn't find out by and by"

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_tokens_grow_over_all(self, scene: Scene) -> None:
        guards = _two(scene)
        tokens = []
        for number in range(20):
            async with guards[number % 2] as permit:
                tokens.append(permit.token)
        assert tokens == sorted(set(tokens))

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_each_sees_the_tickets_of_all(self, scene: Scene) -> None:
        one, other = _two(scene, max_waiting=1)
        permit = await one.acquire(key="a", label="holds")
        line = Line(other)
        await line.join("waits", key="a")
        for guard in (one, other):
            picture = await guard.inspect()
            assert [holder.label for holder in picture.holders] == ["holds"]
            assert [waiter.label for waiter in picture.queue] == ["waits"]
            with pytest.raises(QueueFull):
                await guard.acquire(key="a")
        assert (await one.inspect()).refused == {"full": 2}
        await permit.release()
        await line.order()

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_who_is_cancelled_passes_the_permit_to_another(self, scene: Scene) -> None:
        one, other = _two(scene)
        line = Line(one)
        await line.join("works", hold=60)
        await line.join("waits")
        await line.join("elsewhere", via=other)
        await line.cancel("waits")
        await line.cancel("works")
        assert await line.order() == ["works", "elsewhere"]

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_an_operator_acts_from_anywhere(self, scene: Scene) -> None:
        one, other = _two(scene)
        await one.pause()
        line = Line(one)
        await line.join("first", via=other)
        assert (await other.inspect()).paused
        await other.resume()
        assert await line.order() == ["first"]
        await one.set_limit(2)
        permits = [await soon(other.acquire()) for _ in range(2)]
        await line.join("out", via=other)
        await evict(one, "out")
        await line.refused("out", Evicted)
        await one.set_limit(None)
        assert (await other.inspect()).limit == 1
        await release(*permits)

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_a_holder_elsewhere_is_evicted(self, scene: Scene) -> None:
        one, other = _two(scene)
        task = await Line(other).join("out", hold=60)
        await evict(one, "out")
        with pytest.raises(PermitLost):
            await soon(task)
        await release(await soon(one.acquire()))

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_one_that_closes_leaves_the_others_alone(self, scene: Scene) -> None:
        one, other = _two(scene)
        permit = await other.acquire()
        line = Line(one)
        await line.join("here")
        await line.join("elsewhere", via=other)
        await scene.ags[0].aclose()
        await line.refused("here", Draining)
        assert not permit.lost
        await permit.release()
        assert await line.order() == ["elsewhere"]

    # --- declarations --------------------------------------------------------------------------

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_the_highest_revision_is_believed(self, scene: Scene) -> None:
        old = scene.ag(revision=1).guard("report", limit=1, max_wait=None)
        new = scene.ag(revision=2).guard("report", limit=2, max_wait=None)
        first = await old.acquire()
        line = Line(old)
        await line.join("waits")
        second = await soon(new.acquire())
        assert (await until(old, lambda seen: seen.limit == 2)).limit == 2
        await release(first, second)
        async with old:
            assert (await new.inspect()).limit == 2, "a lower revision changes nothing"
        await line.order()

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_of_one_revision_what_is_stored_stays(self, scene: Scene) -> None:
        one = scene.ag(revision=3).guard("report", limit=2)
        other = scene.ag(revision=3).guard("report", limit=5)
        async with one:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it may well say that they differ
                await release(await soon(other.acquire()))
                assert (await other.inspect()).limit == 2

    @pytest.mark.usefixtures("_shared")
    @in_a_loop
    async def test_an_override_stands_over_a_new_revision(self, scene: Scene) -> None:
        old = scene.ag(revision=1).guard("report", limit=1)
        new = scene.ag(revision=2).guard("report", limit=2)
        async with old:
            await old.set_limit(4)
            await release(await soon(new.acquire()))
            assert (await new.inspect()).limit == 4
            await old.set_limit(None)
            assert (await new.inspect()).limit == 2

    # --- processes -----------------------------------------------------------------------------

    def test_the_permits_of_a_process_that_was_killed_pass_on(self, scene: Scene) -> None:
        if self.frees_the_dead is None:
            pytest.skip("the backend says that no other process shares its permits")
        patience = self.frees_the_dead + SOON
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_hold_for_ever, args=(scene.make_ag, scene.namespace, there))
        process.start()
        assert here.poll(30), "the other process holds a permit"
        token = here.recv()

        async def take_over() -> None:
            guard = scene.guard()
            waiting = asyncio.create_task(guard.acquire())
            await until(guard, lambda seen: (seen.in_use, seen.waiting) == (1, 1))
            process.kill()
            permit = await asyncio.wait_for(waiting, patience)
            assert permit.token > token
            await permit.release()
            await scene.end()

        asyncio.run(take_over())
        process.join()


def _two(scene: Scene, **options: object) -> tuple[Guard, Guard]:
    one, other = scene.ag(), scene.ag()
    return tuple(ag.guard("report", **{"max_wait": None, **options}) for ag in (one, other))  # type: ignore[return-value, arg-type]


def _hold_for_ever(make_ag: MakeAsyncGuard, namespace: str, there: Connection) -> None:
    async def hold() -> None:
        async with make_ag(namespace=namespace).guard("report", max_wait=None) as permit:
            there.send(permit.token)
            await asyncio.sleep(600)

    asyncio.run(hold())
