"""What a partition knows of clients that it only hears from: leases, and tombstones."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, final

from asyncguard.sortedqueue import SortedQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncguard.errors import Reason
    from asyncguard.ticket import Ticket


@final
class Leases:
    """The tickets with a lease, by id and by its end, and the ids of those that ended.

    Their clients may send a request twice, or in the wrong order, or never again.
    """

    __slots__ = ("_expiries", "_tickets", "_tombstones")

    def __init__(self) -> None:
        self._tickets: dict[int | str, Ticket] = {}
        self._expiries: SortedQueue[Ticket] = SortedQueue()
        self._tombstones: OrderedDict[int | str, tuple[int, Reason]] = OrderedDict()
        """The tick until which an id may not enter and what it is told, oldest first."""

    def find(self, ticket: Ticket) -> Ticket | None:
        """Find the ticket that was entered with the same id."""
        return self._tickets.get(ticket.id)

    def add(self, ticket: Ticket, now: int) -> None:
        """Believe in a ticket for one lease."""
        self._tickets[ticket.id] = ticket
        ticket.expires = now + ticket.terms.lease
        self._expiries.add(ticket.expires, ticket.arrival, ticket)

    def renew(self, ticket: Ticket, now: int) -> None:
        """Believe in a ticket for one lease from now."""
        self._expiries.remove(ticket.expires, ticket.arrival)
        ticket.expires = now + ticket.terms.lease
        self._expiries.add(ticket.expires, ticket.arrival, ticket)

    def remove(self, ticket: Ticket) -> None:
        """Forget a ticket that ended."""
        del self._tickets[ticket.id]
        self._expiries.remove(ticket.expires, ticket.arrival)

    def bury(self, ticket: Ticket, now: int, reason: Reason = "superseded") -> None:
        """Have an id that ended refused from now on, for two leases, with this reason."""
        self._tombstones[ticket.id] = (now + 2 * ticket.terms.lease, reason)
        self._tombstones.move_to_end(ticket.id)

    def why_buried(self, ticket: Ticket) -> Reason | None:
        """Find out why a ticket is refused that has ended; None: it hasn't."""
        tombstone = self._tombstones.get(ticket.id)
        return None if tombstone is None else tombstone[1]

    def expired(self, now: int) -> Iterator[Ticket]:
        """The tickets whose lease is over, each until it is removed; tombstones are dropped by the way."""
        while self._expiries and self._expiries.first().expires <= now:
            yield self._expiries.first()
        while self._tombstones and next(iter(self._tombstones.values()))[0] <= now:
            self._tombstones.popitem(last=False)

    def next_expiry(self) -> int | None:
        """The tick at which the next lease ends."""
        return self._expiries.first().expires if self._expiries else None

    def last_tombstone(self) -> int:
        """The tick from which on no tombstone is left."""
        return max((until for until, _ in self._tombstones.values()), default=0)
