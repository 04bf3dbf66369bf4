"""What the tests of a backend share: guards of a namespace of their own, and what became of tickets."""

# ruff: noqa: S101

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar, final

import pytest

from asyncguard.clock import TICKS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from asyncguard.errors import Refused
    from asyncguard.events import Event
    from asyncguard.guard import Guard
    from asyncguard.hub import AsyncGuard
    from asyncguard.keys import Key
    from asyncguard.permit import Permit
    from asyncguard.statistics import Holder, Snapshot, Waiter

MakeAsyncGuard = Callable[..., "AsyncGuard"]
"""Makes an AsyncGuard on the backend in question, with the keywords `namespace` and `revision`."""

P = ParamSpec("P")
S = TypeVar("S", bound="Suite")
T = TypeVar("T")
E = TypeVar("E", bound="Refused")

HOLD = 0.02
"""Seconds that work takes: long beside a backend's answer, short beside anybody's patience."""
SOON = 5.0
"""Seconds within which what must happen has happened, on a machine that is busy too."""
_LONGEST = 20.0
"""Seconds that one test may take."""
_LOOK = 0.002
"""Seconds between two looks at a guard."""
_STORIES = {
    ("entered", "granted", "released"),
    ("entered", "granted", "lost"),
    ("entered", "refused"),
    ("entered", "withdrawn"),
}
"""What can happen to a ticket, from its entering to its only end."""


@final
class Scene:
    """AsyncGuards on one backend, in a namespace that no other test uses."""

    def __init__(self, make_ag: MakeAsyncGuard, *, shared: bool) -> None:
        self.make_ag = make_ag
        self._shared = shared
        self.namespace = f"conformance {uuid.uuid4().hex}"
        self.ags: list[AsyncGuard] = []
        self.events: list[tuple[int, Event]] = []
        """What happened, and by which AsyncGuard."""

    def ag(self, *, revision: int = 0) -> AsyncGuard:
        """Make another AsyncGuard."""
        ag = self.make_ag(namespace=self.namespace, revision=revision)
        number = len(self.ags)
        ag.observe(lambda event: self.events.append((number, event)))
        self.ags.append(ag)
        return ag

    def guard(self, **options: Any) -> Guard:
        """Declare a guard on the first AsyncGuard; unless said otherwise, one may wait for ever."""
        ag = self.ags[0] if self.ags else self.ag()
        return ag.guard("report", **{"max_wait": None, **options})

    @property
    def lease(self) -> float:
        """Seconds for which the backend believes in a client unheard; 0: it sees who is alive."""
        return self.ags[0].open().lease / TICKS

    async def end(self) -> None:
        """Check that nothing is left behind, and close all.

        Raises:
            AssertionError: something is; or something happened that can't.
        """
        for ag in self.ags:
            for guard in ag.guards.values():
                picture = await until(guard, lambda seen: not seen.holders and not seen.queue)
                assert (picture.in_use, picture.waiting) == (0, 0)
        for ag in self.ags:
            await ag.aclose()
        self._check_tickets()
        self._check_tokens()

    def _check_tickets(self) -> None:
        stories: dict[tuple[int, str], list[str]] = defaultdict(list)
        for number, event in self.events:
            stories[number, event.ticket].append(event.kind)
        odd = {tuple(story) for story in stories.values()} - _STORIES
        assert not odd, "every ticket enters, and ends once"

    def _check_tokens(self) -> None:
        tokens: dict[Any, list[int]] = defaultdict(list)
        for number, event in self.events:
            if event.kind == "granted":
                tokens[None if self._shared else number, event.guard, event.key].append(event.token or 0)
        for several in tokens.values():
            assert len(several) == len(set(several)), "no token is given twice"


class Suite:
    """What a backend is like, as the class that puts it to the tests says."""

    shared: ClassVar[bool] = False
    """Whether AsyncGuards of one namespace share permits and queues, also those of other processes."""
    answers_at_once: ClassVar[bool] = True
    """Whether it can be asked without waiting for it, as `acquire_nowait` does."""
    frees_the_dead: ClassVar[float | None] = None
    """Seconds within which the permits of a process that was killed pass on; None where none are shared."""

    @pytest.fixture
    def scene(self, make_ag: MakeAsyncGuard) -> Scene:
        """Make what a test happens in."""
        return Scene(make_ag, shared=self.shared)


def in_a_loop(
    test: Callable[Concatenate[S, Scene, P], Coroutine[Any, Any, None]],
) -> Callable[..., None]:
    """Have a test run on a loop of its own, and leave nothing behind; none takes for ever."""

    def run(self: S, scene: Scene, *args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(_within_time(scene, test(self, scene, *args, **kwargs)))

    functools.update_wrapper(run, test)
    return run


async def _within_time(scene: Scene, happens: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(_LONGEST):
            await happens
            await scene.end()
    except TimeoutError as error:
        raise AssertionError("what must happen didn't: somebody would wait for ever") from error


async def until(guard: Guard, fits: Callable[[Snapshot], object], key: Key | None = None) -> Snapshot:
    """Look at a guard until it is as it must become.

    Raises:
        AssertionError: it doesn't become so.
    """
    end = time.monotonic() + SOON
    while True:
        picture = await guard.inspect(key)
        if fits(picture):
            return picture
        assert time.monotonic() < end, f"it must become otherwise: {picture}"
        await asyncio.sleep(_LOOK)


async def soon(awaitable: Awaitable[T]) -> T:
    """Wait for what must happen without further ado."""
    async with asyncio.timeout(SOON):  # and not `wait_for`, which may take another task for it
        return await awaitable


async def teach(guard: Guard, seconds: float = HOLD, *, times: int = 5, key: Key | None = None) -> None:
    """Have a guard see so many pieces of work, by default enough to estimate by."""
    for _ in range(times):
        async with guard.permit(key=key):
            await asyncio.sleep(seconds)


@final
class Line:
    """Tasks that come to a guard one after the other, and the order in which they were let in."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._granted: list[tuple[int, str]] = []

    async def join(
        self, name: str, *, hold: float = 0.0, via: Guard | None = None, key: Key | None = None, **ask: Any
    ) -> asyncio.Task[None]:
        """Have one more come, and wait until the backend knows of it."""
        guard = via or self._guard

        async def work() -> None:
            async with guard.permit(key=key, label=name, **ask) as permit:
                self._granted.append((permit.token, name))
                await asyncio.sleep(hold)

        task = self._tasks[name] = asyncio.create_task(work())
        await until(guard, lambda seen: task.done() or name in _labels(seen), key)
        return task

    async def refused(self, name: str, error: type[E]) -> E:
        """Wait for one to be refused."""
        with pytest.raises(error) as caught:
            await soon(self._tasks.pop(name))
        return caught.value

    async def cancel(self, name: str) -> None:
        """Cancel one, and wait for it to end."""
        task = self._tasks.pop(name)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)

    async def order(self) -> list[str]:
        """Wait for all to end, and tell in which order they were granted."""
        await soon(asyncio.gather(*self._tasks.values()))
        return [name for _, name in sorted(self._granted)]


def _labels(picture: Snapshot) -> set[str]:
    return {holder.label for holder in picture.holders} | {waiter.label for waiter in picture.queue}


async def evict(guard: Guard, label: str, key: Key | None = None) -> None:
    """Take out the ticket with a label."""
    picture = await guard.inspect(key)
    tickets: list[Holder | Waiter] = [*picture.holders, *picture.queue]
    (found,) = [ticket.id for ticket in tickets if ticket.label == label]
    assert await guard.evict(found)


async def release(*permits: Permit) -> None:
    """Release permits in this order."""
    for permit in permits:
        await permit.release()
