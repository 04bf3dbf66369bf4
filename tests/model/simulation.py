"""A guard's load on virtual time: tenants whose clients come, wait, hold, and leave, over one partition."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from asyncguard.admission import Admission, Partition
from asyncguard.clock import TICKS
from asyncguard.ticket import Declaration, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    from collections.abc import Callable

START = 1_000 * TICKS


@dataclass
class Tenant:
    """On whose behalf clients come, and what they do."""

    name: str
    between: float
    """Seconds between two arrivals, on average; arrivals are at random."""
    hold: Callable[[random.Random], float]
    """Draws for how many seconds a ticket holds."""
    share: float = 1.0
    permits: int = 1
    leaves_after: float | None = None
    """Seconds of waiting after which a client leaves."""
    priority: float = 0.0
    received: float = field(default=0.0, init=False)
    """Permit-seconds in the time that counts."""
    wanted: float = field(default=0.0, init=False)
    """Permit-seconds that it asked for in that time."""


def always(seconds: float) -> Callable[[random.Random], float]:
    return lambda _: seconds


def exponential(mean: float) -> Callable[[random.Random], float]:
    return lambda chance: chance.expovariate(1 / mean)


class Simulation:
    """One run; what happens in the first tenth of it doesn't count."""

    def __init__(self, rules: Rules, tenants: list[Tenant], seed: int = 1) -> None:
        self.chance = random.Random(seed)
        self.declaration = Declaration("guard", rules)
        self.partition = Partition(Admission(self.declaration, 0), None)
        self.tenants = tenants
        self.terms = [
            Terms(
                self.declaration,
                permits=tenant.permits,
                tenant=tenant.name,
                share=tenant.share,
                priority=round(tenant.priority * TICKS),
            )
            for tenant in tenants
        ]
        self.now = START
        self.counts_from = START
        self.ends = START
        self.entered = 0
        self.holds: dict[Ticket, float] = {}
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def run(self, seconds: float) -> None:
        self.ends = START + round(seconds * TICKS)
        self.counts_from = START + round(seconds * TICKS / 10)
        for index in range(len(self.tenants)):
            self._expect(index)
        while self._events and self._events[0][0] <= self.ends:
            self.now, _, happens, about = heappop(self._events)
            happens(*about)
        for ticket in list(self.partition.holders):
            self._account(ticket, self.ends)

    def at(self, tick: int, happens: Callable[..., None], *about: Any) -> None:
        self._sequence += 1
        heappush(self._events, (tick, self._sequence, happens, about))

    def entering(self, ticket: Ticket) -> None:
        """Hear of a ticket that enters next; for those who want to know more."""

    def granted(self, ticket: Ticket) -> None:
        """Hear of a ticket that was granted."""

    def _expect(self, index: int) -> None:
        wait = self.chance.expovariate(1 / self.tenants[index].between)
        self.at(self.now + round(wait * TICKS), self._enter, index)

    def _enter(self, index: int) -> None:
        self._expect(index)
        tenant = self.tenants[index]
        self.entered += 1
        ticket = new_ticket(self.entered, self.terms[index])
        hold = self.holds[ticket] = tenant.hold(self.chance)
        if self.now >= self.counts_from:
            tenant.wanted += hold * tenant.permits
        self.entering(ticket)
        self.partition.enter(ticket, self.now)
        if ticket.state == "held":
            self._begin(ticket)
        elif ticket.state == "waiting" and tenant.leaves_after is not None:
            self.at(self.now + round(tenant.leaves_after * TICKS), self._give_up, ticket)
        self._follow()

    def _give_up(self, ticket: Ticket) -> None:
        if ticket.state == "waiting":
            self.partition.leave(ticket, self.now, "timeout")
            self._follow()

    def _finish(self, ticket: Ticket) -> None:
        self._account(ticket, self.now)
        self.partition.leave(ticket, self.now)
        self._follow()

    def _begin(self, ticket: Ticket) -> None:
        self.granted(ticket)
        self.at(self.now + round(self.holds[ticket] * TICKS), self._finish, ticket)

    def _follow(self) -> None:
        changed, self.partition.admission.changed = self.partition.admission.changed, []
        for ticket in changed:
            if ticket.state == "held":
                self._begin(ticket)
            else:
                self.holds.pop(ticket, None)

    def _account(self, ticket: Ticket, until: int) -> None:
        self.holds.pop(ticket, None)
        since = max(ticket.granted, self.counts_from)
        index = self.terms.index(ticket.terms)
        self.tenants[index].received += max(0, until - since) / TICKS * ticket.terms.permits


def jain(values: list[float]) -> float:
    """Jain's index of fairness: 1 where all are equal, 1/n where one has all."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def max_min_fair(capacity: float, wanted: list[float], shares: list[float]) -> list[float]:
    """Share a capacity: nobody gets more than wanted, and the rest in proportion to the shares."""
    given = [0.0] * len(wanted)
    hungry = {*range(len(wanted))}
    while hungry:
        level = capacity / sum(shares[index] for index in hungry)
        content = {index for index in hungry if wanted[index] <= level * shares[index]}
        for index in content or hungry:
            given[index] = wanted[index] if content else level * shares[index]
            capacity -= given[index]
        hungry -= content or hungry
    return given


def fairness(tenants: list[Tenant]) -> float:
    """Jain's index of what tenants received, each measured by what it should have."""
    received = [tenant.received for tenant in tenants]
    wanted = [tenant.wanted for tenant in tenants]
    should = max_min_fair(sum(received), wanted, [tenant.share for tenant in tenants])
    return jain([got / due for got, due in zip(received, should, strict=True)])
