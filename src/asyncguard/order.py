"""The order in which waiting tickets are granted: one line, or tenants that take turns."""

from __future__ import annotations

import itertools
import math
from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Protocol, final

from asyncguard.sortedqueue import SortedQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asyncguard.ticket import Order, Ticket


GONE = -1
"""Score of a ticket that waits no more."""
_FEW = 32
"""Of these, how many may lie about."""
_SOME = 64
"""Tenants that are looked at for a ticket's place: what more there are is taken to be like these."""
_DEBTS = 64
"""How many tenants that have nothing here are remembered, beside two for each that waits."""


class Queue(Protocol):
    """The waiting tickets of a partition. Nothing here costs more than O(log n), `in_order` apart."""

    @property
    def line(self) -> deque[Ticket] | None:
        """The tickets, as long as they stand in order of arrival; among them some with score `GONE`."""
        ...

    def add(self, ticket: Ticket) -> None:
        """Give a ticket that has just arrived its score and its place."""

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out, from wherever it stands."""

    def first(self) -> Ticket:
        """The ticket that is granted next."""
        ...

    def surplus(self, newcomer: Ticket) -> Ticket:
        """Whom a full queue refuses, the newcomer being among the waiting already."""
        ...

    def ahead_of(self, ticket: Ticket) -> int:
        """About how many tickets will be granted before this one."""
        ...

    def in_order(self, cost: Callable[[Ticket], float]) -> Iterator[Ticket]:
        """All tickets in the order in which they will be granted, if nobody comes or leaves."""
        ...

    def granted(self, ticket: Ticket, cost: Callable[[Ticket], float]) -> None:
        """Account for a grant that is expected to cost so many permit-ticks."""

    def released(self, ticket: Ticket, cost: float) -> None:
        """Correct that to what it did cost."""


def queue_for(order: Order) -> Queue:
    """Make an empty queue."""
    return FairQueue() if order == "fair" else Line(newest_first=order == "lifo")


@final
class Line:
    """One line for all: the first is who came first, head starts deducted; or who came last.

    As long as all come without head start the line is in order by itself.
    """

    __slots__ = ("_gone", "_newest_first", "_sorted", "_tickets")

    def __init__(self, *, newest_first: bool) -> None:
        self._newest_first = newest_first
        self._tickets: deque[Ticket] = deque()
        """In order; those that wait no more lie about until they are met, or too many."""
        self._gone = 0
        self._sorted: SortedQueue[Ticket] | None = SortedQueue() if newest_first else None

    @property
    def line(self) -> deque[Ticket] | None:
        return self._tickets if self._sorted is None else None

    def add(self, ticket: Ticket) -> None:
        priority = ticket.terms.priority
        if self._sorted is None:
            if not priority:
                ticket.score = ticket.arrival
                self._tickets.append(ticket)
                return
            self._sorted = self._sort()
        elif not self._sorted and not priority and not self._newest_first:
            self._sorted = None
            self.add(ticket)
            return
        arrival = ticket.arrival
        ticket.score = score = -arrival if self._newest_first else arrival - priority
        self._sorted.add(score, arrival, ticket)

    def _sort(self) -> SortedQueue[Ticket]:
        tickets: SortedQueue[Ticket] = SortedQueue()
        for ticket in self._tickets:
            if ticket.score != GONE:
                tickets.add(ticket.score, ticket.arrival, ticket)
        self._tickets.clear()
        self._gone = 0
        return tickets

    def remove(self, ticket: Ticket) -> None:
        line = self._tickets
        if line and line[0] is ticket:
            line.popleft()
        elif self._sorted is not None:
            self._sorted.remove(ticket.score, ticket.arrival)
        elif line[-1] is ticket:
            line.pop()
        else:
            ticket.score = GONE
            self._gone += 1
            if self._gone > _FEW and self._gone * 2 > len(line):
                waiting = [ticket for ticket in line if ticket.score != GONE]
                line.clear()
                line.extend(waiting)
                self._gone = 0

    def first(self) -> Ticket:
        if self._sorted is not None:
            return self._sorted.first()
        line = self._tickets
        while line[0].score == GONE:
            line.popleft()
            self._gone -= 1
        return line[0]

    def surplus(self, newcomer: Ticket) -> Ticket:
        return self._sorted.last() if self._newest_first and self._sorted else newcomer

    def ahead_of(self, ticket: Ticket) -> int:
        if self._newest_first:
            return 0
        if self._sorted is not None:
            return self._sorted.rank(ticket.score, ticket.arrival)
        return len(self._tickets) - self._gone - 1

    def in_order(self, cost: Callable[[Ticket], float]) -> Iterator[Ticket]:
        del cost
        if self._sorted is not None:
            return iter(self._sorted)
        return (ticket for ticket in self._tickets if ticket.score != GONE)

    def granted(self, ticket: Ticket, cost: Callable[[Ticket], float]) -> None:
        pass

    def released(self, ticket: Ticket, cost: float) -> None:
        pass


@final
class _Tenant:
    """One tenant's waiting tickets, and what it has had so far."""

    __slots__ = ("advanced", "born", "debt", "holding", "line", "name", "share", "tag", "turn", "weight")

    def __init__(self, name: str, tag: float, born: int) -> None:
        self.name = name
        self.born = born
        """Arrival of its first ticket: no two tenants share it."""
        self.line: SortedQueue[Ticket] = SortedQueue()
        self.tag = tag
        """Permit-ticks received per share."""
        self.advanced = 0.0
        """How much of this was charged for holds that haven't ended."""
        self.share = 1.0
        self.holding = 0
        """How many of its tickets hold permits."""
        self.turn: tuple[float, int] | None = None
        """Its place among those that wait: (tag, arrival of its first in line)."""
        self.weight: tuple[float, int] | None = None
        """Its place among them by size: (tickets waiting per share, arrival of its last in line)."""
        self.debt: tuple[float, int] | None = None
        """Its place among those that have nothing here: (tag, born)."""


@final
class FairQueue:
    """Tenants take turns: next is the first in line of the tenant that had least per share.

    Start-time fair queueing with the charge taken at the grant and corrected at the release, so
    that waiting and leaving cost nothing. V is the most that a tenant had received, for holds that
    have ended, when it was granted; a tenant that becomes active starts at V or above, so that
    nobody saves up turns: docs/decisions/0007-fair-order.md.
    """

    __slots__ = ("_debts", "_tenants", "_turns", "_virtual", "_waiting", "_weights")

    def __init__(self) -> None:
        self._waiting = 0
        self._virtual = 0.0
        """V."""
        self._tenants: dict[str, _Tenant] = {}
        self._turns: SortedQueue[_Tenant] = SortedQueue()
        self._weights: SortedQueue[_Tenant] = SortedQueue()
        self._debts: SortedQueue[_Tenant] = SortedQueue()

    @property
    def line(self) -> deque[Ticket] | None:
        return None

    def add(self, ticket: Ticket) -> None:
        self._forgive()
        terms = ticket.terms
        tenant = self._tenants.get(terms.tenant)
        if tenant is None:
            tenant = _Tenant(terms.tenant, self._virtual, ticket.arrival)
            self._tenants[terms.tenant] = tenant
        elif not tenant.line and not tenant.holding:
            tenant.tag = max(tenant.tag, self._virtual)
        tenant.share = terms.share
        ticket.score = ticket.arrival - terms.priority
        tenant.line.add(ticket.score, ticket.arrival, ticket)
        self._waiting += 1
        self._place(tenant)

    def remove(self, ticket: Ticket) -> None:
        tenant = self._tenants[ticket.terms.tenant]
        tenant.line.remove(ticket.score, ticket.arrival)
        self._waiting -= 1
        self._place(tenant)

    def first(self) -> Ticket:
        return self._turns.first().line.first()

    def surplus(self, newcomer: Ticket) -> Ticket:
        del newcomer
        return self._weights.last().line.last()

    def ahead_of(self, ticket: Ticket) -> int:
        tenant = self._tenants[ticket.terms.tenant]
        rank = tenant.line.rank(ticket.score, ticket.arrival)
        turn = self._turns.rank(*tenant.turn) if tenant.turn else 0
        seen = ahead = 0
        for place, other in enumerate(itertools.islice(self._turns, _SOME)):
            if other is not tenant:
                # For each turn of this tenant another has as many as its share says.
                turns = math.ceil((rank + 1) * other.share / tenant.share) - (place > turn)
                ahead += min(len(other.line), turns)
                seen += 1
        others = ahead * (len(self._turns) - 1) / seen if seen else 0
        return min(round(others) + rank, self._waiting - 1)

    def in_order(self, cost: Callable[[Ticket], float]) -> Iterator[Ticket]:
        turns = []
        for tenant in self._turns:
            line = iter(tenant.line)
            first = next(line)
            turns.append((tenant.tag, first.arrival, first, line, tenant.share))
        heapify(turns)
        while turns:
            tag, _, ticket, line, share = heappop(turns)
            yield ticket
            following = next(line, None)
            if following is not None:
                heappush(turns, (tag + cost(ticket) / share, following.arrival, following, line, share))

    def granted(self, ticket: Ticket, cost: Callable[[Ticket], float]) -> None:
        tenant = self._tenants[ticket.terms.tenant]
        self._virtual = max(self._virtual, tenant.tag - tenant.advanced)
        ticket.charged = cost(ticket) / tenant.share
        tenant.tag += ticket.charged
        tenant.advanced += ticket.charged
        tenant.holding += 1
        self._place(tenant)
        self._forgive()

    def released(self, ticket: Ticket, cost: float) -> None:
        tenant = self._tenants[ticket.terms.tenant]
        tenant.tag += cost / tenant.share - ticket.charged
        tenant.holding -= 1
        tenant.advanced = tenant.advanced - ticket.charged if tenant.holding else 0.0
        self._place(tenant)
        self._forgive()

    def _place(self, tenant: _Tenant) -> None:
        """Put a tenant where it now stands among those that wait, or those that owe."""
        if tenant.turn and tenant.weight:
            self._turns.remove(*tenant.turn)
            self._weights.remove(*tenant.weight)
            tenant.turn = tenant.weight = None
        if tenant.debt:
            self._debts.remove(*tenant.debt)
            tenant.debt = None
        if tenant.line:
            tenant.turn = (tenant.tag, tenant.line.first().arrival)
            tenant.weight = (len(tenant.line) / tenant.share, tenant.line.last().arrival)
            self._turns.add(*tenant.turn, tenant)
            self._weights.add(*tenant.weight, tenant)
        elif not tenant.holding:
            tenant.debt = (tenant.tag, tenant.born)
            self._debts.add(*tenant.debt, tenant)

    def _forgive(self) -> None:
        """Forget the tenants that have nothing here and whose tag is behind V.

        Where they are many V goes after them: if all tenants came once it would else stand still, and
        whoever came again would wait behind all that are new.
        """
        many = _DEBTS + 2 * len(self._turns)
        while self._debts and (self._debts.first().tag <= self._virtual or len(self._debts) > many):
            tenant = self._debts.first()
            self._virtual = max(self._virtual, tenant.tag)
            self._debts.remove(tenant.tag, tenant.born)
            del self._tenants[tenant.name]
