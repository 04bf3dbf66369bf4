"""Time that a test moves by hand."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import threading
from typing import TYPE_CHECKING, Any, final

from asyncguard.checks import check_number
from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.clock import Timer

_MOMENT = 10 * TICKS_PER_MICROSECOND
"""What is due so shortly after happens too: tickets that enter at one time are a tick apart."""


@final
class ManualClock:
    """A clock that stands still until `advance`: `AsyncGuard(clock=ManualClock())`.

    Then `max_wait`, `max_hold` and `rate` count its seconds, and so do `permit.held` and what `inspect`
    shows. Time outside of the guards, such as that of `asyncio.sleep`, isn't its affair. One clock can
    serve any number of AsyncGuards, event loops and threads.
    """

    epoch = 1_735_689_600 * TICKS
    """It starts with the year 2025, so that tokens and dates are the same in each run."""

    def __init__(self) -> None:
        self._now = 0
        self._lock = threading.Lock()
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        """Heap of what is due when; of two that are due at once, the first that was set comes first."""
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now / TICKS:g} s>"

    def now(self) -> int:
        """Tell the ticks since the clock was made."""
        return self._now

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
    ) -> Timer:
        """Call `callback(*args)` on the loop once the clock was advanced by `seconds`."""
        timer = _ManualTimer(loop, callback, args)
        if math.isinf(seconds):
            return timer
        with self._lock:
            due = self._now + round(seconds * TICKS)
            if due > self._now:
                heapq.heappush(self._timers, (due, next(self._numbers), timer))
                return timer
        timer.ring_soon()
        return timer

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass, and have what is due by then happen, each at its time.

        What is due on the running event loop has happened when this returns. What is due on another
        one was handed to it, and happens when that loop comes to it. Tasks go on at their next turn:
        await them, or `asyncio.sleep(0)`. A task that hasn't run yet hasn't set its timers either.

        Raises:
            TypeError: `seconds` isn't a number.
            ValueError: it is negative or not finite: this clock never goes back, and never arrives there.
        """
        until = self._now + round(check_number("seconds", seconds, finite=True) * TICKS)
        while (timer := self._next_due(until)) is not None:
            timer.ring()

    def _next_due(self, until: int) -> _ManualTimer | None:
        """Move on to the next timer that is due, or else to the end."""
        with self._lock:
            due, timer = until, None
            if self._timers and self._timers[0][0] <= until + _MOMENT:
                due, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, due)
            return timer


@final
class _ManualTimer:
    def __init__(
        self, loop: asyncio.AbstractEventLoop, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self._loop = loop
        self._callback: Callable[..., object] | None = callback
        self._args = args

    def cancel(self) -> None:
        self._callback = None
        self._args = ()

    def ring(self) -> None:
        """Call back at once on the timer's own loop, and soon on any other."""
        if asyncio._get_running_loop() is self._loop:  # noqa: SLF001
            self._call()
        else:
            self.ring_soon()

    def ring_soon(self) -> None:
        with contextlib.suppress(RuntimeError):  # a closed loop: nobody waits there any more
            self._loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        callback, args = self._callback, self._args
        self.cancel()
        if callback is not None:
            callback(*args)
