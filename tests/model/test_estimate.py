"""The estimated wait is near the real one, and one that was wrong heals."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import pytest

from asyncguard.admission import Admission, Partition
from asyncguard.clock import TICKS
from asyncguard.simulation import Draw, Load, Tenant, always, exponential, simulate
from asyncguard.ticket import Declaration, Rules, Terms, Ticket, new_ticket

NEAR = 0.2


class Waits:
    """A run that compares what each ticket was told with how long it then waited."""

    def __init__(self, limit: int, tenants: list[Tenant], seconds: float) -> None:
        self.told: dict[Ticket, float] = {}
        self.pairs: list[tuple[str, float, float]] = []
        """Tenant, estimated wait, real wait."""
        load = Load(rules=Rules(limit=limit, max_waiting=None), tenants=tenants, seconds=seconds, seed=5)
        self.counts_from = round(seconds * load.warm_up * TICKS)
        simulate(load, hear=self._hear)

    def _hear(self, ticket: Ticket, now: int) -> None:
        if ticket.state == "waiting" and now > self.counts_from:
            shown = {waiter.id: waiter for waiter in ticket.partition.inspect(now).queue}
            estimate = shown[str(ticket.id)].estimated_wait
            assert estimate is not None
            self.told[ticket] = estimate
        elif ticket in self.told:
            wait = (ticket.granted - ticket.arrival) / TICKS
            self.pairs.append((ticket.terms.tenant, self.told.pop(ticket), wait))


class Steady(NamedTuple):
    """A steady load: its limit, how long holds are, and how long the head start of every second is."""

    limit: int
    hold: Draw
    head_start: float = 0.0


LOADS = {
    "M/M/1": Steady(1, exponential(1)),
    "M/D/1": Steady(1, always(1)),
    "M/M/4": Steady(4, exponential(1)),
    "M/D/4": Steady(4, always(1)),
    "M/M/16": Steady(16, exponential(1)),
    "M/D/16": Steady(16, always(1)),
    "M/D/1, head starts of one hold": Steady(1, always(1), head_start=1),
}


@pytest.mark.parametrize("name", LOADS)
def test_the_estimate_is_within_a_fifth_at_the_median(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    load = LOADS[name]
    between = 2 / (0.9 * load.limit)
    tenants = [
        Tenant("without", between, load.hold),
        Tenant("with", between, load.hold, priority=load.head_start),
    ]

    waits = Waits(load.limit, tenants, seconds=4000 / load.limit**0.8)

    real = median(wait for _, _, wait in waits.pairs)
    told = median(estimate for _, estimate, _ in waits.pairs)
    with capsys.disabled():
        print(f"\n{name}: told {told:.2f} s, waited {real:.2f} s: {told / real:.2f} ", end="")
    assert abs(told - real) <= NEAR * real


def test_who_has_a_head_start_is_told_right_and_who_has_none_too_little() -> None:
    tenants = [Tenant("without", 2 / 0.9, always(1)), Tenant("with", 2 / 0.9, always(1), priority=5)]

    waits = Waits(1, tenants, seconds=4000)

    for tenant, near in (("with", True), ("without", False)):
        real = median(wait for who, _, wait in waits.pairs if who == tenant)
        told = median(estimate for who, estimate, _ in waits.pairs if who == tenant)
        assert told <= real * (1 + NEAR)
        assert (told >= real * (1 - NEAR)) == near


@pytest.mark.parametrize("limit", [1, 4])
def test_a_wrong_estimate_heals(limit: int) -> None:
    """Holds were of 100 s, so nobody prepared to wait for 1 s is let in behind another: but the first is."""
    declaration = Declaration("guard", Rules(limit=limit))
    partition = Partition(Admission(declaration), None)
    terms = Terms(declaration, patience=TICKS)
    now, ids = TICKS, 0

    def enter() -> Ticket:
        nonlocal ids
        ids += 1
        ticket = new_ticket(ids, terms)
        partition.enter(ticket, now)
        return ticket

    for _ in range(40):
        held = enter()
        now += 100 * TICKS
        partition.leave(held, now)
    for _ in range(limit):
        enter()
    assert enter().state == "waiting"
    assert enter().state == "refused"

    refused = 0
    for _ in range(500 // limit):  # work of 0.01 s now, and more clients than can be served
        now += TICKS // 100
        for held in list(partition.holders):
            partition.leave(held, now)
        entered = [enter() for _ in range(2 * limit)]
        refused = sum(ticket.state == "refused" for ticket in entered)
        if not refused:
            break

    assert not refused, "clients are still turned away"
