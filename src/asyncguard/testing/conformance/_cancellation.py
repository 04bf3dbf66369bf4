"""Work is cancelled while it waits, runs or ends: nothing is left behind, and the next one gets in."""

# ruff: noqa: S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio
import gc

import pytest

from asyncguard.testing.conformance._scene import (
    Line,
    Scene,
    Suite,
    in_a_loop,
    release,
    soon,
    until,
)
from asyncguard.ticket import ALL

_TURNS = range(8)
"""After how many turns of the loop a task is cancelled: at each await that it comes to, and beyond."""


class Cancellation(Suite):
    """Every ticket ends once, wherever its task is cancelled."""

    @in_a_loop
    async def test_who_is_cancelled_while_it_waits_leaves_the_queue(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()
        line = Line(guard)
        for name in ("a", "b", "c"):
            await line.join(name)
        await line.cancel("b")
        picture = await until(guard, lambda seen: seen.waiting != 3)  # noqa: PLR2004
        assert [waiter.label for waiter in picture.queue] == ["a", "c"]
        await permit.release()
        assert await line.order() == ["a", "c"]

    @in_a_loop
    async def test_a_cancelled_head_lets_in_those_behind_it(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        permit = await guard.acquire()
        line = Line(guard)
        await line.join("all", permits=ALL)
        await line.join("one")
        await line.cancel("all")
        assert await line.order() == ["one"]
        await permit.release()

    @pytest.mark.parametrize("first", ["granted", "cancelled"])
    @in_a_loop
    async def test_one_granted_and_cancelled_at_once_passes_the_permit_on(
        self, scene: Scene, first: str
    ) -> None:
        guard = scene.guard()
        permit = await guard.acquire()
        head = asyncio.create_task(guard.acquire())
        await until(guard, lambda seen: seen.waiting == 1)
        line = Line(guard)
        await line.join("behind")
        if first == "cancelled":
            head.cancel()
            await permit.release()
        else:
            await permit.release()
            head.cancel()
        await asyncio.wait([head])
        if not head.cancelled():
            await release(head.result())
        assert await line.order() == ["behind"]

    @in_a_loop
    async def test_who_is_cancelled_at_work_passes_the_permit_on(self, scene: Scene) -> None:
        guard = scene.guard()
        line = Line(guard)
        await line.join("works", hold=60)
        await line.join("next")
        await line.cancel("works")
        assert await line.order() == ["works", "next"]

    @pytest.mark.parametrize("busy", [False, True])
    @in_a_loop
    async def test_cancelled_at_any_await_it_leaves_nothing_behind(self, scene: Scene, busy: bool) -> None:
        guard = scene.guard()

        async def work() -> None:
            async with guard:
                await asyncio.sleep(0)

        for turns in _TURNS:
            permit = await soon(guard.acquire()) if busy else None
            task = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            if permit is not None and turns % 2:
                await permit.release()
            task.cancel()
            await soon(asyncio.wait([task]))
            if permit is not None:
                await permit.release()
            await release(await soon(guard.acquire()))

    @in_a_loop
    async def test_cancelled_on_its_way_it_leaves_nothing_behind(self, scene: Scene) -> None:
        guard = scene.guard(limit=2)
        for number in range(20):
            task = asyncio.create_task(guard.acquire(permits=2))
            await asyncio.sleep(number / 5000)
            task.cancel()
            await soon(asyncio.wait([task]))
            if not task.cancelled():
                await release(task.result())
            await release(await soon(guard.acquire(permits=2)))

    @in_a_loop
    async def test_many_who_are_cancelled_hold_up_nobody(self, scene: Scene) -> None:
        guard = scene.guard(max_waiting=None)
        permit = await guard.acquire()
        tasks = [asyncio.create_task(guard.acquire()) for _ in range(30)]
        await until(guard, lambda seen: seen.waiting == len(tasks))
        line = Line(guard)
        await line.join("last")
        await permit.release()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await release(*(task.result() for task in tasks if not task.cancelled()))
        assert await line.order() == ["last"]

    @in_a_loop
    async def test_a_permit_that_is_dropped_passes_on(self, scene: Scene) -> None:
        guard = scene.guard()
        with pytest.warns(ResourceWarning, match="was dropped"):  # noqa: PT031
            permit = await guard.acquire()
            del permit
            gc.collect()
        await release(await soon(guard.acquire()))
