"""The backend of one process: partitions in its memory, for all of its event loops and threads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, final

from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.backends.siblings import look_for_siblings
from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND
from asyncguard.order import GONE
from asyncguard.permit import Permit
from asyncguard.statistics import BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncguard.admission import Setting
    from asyncguard.clock import Clock
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Declaration, Ticket

_MANY = 256
"""Tickets that may end without the lock before they are counted."""


@final
class _InterruptsError(RuntimeError):
    """A finaliser or signal handler that interrupts a guard's step can leave a guard, and nothing else."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


@final
class MemoryBackend:
    """A plain lock around the rules; whoever frees a permit wakes the client that it went to."""

    lease = 0
    answers_at_once = True
    assumptions = (
        "memory: guards this process alone, and in it what uses this AsyncGuard; every other process, and "
        "every other AsyncGuard, has permits of its own"
    )

    def __init__(self, clock: Clock, namespace: str | None = None) -> None:
        """Be empty; with a namespace, warn where another process seems to be meant to share it."""
        self.clock = clock
        self._namespace = namespace
        self.place = object()
        self._now = clock.now
        self._ids = itertools.count(1)
        self._admissions: dict[str, Admission] = {}
        self._start_anew()
        _live.add(self)

    def _start_anew(self) -> None:
        """Forget all tickets, also in a forked child: the tasks that held and waited are the parent's."""
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.RLock()
        self._busy = False
        """Whether the lock is held; seen by whoever has it already: a finaliser or a signal handler."""
        self._abandoned: deque[Ticket] = deque()
        """Tickets to leave for, because their clients can't."""
        self._loops: dict[Partition, set[asyncio.AbstractEventLoop]] = {}
        """Whose loops wait for a partition that time alone may advance."""
        self._alarms: dict[tuple[Partition, asyncio.AbstractEventLoop], int] = {}
        """For which tick such a loop has set its alarm."""
        for admission in self._admissions.values():
            admission.start_anew()

    def new_id(self) -> int:
        return next(self._ids)

    # Most partitions are quick: one permit, plain tickets, order of arrival. For these, `enter` and
    # `leave` do in place what the rules come to, in a quarter of the time; a test holds the two
    # together. And where nobody waits they take no lock: a ticket comes in first, and then looks
    # whether it is alone and nobody waits; one makes room first, and then looks whether anybody
    # waits. Under the lock, one is queued first and then looks for room, and a permit is handed over
    # without the partition ever being empty. So of any two that meet, one sees the other and takes
    # the lock. What each does to shared state is one bytecode, atomic under the GIL; without a GIL no
    # partition is quick. (And the lock is taken by hand, as `with` costs twice as much; and no parameter
    # is for keywords alone, as Python 3.11 has no quick way to call what has such.)

    def enter(self, ticket: Ticket, wait: bool = True) -> None:
        # Only terms that are plain have a place.
        partition: Partition | None = ticket.terms.place if ticket.key is None else None
        if partition is not None and partition.quick:
            if partition.waiting:
                if wait and self._queue(ticket, partition):
                    return
            else:
                holders = partition.holders
                holders.add(ticket)
                if len(holders) == 1 and not partition.waiting and partition.quick:
                    clock = self._now
                    now = clock()
                    if now < partition.next_grant:
                        now = partition.next_grant
                    partition.next_grant = now + TICKS_PER_MICROSECOND
                    ticket.arrival = ticket.granted = now
                    ticket.partition = partition
                    ticket.state = "held"
                    return
                holders.discard(ticket)
        self._enter(ticket, wait=wait)

    def _queue(self, ticket: Ticket, partition: Partition) -> bool:
        """Queue behind others; False where the partition isn't quick any more, or nobody waits."""
        changed: Iterable[Ticket] = ()
        lock = self._lock
        lock.acquire()
        if self._busy:
            lock.release()
            raise _InterruptsError
        self._busy = True
        try:
            line = partition.line
            if line is None or not partition.waiting or not partition.quick:
                return False
            now = self._now()
            if now <= partition.last_arrival:
                now = partition.last_arrival + 1
            partition.last_arrival = ticket.arrival = ticket.score = now
            ticket.partition = partition
            ticket.state = "waiting"
            line.append(ticket)
            waiting = partition.waiting = partition.waiting + 1
            if not partition.holders:  # one that came in without the lock, and went out, was in the way
                partition.advance(now)
                changed = partition.admission.take_changed()
            statistics = partition.statistics
            if len(statistics.fresh) >= BATCH or not statistics.mean_hold:
                statistics.digest()
            patience = ticket.terms.patience
            if waiting <= partition.max_waiting and (
                patience is None or waiting * statistics.mean_hold < patience
            ):
                if not changed:
                    return True
            elif ticket.state == "waiting":
                partition.refuse_at_the_door(ticket, now)
        finally:
            self._busy = False
            lock.release()
            if self._abandoned:
                self._drain()
        self._follow_up(partition, changed)
        return True

    def _enter(self, ticket: Ticket, *, wait: bool) -> None:
        lock = self._lock
        lock.acquire()
        if self._busy:
            lock.release()
            raise _InterruptsError
        self._busy = True
        try:
            now = self._now()
            partition = self._partition_for(ticket, now)
            if partition is None:
                return
            partition.enter(ticket, now, wait)
            admission = partition.admission
            if not partition.holders:
                admission.retire(partition, now)
            changed = admission.take_changed()
        finally:
            self._busy = False
            lock.release()
            if self._abandoned:
                self._drain()
        if changed or partition.gated:
            self._follow_up(partition, changed)

    def leave(self, ticket: Ticket, reason: Reason | None = None, finished: bool = True) -> None:
        if ticket.state == "held" and finished and ticket.key is None:
            partition = ticket.partition
            if partition.quick:
                if partition.waiting:
                    self._hand_over(ticket, partition)
                    return
                clock = self._now
                now = ticket.ended = clock()
                ticket.state = "released"
                try:
                    partition.holders.remove(ticket)
                except KeyError:  # another thread was faster
                    return
                fresh = partition.statistics.fresh
                fresh.append(ticket)
                if partition.waiting or self._abandoned or len(fresh) > _MANY:
                    self._advance(partition, ticket, now)
                return
        if ticket.state in ("held", "waiting"):
            self._leave(ticket, ticket.partition, reason, finished=finished)

    def _hand_over(self, ticket: Ticket, partition: Partition) -> None:
        lock = self._lock
        lock.acquire()
        if self._busy:
            lock.release()
            self._abandoned.append(ticket)
            return
        self._busy = True
        try:
            line = partition.line
            if line is None or not partition.waiting or not partition.quick or ticket.state != "held":
                heir = None
            else:
                now = self._now()
                heir = line.popleft()
                if heir.score == GONE:
                    line.appendleft(heir)
                    heir = partition.first_in_line()
                    line.popleft()
                granted = partition.next_grant
                if granted < now:
                    granted = now
                partition.next_grant = granted + TICKS_PER_MICROSECOND
                heir.granted = granted
                heir.state = "held"
                holders = partition.holders
                holders.add(heir)
                partition.waiting -= 1
                holders.discard(ticket)
                ticket.state = "released"
                ticket.ended = now
                partition.statistics.fresh.append(ticket)
        finally:
            self._busy = False
            lock.release()
        if heir is None:
            self._leave(ticket, partition, None, finished=True)
            return
        if not heir.notify():
            self._abandoned.append(heir)
        if self._abandoned:
            self._drain()

    def _leave(self, ticket: Ticket, partition: Partition, reason: Reason | None, *, finished: bool) -> None:
        lock = self._lock
        lock.acquire()
        if self._busy:
            lock.release()
            self._abandoned.append(ticket)
            return
        self._busy = True
        try:
            now = self._now()
            partition.leave(ticket, now, reason, finished=finished)
            admission = partition.admission
            if not partition.holders:
                admission.retire(partition, now)
            changed = admission.take_changed()
        finally:
            self._busy = False
            lock.release()
            if self._abandoned:
                self._drain()
        if changed or partition.gated:
            self._follow_up(partition, changed)

    def _advance(self, partition: Partition, ticket: Ticket, now: int) -> None:
        try:
            with self._step():
                partition.advance(now)
                partition.statistics.digest()
                changed = partition.admission.take_changed()
        except _InterruptsError:
            self._abandoned.append(ticket)
            return
        self._follow_up(partition, changed)

    @contextlib.contextmanager
    def _step(self) -> Iterator[int]:
        """Hold the lock for one step of the rules, and see to what was abandoned meanwhile."""
        with self._lock:
            if self._busy:
                raise _InterruptsError
            self._busy = True
            try:
                yield self._now()
            finally:
                self._busy = False
        if self._abandoned:
            self._drain()

    def abandon(self, ticket: Ticket) -> None:
        self._abandoned.append(ticket)
        self._drain()

    def _drain(self) -> None:
        """Leave for the abandoned, unless the lock is taken: then whoever holds it drains after it."""
        while self._abandoned and self._lock.acquire(blocking=False):
            if self._busy:
                self._lock.release()
                return
            self._busy = True
            changed: list[Ticket] = []
            try:
                ticket = self._abandoned.popleft()
                partition = ticket.partition
                now = self._now()
                partition.leave(ticket, now, finished=False)
                partition.advance(now)
                partition.admission.retire(partition, now)
                changed = partition.admission.take_changed()
            except IndexError:  # another thread was faster
                return
            finally:
                self._busy = False
                self._lock.release()
            self._tell(changed, interrupts=True)

    # --- to look and to act --------------------------------------------------------------------

    def held(self, guard: str) -> list[Ticket]:
        with self._step():
            admission = self._admissions.get(guard)
            return [t for p in admission.partitions.values() for t in p.held()] if admission else []

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        with self._step() as now:
            admission = self._open(declaration)
            if key is None:
                return admission.inspect(now)
            return (admission.partitions.get(key) or Partition(admission, key)).inspect(now)

    async def configure(
        self, declaration: Declaration, key: str | None, *, limit: Setting = KEEP, paused: bool | None = None
    ) -> None:
        with self._step() as now:
            admission = self._open(declaration)
            if key is None:
                admission.configure(now, limit=limit, paused=paused)
                partitions = [*admission.partitions.values()]
            else:
                partition = admission.partitions.setdefault(key, Partition(admission, key))
                partition.configure(now, limit=limit, paused=paused)
                admission.retire(partition, now)
                partitions = [partition]
            changed = admission.take_changed()
        self._follow_up_all(partitions, changed)

    async def evict(self, declaration: Declaration, ticket_id: str) -> bool:
        with self._step() as now:
            admission = self._open(declaration)
            found = [(p, t) for p in admission.partitions.values() if (t := p.find(ticket_id))]
            for partition, ticket in found:
                partition.evict(ticket, now)
                admission.retire(partition, now)
            changed = admission.take_changed()
        self._follow_up_all([partition for partition, _ in found], changed)
        return bool(found)

    def redeclare(self, declaration: Declaration) -> None:
        with self._step() as now:
            admission = self._open(declaration)
            admission.redeclare(declaration.rules, now)
            changed = admission.take_changed()
        self._follow_up_all([*admission.partitions.values()], changed)

    async def aclose(self) -> None:
        self._drain()

    def _open(self, declaration: Declaration) -> Admission:
        admission = self._admissions.get(declaration.name)
        if admission is None:
            if self._namespace is not None and not self._admissions:  # at the first use
                look_for_siblings(self._namespace)
            admission = Admission(declaration, self.clock.epoch, self._ids)
            self._admissions[declaration.name] = admission
        return admission

    def _partition_for(self, ticket: Ticket, now: int) -> Partition | None:
        terms = ticket.terms
        admission = self._open(terms.guard)
        partition = admission.partition(ticket.key, now)
        if partition is None:
            admission.refuse_key(ticket)
        elif ticket.key is None and terms.plain:
            terms.place = partition
        return partition

    # --- after a step, outside the lock --------------------------------------------------------

    def _follow_up(self, partition: Partition, changed: Iterable[Ticket]) -> None:
        """Tell whom the step decided upon, and see to what only time will bring."""
        self._tell(changed)
        if partition in self._loops:
            self._set_alarms(partition)
        if self._abandoned:
            self._drain()

    def _follow_up_all(self, partitions: Iterable[Partition], changed: Iterable[Ticket]) -> None:
        self._tell(changed)
        for partition in partitions:
            if partition.gated and partition.waiting:
                self._adopt(partition)
            self._follow_up(partition, ())

    def _adopt(self, partition: Partition) -> None:
        """Find the loops of those that were waiting before time had a say."""
        with self._step():
            permits = [ticket for ticket in partition.in_order() if isinstance(ticket, Permit)]
            loops = self._loops.setdefault(partition, set())
            loops.update(permit.row.loop for permit in permits if permit.future is not None)

    def _tell(self, changed: Iterable[Ticket], *, interrupts: bool = False) -> None:
        for ticket in changed:
            if not ticket.notify(interrupts):
                self._abandoned.append(ticket)

    def waits(self, ticket: Ticket) -> None:
        if ticket.state == "waiting" and ticket.partition.gated and isinstance(ticket, Permit):
            with self._step():
                loops = self._loops.setdefault(ticket.partition, set())
                if ticket.row.loop not in loops:
                    loops.add(ticket.row.loop)
                    for alarm in [alarm for alarm in self._alarms if alarm[1].is_closed()]:
                        del self._alarms[alarm]
            self._set_alarms(ticket.partition)

    def _set_alarms(self, partition: Partition) -> None:
        """Have each loop that waits advance the partition when it is due: any of them may be closed."""
        with self._step() as now:
            partition.advance(now)  # it may have become due since the step that this follows
            changed = partition.admission.take_changed()
            due = partition.due(now)
            loops = self._loops.get(partition, set())
            if not partition.waiting:
                self._loops.pop(partition, None)
            elif due is not None:
                for loop in [loop for loop in loops if loop.is_closed()]:
                    loops.discard(loop)
                    self._alarms.pop((partition, loop), None)
                for loop in [loop for loop in loops if self._alarms.get((partition, loop), due + 1) > due]:
                    self._alarms[partition, loop] = due
                    if asyncio._get_running_loop() is loop:  # noqa: SLF001
                        self._set_alarm(partition, loop, due)
                        continue
                    with contextlib.suppress(RuntimeError):  # closed just now
                        loop.call_soon_threadsafe(self._set_alarm, partition, loop, due)
        self._tell(changed)

    def _set_alarm(self, partition: Partition, loop: asyncio.AbstractEventLoop, due: int) -> None:
        left = max(0, due - self._now()) / TICKS  # time may have passed on the way here
        self.clock.call_later(loop, left, self._ring, partition, loop, due)

    def _ring(self, partition: Partition, loop: asyncio.AbstractEventLoop, due: int) -> None:
        with self._step():
            if self._alarms.get((partition, loop)) == due:
                del self._alarms[partition, loop]
        self._follow_up(partition, ())


_live: weakref.WeakSet[MemoryBackend] = weakref.WeakSet()


def _forget_the_parent() -> None:
    for backend in list(_live):
        backend._start_anew()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parent)
