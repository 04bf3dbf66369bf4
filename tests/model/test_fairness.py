"""Fair order gives tenants what a max-min fair oracle would, in permit-seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asyncguard.admission import Admission, Partition
from asyncguard.clock import TICKS
from asyncguard.simulation import Load, Tenant, always, exponential, simulate
from asyncguard.ticket import Declaration, Rules, Terms, Ticket, new_ticket

FAIR = 0.99


def _load(limit: int, tenants: list[Tenant], seconds: float, max_waiting: int = 100) -> Load:
    rules = Rules(limit=limit, order="fair", max_waiting=max_waiting)
    return Load(rules=rules, tenants=tenants, seconds=seconds, seed=3)


def _crowd(count: int, between: float) -> list[Tenant]:
    return [Tenant(f"tenant {index}", between, exponential(1)) for index in range(count)]


def _flood(between: float = 0.02, hold: float = 1) -> Tenant:
    return Tenant("flood", between, exponential(hold))


LOADS = {
    "10 s against 0.1 s": _load(1, [Tenant("long", 5, always(10)), Tenant("short", 0.05, always(0.1))], 1500),
    "10 s against 1 s against 0.1 s, four permits": _load(
        4,
        [
            Tenant("long", 1, always(10)),
            Tenant("middle", 0.2, exponential(1)),
            Tenant("short", 0.02, always(0.1)),
        ],
        800,
    ),
    "shares of 1, 2 and 4": _load(
        1, [Tenant(f"{share}", 0.1, exponential(1), share=share) for share in (1, 2, 4)], 3000
    ),
    "shares of 1, 2 and 4, and unequal holds": _load(
        4,
        [
            Tenant("1", 0.2, exponential(5)),
            Tenant("2", 0.1, exponential(1), share=2),
            Tenant("4", 0.05, exponential(0.2), share=4),
        ],
        1000,
    ),
    "1, 2 and 4 permits": _load(
        4,
        [Tenant(f"{permits}", 0.1, exponential(1), permits=permits) for permits in (1, 2, 4)],
        3000,
    ),
    "one floods at 100 times the rate of the others": _load(1, [_flood(), *_crowd(4, 2)], 2000),
    "one floods, the others want less than their share": _load(1, [_flood(0.08), *_crowd(4, 8)], 2000),
    "one floods, twenty others, four permits": _load(4, [_flood(), *_crowd(20, 2)], 800),
    "one floods, three hundred others come now and then": _load(
        4, [_flood(0.05), *_crowd(300, 50)], 4000, max_waiting=1000
    ),
    "one whose clients leave after 2 s": _load(
        1, [Tenant("leaves", 0.2, exponential(1), leaves_after=2), *_crowd(3, 1)], 4000
    ),
    "one who floods and whose clients leave": _load(
        2, [Tenant("leaves", 0.02, always(1), leaves_after=1), *_crowd(3, 1)], 1500
    ),
    "a short queue": _load(
        1,
        [_flood(0.01, 0.1), Tenant("long", 1, always(10)), Tenant("middle", 1, exponential(1))],
        3000,
        max_waiting=10,
    ),
    "all of these": _load(
        4,
        [
            _flood(0.05, 0.1),
            Tenant("long", 1, always(10)),
            Tenant("two permits", 1, exponential(1), permits=2, share=2),
            Tenant("leaves", 0.2, exponential(1), leaves_after=3),
            Tenant("four shares", 0.5, exponential(0.5), share=4),
        ],
        3000,
    ),
}


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


def fairness(load: Load) -> float:
    """Jain's index of what tenants received, each measured by what it should have."""
    tenants = simulate(load).tenants
    received = [tenant.received for tenant in tenants]
    asked = [tenant.asked for tenant in tenants]
    should = max_min_fair(sum(received), asked, [tenant.share for tenant in load.tenants])
    return jain([got / due for got, due in zip(received, should, strict=True)])


@pytest.mark.parametrize("name", LOADS)
def test_tenants_get_what_is_fair(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    index = fairness(LOADS[name])
    with capsys.disabled():
        print(f"\n{name}: Jain {index:.4f} ", end="")
    assert index >= FAIR


def test_in_order_of_arrival_a_flood_takes_nearly_all() -> None:
    flood = LOADS["one floods at 100 times the rate of the others"]
    assert fairness(replace(flood, rules=Rules(max_waiting=100))) < 0.5


class Turns:
    """A fair partition with always the same tenants, each with clients that come again at once.

    Holds are expected to take so many seconds, whatever they take.
    """

    def __init__(self, limit: int, expected: float = 1) -> None:
        self.declaration = Declaration("guard", Rules(limit=limit, order="fair", max_waiting=None))
        self.partition = Partition(Admission(self.declaration), None)
        self.now = TICKS
        self.ids = 0
        self.received: dict[str, int] = {}
        self.partition.statistics.mean_hold = expected * TICKS

    def come(self, tenant: str, clients: int = 1) -> None:
        for _ in range(clients):
            self.ids += 1
            ticket = new_ticket(self.ids, Terms(self.declaration, tenant=tenant))
            self.partition.enter(ticket, self.now)

    def hold(self, seconds: float) -> None:
        """Have all who hold do so for as long, leave, and come again."""
        self.now += round(seconds * TICKS)
        for ticket in sorted(self.partition.holders, key=_by_grant):
            tenant = ticket.terms.tenant
            self.received[tenant] = self.received.get(tenant, 0) + self.now - ticket.granted
            self.partition.leave(ticket, self.now, finished=False)
            self.come(tenant)
        self.partition.admission.changed.clear()


def _by_grant(ticket: Ticket) -> int:
    return ticket.granted


def test_who_comes_later_is_served_even_if_holds_were_expected_to_be_far_longer() -> None:
    turns = Turns(limit=16, expected=10)  # as other keys' work takes
    turns.come("here", clients=40)
    for _ in range(20):
        turns.hold(0.1)
    turns.come("later", clients=40)
    turns.hold(0.1)
    turns.received.clear()

    for _ in range(20):
        turns.hold(0.1)

    assert jain([float(received) for received in turns.received.values()]) >= FAIR


def test_tenants_that_came_once_are_forgotten_and_do_not_starve_one_that_comes_again() -> None:
    turns = Turns(limit=1)
    turns.come("again")
    turns.hold(1)
    (held,) = turns.partition.holders
    turns.partition.leave(held, turns.now)
    again: list[Ticket] = []
    waits = 0
    for index in range(2_000):
        turns.come(f"once {index}")
        if len(turns.partition.inspect(turns.now).queue) < 4:
            continue
        if not again:
            ticket = new_ticket(-1 - index, Terms(turns.declaration, tenant="again"))
            turns.partition.enter(ticket, turns.now)
            again.append(ticket)
        waits = waits + 1 if again[0].state == "waiting" else 0
        assert waits < 200
        turns.now += TICKS
        (held,) = turns.partition.holders
        turns.partition.leave(held, turns.now)
        again = [ticket for ticket in again if ticket.state in {"waiting", "held"}]

    assert len(turns.partition.queue._tenants) < 200  # type: ignore[union-attr]
