"""Lines and fair queues against plain lists that are sorted anew each time."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncguard.order import FairQueue, Line, Queue
from asyncguard.ticket import Declaration, Rules, Terms, Ticket, new_ticket

DECLARATION = Declaration("guard", Rules())
TENANTS = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 1.0}
COST = 8.0
picks = st.integers(0, 1 << 16)


class Orders(RuleBasedStateMachine):
    """What comes into a queue, leaves it from anywhere, and is taken from its head."""

    queue: Queue

    def begin(self) -> None:
        self.arrival = 100
        self.waiting: list[Ticket] = []

    def add(self, **asks: Any) -> None:
        self.arrival += 1
        ticket = new_ticket(self.arrival, Terms(DECLARATION, **asks))
        ticket.arrival = self.arrival
        self.queue.add(ticket)
        self.waiting.append(ticket)
        assert 0 <= self.queue.ahead_of(ticket) < len(self.waiting)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        ticket = self.waiting.pop(pick % len(self.waiting))
        self.queue.remove(ticket)


class Lines(Orders):
    """A line, newest first or not, with head starts or without."""

    @initialize(newest_first=st.sampled_from([False, False, True]))
    def begin_line(self, newest_first: bool) -> None:
        self.begin()
        self.newest_first = newest_first
        self.queue = Line(newest_first=newest_first)

    @rule(priority=st.sampled_from([0, 0, 0, 2, 7]), count=st.sampled_from([1, 1, 60]))
    def come(self, priority: int, count: int) -> None:
        for _ in range(count):
            self.add(priority=priority)

    @precondition(lambda self: self.waiting)
    @rule(count=st.sampled_from([1, 1, 50]))
    def grant(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            first = self.queue.first()
            assert first is self.expected()[0]
            self.queue.remove(first)
            self.waiting.remove(first)

    @precondition(lambda self: len(self.waiting) > 3)
    @rule(every=st.sampled_from([2, 3]))
    def many_leave(self, every: int) -> None:
        for ticket in self.waiting[::every]:
            self.queue.remove(ticket)
            self.waiting.remove(ticket)

    def expected(self) -> list[Ticket]:
        if self.newest_first:
            return sorted(self.waiting, key=lambda ticket: -ticket.arrival)
        return sorted(self.waiting, key=lambda t: (t.arrival - t.terms.priority, t.arrival))

    @invariant()
    def it_is_in_order(self) -> None:
        expected = self.expected()
        assert [*self.queue.in_order(lambda _: COST)] == expected
        if expected:
            newcomer = max(expected, key=lambda ticket: ticket.arrival)
            assert self.queue.first() is expected[0]
            assert self.queue.surplus(newcomer) is (expected[-1] if self.newest_first else newcomer)
            assert self.queue.ahead_of(newcomer) == expected.index(newcomer)


class FairQueues(Orders):
    """Tenants with shares, whose tags are kept here as design and decision record say, by hand."""

    @initialize()
    def begin_fair(self) -> None:
        self.begin()
        self.queue = FairQueue()
        self.tags: dict[str, float] = {}
        self.charges: dict[str, list[float]] = {tenant: [] for tenant in TENANTS}
        self.held: list[Ticket] = []
        self.level = 0.0

    @rule(tenant=st.sampled_from([*TENANTS]), priority=st.sampled_from([0, 0, 3]))
    def come(self, tenant: str, priority: int) -> None:
        here = [ticket.terms.tenant for ticket in self.waiting + self.held]
        if tenant not in here:
            self.tags[tenant] = max(self.tags.get(tenant, 0.0), self.level)
        self.add(tenant=tenant, share=TENANTS[tenant], priority=priority)

    @precondition(lambda self: self.waiting)
    @rule()
    def grant(self) -> None:
        first = self.queue.first()
        assert first is self.expected()
        self.queue.remove(first)
        self.waiting.remove(first)
        self.queue.granted(first, lambda _: COST)
        tenant, charge = first.terms.tenant, COST / first.terms.share
        self.level = max(self.level, self.tags[tenant] - sum(self.charges[tenant]))
        self.tags[tenant] += charge
        self.charges[tenant].append(charge)
        self.held.append(first)

    @precondition(lambda self: self.held)
    @rule(pick=picks, cost=st.sampled_from([0.0, 1.0, 8.0, 64.0]))
    def release(self, pick: int, cost: float) -> None:
        ticket = self.held.pop(pick % len(self.held))
        self.queue.released(ticket, cost)
        charge = self.charges[ticket.terms.tenant].pop()
        self.tags[ticket.terms.tenant] += cost / ticket.terms.share - charge

    def line_of(self, tenant: str) -> list[Ticket]:
        line = [ticket for ticket in self.waiting if ticket.terms.tenant == tenant]
        return sorted(line, key=lambda ticket: (ticket.arrival - ticket.terms.priority, ticket.arrival))

    def expected(self) -> Ticket:
        firsts = [self.line_of(tenant)[0] for tenant in TENANTS if self.line_of(tenant)]
        return min(firsts, key=lambda first: (self.tags[first.terms.tenant], first.arrival))

    @invariant()
    def the_first_is_of_the_tenant_that_had_least(self) -> None:
        order = [*self.queue.in_order(lambda _: COST)]
        assert sorted(ticket.arrival for ticket in order) == sorted(ticket.arrival for ticket in self.waiting)
        if self.waiting:
            assert order[0] is self.queue.first() is self.expected()

    @invariant()
    def a_full_queue_refuses_the_last_of_the_largest(self) -> None:
        if self.waiting:
            surplus = self.queue.surplus(self.waiting[-1])
            sizes = {tenant: len(self.line_of(tenant)) / share for tenant, share in TENANTS.items()}
            assert sizes[surplus.terms.tenant] == max(sizes.values())
            assert surplus is self.line_of(surplus.terms.tenant)[-1]


@given(
    tenants=st.lists(st.sampled_from([*TENANTS]), min_size=1, max_size=12),
    cost=st.sampled_from([0.0, COST]),
)
def test_the_order_that_a_picture_shows_is_the_order_of_grants(tenants: list[str], cost: float) -> None:
    queue = FairQueue()
    for arrival, tenant in enumerate(tenants, start=1):
        ticket = new_ticket(arrival, Terms(DECLARATION, tenant=tenant, share=TENANTS[tenant]))
        ticket.arrival = arrival
        queue.add(ticket)
    shown = [*queue.in_order(lambda _: cost)]
    granted = []
    for _ in tenants:
        first = queue.first()
        queue.remove(first)
        queue.granted(first, lambda _: cost)
        queue.released(first, cost)
        granted.append(first)

    assert shown == granted


TestLines = Lines.TestCase
TestLines.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFairQueues = FairQueues.TestCase
TestFairQueues.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
