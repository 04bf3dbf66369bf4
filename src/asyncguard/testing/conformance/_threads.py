"""One AsyncGuard under several event loops and threads at once."""

# ruff: noqa: S101 - tests assert, and their names say what

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, final

from asyncguard.testing.conformance._scene import HOLD, SOON, Line, Scene, Suite, in_a_loop, until
from asyncguard.ticket import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from asyncguard.guard import Guard
    from asyncguard.permit import Permit


class Threads(Suite):
    """A guard belongs to no loop and no thread."""

    @in_a_loop
    async def test_loops_share_a_guard_and_never_exceed_the_limit(self, scene: Scene) -> None:
        guard = scene.guard(limit=2, max_waiting=None)
        watch = Watch(2)
        await in_threads(*[lambda: _work(guard, watch, rounds=8)] * 3)
        assert len(watch.tokens) == 3 * 4 * 8
        assert len(set(watch.tokens)) == len(watch.tokens)
        assert (await guard.inspect()).granted == len(watch.tokens)

    @in_a_loop
    async def test_tokens_grow_over_loops(self, scene: Scene) -> None:
        guard = scene.guard(max_waiting=None)
        watch = Watch(1)
        await in_threads(*[lambda: _work(guard, watch, rounds=8)] * 3)
        assert watch.tokens == sorted(set(watch.tokens))

    @in_a_loop
    async def test_a_permit_is_handed_to_another_loop(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()

        async def wait() -> None:
            line = Line(guard)
            await line.join("elsewhere")
            assert await line.order() == ["elsewhere"]

        waiting = asyncio.create_task(in_threads(wait))
        await until(guard, lambda seen: seen.waiting == 1)
        await permit.release()
        await waiting

    @in_a_loop
    async def test_cancelled_waiters_in_several_loops_leave_nothing_behind(self, scene: Scene) -> None:
        guard = scene.guard(max_waiting=None)
        watch = Watch(1)

        async def impatient() -> None:
            chance = random.Random(7)  # noqa: S311
            for _ in range(20):
                task = asyncio.create_task(guard.acquire())
                await asyncio.sleep(chance.random() * HOLD / 4)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    await task.result().release()

        await in_threads(impatient, impatient, lambda: _work(guard, watch, rounds=6))
        assert len(watch.tokens) == 4 * 6

    @in_a_loop
    async def test_exclusive_and_shared_work_mix_over_loops(self, scene: Scene) -> None:
        guard = scene.guard(limit=3, max_waiting=None)
        watch = Watch(3)

        async def alone() -> None:
            for _ in range(8):
                async with guard.permit(permits=ALL) as permit:
                    with watch.inside(permit, 3):
                        await asyncio.sleep(0)

        await in_threads(alone, lambda: _work(guard, watch, rounds=6), lambda: _work(guard, watch, rounds=6))

    @in_a_loop
    async def test_a_loop_that_closed_with_waiters_holds_up_nobody(self, scene: Scene) -> None:
        guard = scene.guard()
        permit = await guard.acquire()

        async def wait_and_close() -> None:
            tasks = [asyncio.create_task(guard.acquire()) for _ in range(3)]
            await until(guard, lambda seen: seen.waiting == len(tasks))

        await in_threads(wait_and_close)
        line = Line(guard)
        await line.join("here")
        await permit.release()
        assert await line.order() == ["here"]


async def _work(guard: Guard, watch: Watch, *, rounds: int) -> None:
    async def work() -> None:
        for _ in range(rounds):
            async with guard as permit:
                with watch.inside(permit):
                    await asyncio.sleep(0)

    await asyncio.gather(*(work() for _ in range(4)))


async def in_threads(*works: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run each on a loop of its own in a thread of its own, and have the first error told here."""

    def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(asyncio.wait_for(work(), 2 * SOON))

    executor = ThreadPoolExecutor(len(works))
    loop = asyncio.get_running_loop()
    try:
        await asyncio.gather(*(loop.run_in_executor(executor, run, work) for work in works))
    finally:
        executor.shutdown(wait=False)


@final
class Watch:
    """Counts the permits of those who are inside, and keeps the tokens in the order they came in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._inside = 0
        self.tokens: list[int] = []

    @contextlib.contextmanager
    def inside(self, permit: Permit, permits: int = 1) -> Iterator[None]:
        """Count one in while the block lasts."""
        with self._lock:
            self._inside += permits
            self.tokens.append(permit.token)
            assert self._inside <= self._limit, "no more are inside than may"
        try:
            yield
        finally:
            with self._lock:
                self._inside -= permits
