"""Corners of admission, on the rules alone and on the memory backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asyncguard.admission import Admission, Partition
from asyncguard.backends.memory import MemoryBackend
from asyncguard.clock import TICKS
from asyncguard.ticket import EXCLUSIVE, Declaration, Rate, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from asyncguard.clock import Timer
    from asyncguard.ticket import Order

EPOCH = 1_000 * TICKS
LEASE = 30 * TICKS


class Bench:
    """A partition at a time that is told, and tickets for it."""

    def __init__(self, rules: Rules) -> None:
        self.declaration = Declaration("guard", rules)
        self.admission = Admission(self.declaration, EPOCH)
        self.now = 1_000 * TICKS
        self.ids = 0

    @property
    def partition(self) -> Partition:
        partition = self.admission.partition("key", self.now)
        assert partition is not None
        return partition

    def enter(self, **asks: Any) -> Ticket:
        self.ids += 1
        ticket = new_ticket(self.ids, Terms(self.declaration, **asks), "key")
        self.partition.enter(ticket, self.now)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        self.partition.leave(ticket, self.now)

    def have_seen_holds(self, seconds: int) -> None:
        """Have five tickets hold, so that there is an estimate."""
        for _ in range(5):
            ticket = self.enter()
            self.now += seconds * TICKS
            self.leave(ticket)

    def estimate(self) -> float | None:
        return self.partition.inspect(self.now).estimated_wait


# --- the rules alone ---------------------------------------------------------------------------


def test_who_is_next_does_not_depend_on_who_has_looked() -> None:
    """A fair grant costs what holds took until then, also where nobody has asked for their mean yet."""
    orders = []
    for looks in (False, True):
        bench = Bench(Rules(limit=1, order="fair"))
        bench.have_seen_holds(1)
        if looks:
            bench.partition.inspect(bench.now)
        for tenant in ("a", "a", "a", "b"):
            bench.enter(tenant=tenant)
        orders.append([waiter.tenant for waiter in bench.partition.inspect(bench.now).queue])
    assert orders[0] == orders[1] == ["b", "a", "a"]


def test_who_waits_for_all_permits_counts_once_whatever_the_limit_was_meanwhile() -> None:
    bench = Bench(Rules(limit=2))
    bench.have_seen_holds(10)
    held = bench.enter()
    everything = bench.enter(permits=EXCLUSIVE)
    bench.partition.configure(bench.now, limit=8)
    bench.leave(everything)
    bench.partition.configure(bench.now, limit=1)
    bench.enter()

    # ten seconds until the holder leaves, and ten for the one that waits
    assert bench.estimate() == pytest.approx(20, abs=0.01)
    bench.leave(held)


def test_a_queue_of_tickets_for_all_permits_is_seen_at_the_door() -> None:
    bench = Bench(Rules(limit=10))
    bench.have_seen_holds(10)
    bench.enter()
    for _ in range(4):
        bench.enter(permits=EXCLUSIVE)

    late = bench.enter(patience=20 * TICKS)

    assert (late.state, late.reason) == ("refused", "hopeless")
    assert late.outlook.wait == pytest.approx(41 * TICKS, rel=0.01)


def test_a_faster_pace_counts_from_now() -> None:
    bench = Bench(Rules(limit=2, rate=Rate(1, per=3600)))
    bench.enter()
    waiting = bench.enter()
    bench.admission.redeclare(Rules(limit=2, rate=Rate(1, per=1)), bench.now)
    bench.now += 2 * TICKS
    bench.partition.advance(bench.now)

    assert waiting.state == "held"


def test_an_enter_that_was_sent_twice_and_arrives_after_the_leave_is_refused() -> None:
    bench = Bench(Rules())
    ticket = bench.enter(lease=LEASE)
    bench.leave(ticket)
    again = new_ticket(ticket.id, ticket.terms, "key")

    bench.partition.enter(again, bench.now)

    assert (again.state, again.reason) == ("refused", "superseded")


def test_an_enter_that_arrives_again_after_the_ticket_was_lost_is_refused() -> None:
    bench = Bench(Rules())
    ticket = bench.enter(lease=LEASE)
    bench.now += LEASE
    again = new_ticket(ticket.id, ticket.terms, "key")

    bench.partition.enter(again, bench.now)

    assert ticket.state == "lost"
    assert (again.state, again.reason) == ("refused", "superseded")


def test_an_enter_that_arrives_again_after_the_eviction_is_refused() -> None:
    bench = Bench(Rules())
    bench.enter(lease=LEASE)
    ticket = bench.enter(lease=LEASE)
    bench.partition.evict(ticket, bench.now)
    again = new_ticket(ticket.id, ticket.terms, "key")

    bench.partition.enter(again, bench.now)

    assert again.state == "refused"


def test_a_tombstone_that_is_left_twice_does_not_keep_others() -> None:
    bench = Bench(Rules())
    terms = Terms(bench.declaration, lease=LEASE)
    first, second = new_ticket(101, terms, "key"), new_ticket(102, terms, "key")
    bench.leave(first)
    bench.now += LEASE
    bench.leave(second)
    bench.leave(first)
    bench.now += 2 * LEASE
    bench.admission.retire(bench.partition, bench.now)

    assert "key" not in bench.admission.partitions


def test_a_picture_taken_at_once_shows_no_negative_times() -> None:
    bench = Bench(Rules(limit=2))
    for _ in range(4):
        bench.enter()

    picture = bench.partition.inspect(bench.now)

    assert min(holder.held for holder in picture.holders) >= 0
    assert min(waiter.waited for waiter in picture.queue) >= 0


@pytest.mark.parametrize("order", ["fifo", "lifo", "fair"])
def test_the_order_changes_once_nobody_is_here(order: Order) -> None:
    bench = Bench(Rules(order="fair"))
    held, first, second = bench.enter(), bench.enter(), bench.enter()
    bench.admission.redeclare(Rules(order=order), bench.now)
    for ticket in (held, first, second):
        assert ticket.state == "held"
        bench.leave(ticket)

    held, first, second = bench.enter(), bench.enter(), bench.enter()
    bench.leave(held)

    assert (first if order != "lifo" else second).state == "held"


# --- in memory ---------------------------------------------------------------------------------


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.epoch = EPOCH
        self.time = 1_000 * TICKS

    def now(self) -> int:
        return self.time

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
    ) -> Timer:
        raise AssertionError("nobody waits on a loop here")


class Gone(Ticket):
    """A ticket whose client can't be told anything any more."""

    def notify(self, interrupts: bool = False) -> bool:
        return False


def ended(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run what has nothing to wait for."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_all_permits_come_back_if_the_limit_was_lowered_below_them_meanwhile() -> None:
    backend = MemoryBackend(ManualClock())
    declaration = Declaration("guard", Rules(limit=2))
    both = new_ticket(1, Terms(declaration, permits=2))
    backend.enter(both)
    ended(backend.configure(declaration, None, limit=1))
    backend.leave(both)
    ended(backend.configure(declaration, None, limit=None))

    tickets = [new_ticket(2, Terms(declaration)), new_ticket(3, Terms(declaration))]
    for ticket in tickets:
        backend.enter(ticket)

    assert [ticket.state for ticket in tickets] == ["held", "held"]


def test_keys_of_which_all_tickets_were_refused_are_forgotten() -> None:
    backend = MemoryBackend(ManualClock())
    declaration = Declaration("guard", Rules(max_keys=10))
    ended(backend.configure(declaration, None, paused=True))
    for index in range(20):
        ticket = new_ticket(index + 1, Terms(declaration, patience=0), f"key {index}")
        backend.enter(ticket)
        assert ticket.reason == "paused"


def test_a_thousand_tickets_whose_clients_are_gone_pass_the_permit_on() -> None:
    backend = MemoryBackend(ManualClock())
    terms = Terms(Declaration("guard", Rules(max_waiting=None)))
    held = new_ticket(1, terms)
    backend.enter(held)
    for index in range(1000):
        gone = Gone()
        gone.id, gone.terms, gone.key, gone.state = index + 2, terms, None, "new"
        backend.enter(gone)
    last = new_ticket(2000, terms)
    backend.enter(last)

    backend.leave(held)

    assert last.state == "held"
