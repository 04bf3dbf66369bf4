"""The rule about what didn't happen: no permit is free for long while a ticket that could take it waits."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple, final

from asyncguard.testing.history._tickets import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncguard.testing.history._report import Violation
    from asyncguard.testing.history._tickets import History, Partition, Ticket

_What = Literal["ended", "continued", "set", "stopped", "killed", "left", "asking", "queued", "granted"]
_SEQUENCE: tuple[_What, ...] = (
    "killed",
    "ended",
    "left",
    "continued",
    "set",
    "stopped",
    "asking",
    "queued",
    "granted",
)
"""In which order things are seen that happened at one moment."""


@final
class _Moment(NamedTuple):
    at: int
    sequence: int
    what: _What
    client: str
    number: int


@final
class Idle:
    """Follows the permits of a partition, and how long each is free.

    A permit ages only while a ticket that could take it is known to wait. It doesn't in a pause, nor
    while a process is stopped that has tickets here, as that may have been granted it and can't say so.
    Of permits that are free the newest is taken first: so one that is never taken grows old, while those
    that are handed on don't. Once nobody waits, all are young again.
    """

    def __init__(
        self, history: History, partition: Partition, *, at_most: float, at_most_after_kill: float
    ) -> None:
        self.longest = self.longest_after_kill = 0
        self._partition = partition
        self._at_most = at_most
        self._at_most_after_kill = at_most_after_kill
        self._moments = sorted(_moments(history, partition))
        self._last = history.records[-1].at
        self._held = self._exclusive = 0
        self._capacity = 0
        self._paused = False
        self._waiting = 0
        self._sizes: Counter[int] = Counter()
        """Of tickets that may wait; 0 for those that want all permits."""
        self._open: Counter[str] = Counter()
        """Tickets of each process."""
        self._stopped: set[str] = set()
        self._clock = 0
        """What a permit would have aged that was free from the start."""
        self._killed = -1
        """What the clock showed when last a process was killed that had tickets."""
        self._free: list[int] = []
        """What the clock showed when each permit came free."""
        self._set(0)

    def violations(self) -> Iterator[Violation]:
        """Go through all that happened."""
        before, ages = 0, False
        for moment in self._moments:
            if ages:
                self._clock += moment.at - before
            before = moment.at
            self._take(moment)
            yield from self._count(moment.at)
            ages = self._ages()
        if ages:
            self._clock += self._last - before
        if self._free:
            yield from self._judge(self._free[0], self._last)

    def _take(self, moment: _Moment) -> None:
        what, client = moment.what, moment.client
        if what == "set":
            self._set(moment.at)
        elif what == "stopped":
            self._stopped.add(client)
        elif what == "continued":
            self._stopped.discard(client)
        elif what == "killed":
            if self._open[client]:
                self._killed = self._clock
        else:
            self._take_ticket(what, self._partition.tickets[moment.number])

    def _take_ticket(self, what: _What, ticket: Ticket) -> None:
        size = ticket.permits if isinstance(ticket.permits, int) else 0
        if what == "asking":
            self._open[ticket.client] += 1
            self._sizes[size] += 1
        elif what == "queued":
            self._waiting += 1
        elif what == "ended":
            self._open[ticket.client] -= 1
            self._held -= size
            self._exclusive -= not size
        else:
            self._sizes[size] -= 1
            if not self._sizes[size]:
                del self._sizes[size]
            self._waiting -= ticket.queued != FOREVER
            if what == "granted":
                self._held += size
                self._exclusive += not size
            else:
                self._open[ticket.client] -= 1

    def _set(self, at: int) -> None:
        settings = self._partition.settings
        self._capacity = min(settings.limits(at, at))
        self._paused = settings.may_be_paused(at)

    def _count(self, at: int) -> Iterator[Violation]:
        """Have as many free permits as there are."""
        free = 0 if self._exclusive else max(0, self._capacity - self._held)
        while len(self._free) > free:
            yield from self._judge(self._free.pop(), at)
        if self._free and not self._waiting:
            yield from self._judge(self._free[0], at)
            self._free.clear()
        while len(self._free) < free:
            self._free.append(self._clock)

    def _ages(self) -> bool:
        """Whether a ticket waits that could take a permit that is free, whichever comes first."""
        if not self._waiting or self._paused or not self._free:
            return False
        if any(self._open[client] for client in self._stopped):
            return False
        needed = self._capacity if 0 in self._sizes else max(self._sizes)
        return len(self._free) >= needed

    def _judge(self, since: int, at: int) -> Iterator[Violation]:
        age = self._clock - since
        if self._killed >= since:
            self.longest_after_kill = max(self.longest_after_kill, age)
            allowed, after = self._at_most_after_kill, ", with a process killed meanwhile"
        else:
            self.longest = max(self.longest, age)
            allowed, after = self._at_most, ""
        if age > allowed:
            message = f"a permit was free for {age / 1e9:.3f} s while a ticket waited{after}"
            yield self._partition.violation("idle", at, message)


def _moments(history: History, partition: Partition) -> Iterator[_Moment]:
    place = {what: number for number, what in enumerate(_SEQUENCE)}

    def moment(at: int, what: _What, client: str = "", number: int = -1) -> _Moment:
        return _Moment(at, place[what], what, client, number)

    for number, ticket in enumerate(partition.tickets):
        if ticket.ended <= ticket.asking:  # its process was killed as it asked, so it never waited
            continue
        yield moment(ticket.asking, "asking", ticket.client, number)
        if ticket.queued != FOREVER:
            yield moment(ticket.queued, "queued", ticket.client, number)
        if ticket.granted != FOREVER:
            yield moment(ticket.granted, "granted", ticket.client, number)
        if ticket.ended != FOREVER:
            what: _What = "left" if ticket.granted == FOREVER else "ended"
            yield moment(ticket.ended, what, ticket.client, number)
    clients = {ticket.client for ticket in partition.tickets}
    for client in clients:
        for since, until in history.stops.get(client, ()):
            yield moment(since, "stopped", client)
            if until != FOREVER:
                yield moment(until, "continued", client)
        if client in history.deaths:
            yield moment(history.deaths[client], "killed", client)
    for at in partition.settings.moments:
        yield moment(at, "set")
