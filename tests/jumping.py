"""An event loop whose time jumps to the next timer, and the clock that AsyncGuard reads from it."""

from __future__ import annotations

import asyncio
import math
import selectors
from typing import TYPE_CHECKING, Any

from asyncguard.clock import TICKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.clock import Timer

_LONGEST_WAIT = 10.0
"""Real seconds for which something outside the loop, a thread say, may leave it without anything to do."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self._loop.jump()
            return []
        ready = super().select(_LONGEST_WAIT)
        if not ready:
            raise RuntimeError("nothing is due here and nothing will come: every task waits for another")
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop on which `asyncio.sleep(3600)` takes no real time: when nothing is ready, the next timer is."""

    def __init__(self) -> None:
        self.ticks = 3600 * TICKS
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.ticks / TICKS

    def jump(self) -> None:
        """Let the time pass until the next timer is due."""
        due: float = self._scheduled[0].when()  # type: ignore[attr-defined]
        self.ticks = max(self.ticks, math.ceil(due * TICKS))


class LoopClock:
    """A loop's time as AsyncGuard sees it."""

    epoch = 1_700_000_000 * TICKS

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.interrupt: Callable[[], object] | None = None
        """Called once, the next time that somebody asks for the time: as a garbage collection might be."""

    def now(self) -> int:
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt()
        if isinstance(self._loop, JumpingLoop):
            return self._loop.ticks
        return round(self._loop.time() * TICKS)

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
    ) -> Timer:
        return loop.call_later(seconds, callback, *args)
