"""One AsyncGuard on one event loop: where its tickets wait, and until when."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import TYPE_CHECKING, final

from asyncguard.clock import TICKS

if TYPE_CHECKING:
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
        self.thread = threading.get_ident()
        self._clock = clock
        self._rows: dict[int | None, _Row] = {}

    def expect(self, permit: Permit) -> asyncio.Future[Reason | None]:
        """Make what a permit's ticket waits on: done when it has its answer, or a reason to give up."""
        future = permit.future = asyncio.Future(loop=self.loop)
        row = self._rows.get(permit.terms.patience)
        if row is None:
            row = self._rows[permit.terms.patience] = _Row()
        row.waiting += 1
        row.permits.append(permit)
        if row.timer is None:
            self._set_timer(row)
        return future

    def forget(self, permit: Permit) -> None:
        """Wait for it no more; nothing happens if it wasn't waited for."""
        if permit.future is None:
            return
        permit.future = None
        row = self._rows[permit.terms.patience]
        row.waiting -= 1
        if len(row.permits) > 2 * row.waiting + _FEW:
            row.permits = deque(permit for permit in row.permits if permit.future is not None)

    def give_up(self, reason: Reason) -> None:
        """End all waits of this loop."""
        for row in self._rows.values():
            for permit in row.permits:
                permit.wake(reason)

    def _set_timer(self, row: _Row) -> None:
        patience = row.permits[0].terms.patience
        if patience is not None:
            wait = row.permits[0].arrival + patience - self._clock.now()
            row.timer = self._clock.call_later(self.loop, max(0, wait) / TICKS, self._ring, row)

    def _ring(self, row: _Row) -> None:
        row.timer = None
        now = self._clock.now()
        permits = row.permits
        while permits:
            permit = permits[0]
            patience = permit.terms.patience
            if permit.future is not None and (patience is None or permit.arrival + patience > now):
                self._set_timer(row)
                return
            permits.popleft().wake("timeout")


@final
class _Row:
    """Permits whose tickets are prepared to wait for equally long: the first gives up first."""

    __slots__ = ("permits", "timer", "waiting")

    def __init__(self) -> None:
        self.permits: deque[Permit] = deque()
        """In the order they came; those that wait no more have no future."""
        self.waiting = 0
        self.timer: Timer | None = None
