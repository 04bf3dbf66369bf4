"""The backend of one process: partitions in its memory, for all of its event loops and threads."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, final

from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.client import Client
from asyncguard.clock import TICKS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from asyncguard.admission import Setting
    from asyncguard.clock import Clock
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Declaration, Terms, Ticket


@final
class MemoryBackend:
    """A plain lock around the rules; whoever frees a permit wakes the client that it went to."""

    lease = 0
    assumptions = "memory: guards this process alone; every other process has permits of its own"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._now = clock.now
        self._start_anew()
        _live.add(self)

    def _start_anew(self) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.Lock()
        self._admissions: dict[str, Admission] = {}
        self._alarms: dict[Partition, tuple[int, asyncio.AbstractEventLoop]] = {}
        """When, and on whose loop, a partition is next advanced by time alone."""
        self._abandoned: deque[Ticket] = deque()

    def new_id(self) -> int:
        return 0

    # Most tickets find a permit free, and most leave with nobody waiting. For these, `enter` and
    # `leave` do in place what the rules would come to: a quarter of the time. And they take the lock
    # by hand, as `with` costs twice as much.

    def enter(self, ticket: Ticket, *, wait: bool = True) -> None:
        lock = self._lock
        lock.acquire()
        try:
            terms = ticket.terms
            admission: Admission = terms.place or self._open_for(terms)
            partition = admission.partitions.get(ticket.key) or admission.partition(ticket.key, self._now())
            if partition is None:
                admission.refuse_key(ticket)
                return
            now = self._now()
            partition.enter(ticket, now, wait)
            changed = admission.changed
            if changed:
                admission.changed = []
        finally:
            lock.release()
        if changed or partition.gated or self._abandoned:
            self._follow_up(partition, changed, now)

    def leave(self, ticket: Ticket, reason: Reason | None = None, *, finished: bool = True) -> None:
        state = ticket.state
        if state != "held" and state != "waiting":
            return
        partition = ticket.partition
        if partition.waiting or partition.gated or ticket.key is not None or not ticket.terms.plain:
            self._leave(ticket, partition, reason, finished=finished)
            return
        # No lock: a ticket is queued first, and then looks for room; this one makes room first, and
        # then looks whether anybody is queued. One of them sees the other.
        now = ticket.ended = self._now()
        ticket.state = "released"
        try:
            partition.holders.remove(ticket)
        except KeyError:  # another thread was faster
            return
        if finished:
            partition.fresh.append(now - ticket.granted)
        if partition.waiting or self._abandoned:
            self._advance(partition, now)

    def _leave(self, ticket: Ticket, partition: Partition, reason: Reason | None, *, finished: bool) -> None:
        lock = self._lock
        lock.acquire()
        try:
            now = self._now()
            partition.leave(ticket, now, reason, finished=finished)
            admission = partition.admission
            if ticket.key is not None:
                admission.retire(partition, now)
            changed = admission.changed
            if changed:
                admission.changed = []
        finally:
            lock.release()
        if changed or partition.gated or self._abandoned:
            self._follow_up(partition, changed, now)

    def _advance(self, partition: Partition, now: int) -> None:
        with self._lock:
            partition.advance(now)
            admission = partition.admission
            changed, admission.changed = admission.changed, []
        self._follow_up(partition, changed, now)

    def abandon(self, ticket: Ticket) -> None:
        self._abandoned.append(ticket)
        self._drain()

    def _drain(self) -> None:
        """Leave for the abandoned, unless the lock is taken: whoever holds it drains after it."""
        while self._abandoned and self._lock.acquire(blocking=False):
            self._lock.release()
            try:
                ticket = self._abandoned.popleft()
            except IndexError:
                return
            self.leave(ticket, finished=False)

    def held(self, guard: str) -> list[Ticket]:
        with self._lock:
            admission = self._admissions.get(guard)
            return [t for p in admission.partitions.values() for t in p.holders] if admission else []

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        with self._lock:
            now = self._now()
            admission = self._open(declaration)
            if key is None:
                return admission.inspect(now)
            return (admission.partitions.get(key) or Partition(admission, key)).inspect(now)

    async def configure(
        self, declaration: Declaration, key: str | None, *, limit: Setting = KEEP, paused: bool | None = None
    ) -> None:
        with self._lock:
            now = self._now()
            admission = self._open(declaration)
            if key is None:
                admission.configure(now, limit=limit, paused=paused)
            else:
                partition = admission.partitions.get(key) or Partition(admission, key)
                admission.partitions[key] = partition
                partition.configure(now, limit=limit, paused=paused)
                admission.retire(partition, now)
            changed, admission.changed = admission.changed, []
            partitions = list(admission.partitions.values())
        self._follow_up_all(partitions, changed, now)

    async def evict(self, declaration: Declaration, ticket_id: str) -> bool:
        with self._lock:
            now = self._now()
            admission = self._open(declaration)
            partitions = list(admission.partitions.values())
            found = [(p, t) for p in partitions if (t := p.find(ticket_id))]
            for partition, ticket in found:
                partition.evict(ticket, now)
            changed, admission.changed = admission.changed, []
        self._follow_up_all(partitions, changed, now)
        return bool(found)

    def redeclare(self, declaration: Declaration) -> None:
        with self._lock:
            now = self._now()
            admission = self._open(declaration)
            admission.redeclare(declaration.rules, now)
            changed, admission.changed = admission.changed, []
            partitions = list(admission.partitions.values())
        self._follow_up_all(partitions, changed, now)

    async def aclose(self) -> None:
        self._drain()

    def _open_for(self, terms: Terms) -> Admission:
        terms.place = admission = self._open(terms.guard)
        return admission

    def _open(self, declaration: Declaration) -> Admission:
        admission = self._admissions.get(declaration.name)
        if admission is None:
            admission = self._admissions[declaration.name] = Admission(declaration, self.clock.epoch)
        return admission

    # --- after a step, outside the lock --------------------------------------------------------

    def _follow_up(self, partition: Partition, changed: Iterable[Ticket], now: int) -> None:
        """Tell whom the step decided upon, and see to what only time will bring."""
        for ticket in changed:
            if not ticket.notify() and ticket.state == "held":
                self.leave(ticket, finished=False)
        if partition.gated:
            self._set_alarm(partition, now)
        if self._abandoned:
            self._drain()

    def _follow_up_all(self, partitions: Iterable[Partition], changed: Iterable[Ticket], now: int) -> None:
        for partition in partitions:
            self._follow_up(partition, changed, now)
            changed = ()

    def _set_alarm(self, partition: Partition, now: int) -> None:
        """Have the loop of the first waiting client advance the partition when it is due."""
        with self._lock:
            due = partition.due(now)
            if due is None:
                return
            pending = self._alarms.get(partition)
            if pending is not None and pending[0] <= due and not pending[1].is_closed():
                return
            first = partition.first_in_line()
            client = getattr(first, "client", None)
            if not isinstance(client, Client):
                return
            self._alarms[partition] = (due, client.loop)
        with contextlib.suppress(RuntimeError):  # a loop just closed: its tickets leave, and set another
            seconds = (due - now) / TICKS
            client.loop.call_soon_threadsafe(
                self.clock.call_later, client.loop, seconds, self._ring, partition, due
            )

    def _ring(self, partition: Partition, due: int) -> None:
        with self._lock:
            if self._alarms.get(partition, (None,))[0] == due:
                del self._alarms[partition]
        self._advance(partition, self._now())


_live: weakref.WeakSet[MemoryBackend] = weakref.WeakSet()


def _forget_the_parent() -> None:
    """Start anew in a forked child: the tasks that held and waited live on in the parent alone."""
    for backend in list(_live):
        backend._start_anew()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parent)
