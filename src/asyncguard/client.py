"""One AsyncGuard on one event loop: where its tickets wait, and until when."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, final

from asyncguard.clock import TICKS

if TYPE_CHECKING:
    import asyncio

    from asyncguard.clock import Clock, Timer
    from asyncguard.errors import Reason
    from asyncguard.permit import Permit

_FEW = 64
"""Permits that may lie about in a row after their wait, before they are cleared out."""


@final
class Client:
    """The waiting tickets of one event loop, in rows of equal patience."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self.loop = loop
        self._clock = clock
        self._rows: dict[int | None, Row] = {}

    def row(self, patience: int | None) -> Row:
        """Find the row of those that are prepared to wait for so many ticks; None: for ever."""
        row = self._rows.get(patience)
        if row is None:
            for idle in [patience for patience, row in self._rows.items() if not row.permits]:
                self._rows.pop(idle).end()
            row = self._rows[patience] = Row(self.loop, self._clock, patience)
        return row

    def close(self, reason: Reason) -> None:
        """End all waits of this loop for good: those to come need another client."""
        for row in list(self._rows.values()):
            row.live = False
        self.give_up(reason)

    def give_up(self, reason: Reason) -> None:
        """End all waits of this loop, from any thread."""
        for row in list(self._rows.values()):
            for permit in list(row.permits):
                permit.give_up(reason)


@final
class Row:
    """Permits whose tickets wait on one loop for equally long, so that the first gives up first."""

    __slots__ = ("_clock", "_gone", "_patience", "impatient", "live", "loop", "permits", "thread", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, patience: int | None) -> None:
        self.loop = loop
        self.thread = threading.get_ident()
        self._clock = clock
        self._patience = patience
        self.permits: deque[Permit] = deque()
        """In the order they came; those that wait no more have no future."""
        self._gone = 0
        self.live = True
        """Whether its client knows it, so that all who wait in it can be told to give up."""
        self.timer: Timer | None = None
        """Rings when the first gives up."""
        self.impatient = patience is not None
        """Whether anybody in it ever gives up."""

    def end(self) -> None:
        """Be known no more, with nobody in it: a timer would keep it, and what it was set for, in memory."""
        self.live = False
        if self.timer is not None:
            self.timer.cancel()

    def set_timer(self) -> None:
        """Have the first of the row give up in time."""
        if self._patience is not None:
            wait = self.permits[0].arrival + self._patience - self._clock.now()
            self.timer = self._clock.call_later(self.loop, max(0, wait) / TICKS, self._ring)

    def forget(self, permit: Permit) -> None:
        """Wait for a permit no more."""
        permit.future = None
        permits = self.permits
        if permits and permits[0] is permit:
            permits.popleft()
            return
        self._gone += 1
        if self._gone > _FEW and self._gone * 2 > len(permits):
            self.permits = deque(permit for permit in permits if permit.future is not None)
            self._gone = 0

    def _ring(self) -> None:
        self.timer = None
        now = self._clock.now()
        permits = self.permits
        while permits:
            permit = permits[0]
            if permit.future is not None:
                if self._patience is None or permit.arrival + self._patience > now:
                    self.set_timer()
                    return
                permit.resolve("timeout")
            else:
                self._gone -= 1
            permits.popleft()
