"""Time as AsyncGuard sees it: ticks to compare, and timers; a parameter everywhere, so never patched."""

from __future__ import annotations

import contextvars
import time
from typing import TYPE_CHECKING, Any, Protocol, final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

TICKS = 1_000_000_000
"""Ticks per second: times are integers of nanoseconds on a clock that never goes back."""
TICKS_PER_MICROSECOND = 1_000


class Timer(Protocol):
    """A callback that is due."""

    def cancel(self) -> None:
        """Call it off; nothing happens if it has run."""


class Clock(Protocol):
    """What tells the time and rings when it has passed."""

    epoch: int
    """Ticks to add to `now` for those since 1970 in UTC."""

    def now(self) -> int:
        """Tell the ticks of this moment."""
        ...

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
    ) -> Timer:
        """Call `callback(*args)` on the loop once `seconds` have passed."""
        ...


@final
class SystemClock:
    """The host's monotonic clock."""

    def __init__(self) -> None:
        self.now = time.monotonic_ns
        self.epoch = time.time_ns() - time.monotonic_ns()

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
    ) -> Timer:
        """Call on the loop's own timer, which keeps nothing of the request alive that it was set in."""
        return loop.call_later(seconds, callback, *args, context=contextvars.Context())


@final
class ClockElsewhere:
    """A clock of this host, in a year that others have in common: `epoch` is set once they have told it."""

    def __init__(self, clock: Clock) -> None:
        self.now = clock.now
        self.epoch = clock.epoch
        self._clock = clock

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
    ) -> Timer:
        """Call as the clock itself does."""
        return self._clock.call_later(loop, seconds, callback, *args)
