"""To enter, to leave from the middle and to be granted take as long among many as among few."""

from __future__ import annotations

import gc
import random
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard.admission import Admission, Partition
from asyncguard.clock import TICKS
from asyncguard.ticket import Declaration, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncguard.ticket import Order

FEW, MANY = 1_000, 100_000
AT_MOST = 6.0
"""How many times as long among many as among few: memory that is not at hand counts, a scan would be 100."""
_ROUNDS, _BATCH = 15, 30


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Crowd:
    """A partition with so many waiting tickets, and how long it takes to do things there."""

    def __init__(self, order: Order, tenants: int, *, head_starts: bool) -> None:
        self.chance = random.Random(7)
        declaration = Declaration("guard", Rules(max_waiting=None, order=order))
        self.asks = [
            Terms(
                declaration,
                tenant=f"tenant {index % tenants}",
                priority=self.chance.randrange(TICKS) if head_starts else 0,
                patience=10**9 * TICKS,
            )
            for index in range(max(tenants, 100))
        ]
        self.partition = Partition(Admission(declaration), None)
        self.now = TICKS
        self.waiting: list[Ticket] = []
        self.held = self.enter()

    def enter(self) -> Ticket:
        self.now += 1_000
        ticket = new_ticket(self.now, self.chance.choice(self.asks))
        self.partition.enter(ticket, self.now)
        self.waiting.append(ticket)
        return ticket

    def leave(self) -> None:
        index = self.chance.randrange(len(self.waiting))
        self.waiting[index], self.waiting[-1] = self.waiting[-1], self.waiting[index]
        self.partition.leave(self.waiting.pop(), self.now)

    def grant(self) -> None:
        self.now += 1_000
        self.partition.leave(self.held, self.now)
        (self.held,) = self.partition.admission.changed
        self.partition.admission.changed.clear()

    def grow(self, size: int) -> None:
        while self.partition.waiting < size:
            self.enter()
        self.waiting = [ticket for ticket in self.waiting if ticket.state == "waiting"]

    def seconds_for(self, what: str) -> float:
        """Measure a batch, the best of several, with as many waiting before each."""
        size = self.partition.waiting
        best = float("inf")
        do: Any = getattr(self, what)
        for _ in range(_ROUNDS):
            started = perf_counter()
            for _ in range(_BATCH):
                do()
            best = min(best, perf_counter() - started)
            self.waiting = [ticket for ticket in self.waiting if ticket.state == "waiting"]
            while self.partition.waiting > size:
                self.leave()
            self.grow(size)
        return best / _BATCH


@pytest.mark.parametrize(
    ("order", "tenants", "head_starts"),
    [
        pytest.param("fifo", 1, False, id="in order of arrival"),
        pytest.param("lifo", 1, False, id="newest first"),
        pytest.param("fifo", 1, True, id="with head starts"),
        pytest.param("fair", 1_000, False, id="a thousand tenants"),
    ],
)
def test_each_step_takes_as_long_among_many(
    order: Order, tenants: int, head_starts: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    few = Crowd(order, tenants, head_starts=head_starts)
    many = Crowd(order, tenants, head_starts=head_starts)
    few.grow(FEW)
    many.grow(MANY)

    times = {what: (few.seconds_for(what), many.seconds_for(what)) for what in ("enter", "leave", "grant")}

    with capsys.disabled():
        shown = (f"{what} {a * 1e6:.1f} -> {b * 1e6:.1f} us" for what, (a, b) in times.items())
        print(f"\n{', '.join(shown)} ", end="")
    for what, (among_few, among_many) in times.items():
        assert among_many < AT_MOST * among_few, what
