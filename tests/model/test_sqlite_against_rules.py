"""The rules in SQL decide as `asyncguard.admission` does: each step is taken by both, and all is compared."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import sqlite3
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, invariant, precondition, rule
from leaving import LIVE, Leaving, picks

import asyncguard.admission
from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.backends.sqlite_store import BITS, Store, StoreBusy
from asyncguard.clock import TICKS
from asyncguard.order import FairQueue
from asyncguard.statistics import Statistics, percentiles
from asyncguard.ticket import EXCLUSIVE, Declaration, Rate, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asyncguard.admission import Setting
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot

LONG = bool(os.environ.get("ASYNCGUARD_TEST_LONG"))
UNIT = TICKS // 1000
EPOCH = 1_000 * TICKS
ASKS: list[dict[str, Any]] = [
    {},
    {},
    {"patience": 4 * UNIT},
    {"patience": 3 * UNIT, "within": 5 * UNIT, "tenant": "a"},
    {"patience": 0},
    {"permits": 2},
    {"permits": EXCLUSIVE, "tenant": "a"},
    {"permits": 2, "priority": 3 * UNIT, "tenant": "b", "patience": 6 * UNIT},
    {"priority": 2 * UNIT, "tenant": "a", "share": 2.0},
    {"tenant": "b", "share": 0.3},
    {"tenant": "c", "patience": 2 * UNIT},
]
rules = st.builds(
    Rules,
    limit=st.sampled_from([1, 1, 2, 3]),
    max_waiting=st.sampled_from([None, 0, 1, 3, 100]),
    order=st.sampled_from(["fifo", "fifo", "lifo", "fair", "fair"]),
    rate=st.sampled_from([None, None, Rate(1, per=0.002), Rate(2, per=0.01, burst=3)]),
    max_keys=st.sampled_from([2, 3]),
    revision=st.sampled_from([0, 0, 1, 2]),
)
asks = st.sampled_from(range(len(ASKS)))
keys = st.sampled_from([None, None, None, "a", "b", "c", "d"])
guards = st.sampled_from([0, 0, 0, 1])


@pytest.fixture(autouse=True, scope="module")
def _without_short_cuts() -> Iterator[None]:
    """Have the rules take no quick paths, and count holds at once: both are for the memory backend's speed."""
    released = Statistics.released

    def count_at_once(self: Statistics, ticket: Ticket, *, finished: bool) -> None:
        released(self, ticket, finished=finished)
        self.digest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncguard.admission, "_HAS_GIL", False)
        patch.setattr(Statistics, "released", count_at_once)
        yield


def by_key(picture: Snapshot) -> Snapshot:
    """Put what is pictured of several keys in the keys' order: partitions have none."""
    return dataclasses.replace(
        picture,
        holders=tuple(sorted(picture.holders, key=lambda one: one.key or "")),
        queue=tuple(sorted(picture.queue, key=lambda one: one.key or "")),
    )


def register(store: Store, number: int, owner: str) -> int:
    store.register(number, owner, (number, 0), id)
    return number


class SqlAgainstRules(Leaving):
    """Two guards in one file, and two clients; time stands until it is moved."""

    @initialize(one=rules, other=rules)
    def begin(self, one: Rules, other: Rules) -> None:
        self.now = 5 * TICKS
        self.store = Store(":memory:", epoch=EPOCH)
        self.clients = [register(self.store, 1, "one:1"), register(self.store, 2, "other:2")]
        self.declarer = register(self.store, 3, "third:3")
        """Who lives on, or what it declared might not stand."""
        self.admissions = [
            Admission(Declaration("one", one), EPOCH),
            Admission(Declaration("other", other), EPOCH),
        ]
        self.numbers = [
            self.store.declare(Declaration(a.name, a.rules), self.now, self.declarer << BITS)[0]
            for a in self.admissions
        ]
        self.pairs: list[tuple[Ticket, Ticket]] = []
        self.ids = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def step(self) -> int:
        self.ids += 1
        return self.clients[0] << BITS | self.ids

    # --- what happens --------------------------------------------------------------------------

    @rule(
        guard=guards,
        ask=asks,
        key=keys,
        who=st.sampled_from([0, 0, 1]),
        wait=st.sampled_from([True, True, True, False]),
    )
    def enter(self, guard: int, ask: int, key: str | None, who: int, wait: bool) -> None:
        admission = self.admissions[guard]
        self.ids += 1
        ticket_id = self.clients[who] << BITS | self.ids
        declaration = Declaration(admission.name, admission.rules)
        pair = [
            new_ticket(ticket_id, Terms(declaration, "one:1" if who == 0 else "other:2", **ASKS[ask]), key)
            for _ in range(2)
        ]
        theirs, ours = pair
        self.pairs.append((theirs, ours))
        self.store.enter(theirs, self.numbers[guard], self.now, wait)
        partition = admission.partition(key, self.now)
        if partition is None:
            admission.refuse_key(ours)
        else:
            partition.enter(ours, self.now, wait)
            admission.retire(partition, self.now)
        self.told(ticket_id)

    @precondition(lambda self: self.pairs)
    @rule(pick=picks, wait=st.booleans())
    def enter_again(self, pick: int, wait: bool) -> None:
        theirs, ours = self.pairs[pick % len(self.pairs)]
        if ours.state not in {*LIVE, "refused"}:
            return
        again = new_ticket(theirs.id, theirs.terms, theirs.key)
        guard = [a.name for a in self.admissions].index(theirs.terms.guard.name)
        self.store.enter(again, self.numbers[guard], self.now, wait)
        assert again.state == ours.state

    @precondition(lambda self: self.in_state("held"))
    @rule(pick=picks, held=st.integers(0, 3))
    def finish(self, pick: int, held: int) -> None:
        self.now += held * UNIT
        holding = self.in_state("held")
        self.leave_as(holding[pick % len(holding)], True, None)

    def leave_as(self, pair: tuple[Ticket, Ticket], finished: bool, reason: Reason | None) -> None:
        theirs, ours = pair
        self.store.leave(theirs, self.now, reason, finished=finished)
        if ours.state in LIVE:
            self.leave_rules(ours, reason, finished=finished)
            if theirs.state == "withdrawn" and ours.state == "released":
                theirs.state, theirs.granted = "released", ours.granted  # by the way, which nobody will know
        self.told(theirs.id)

    def leave_rules(self, ours: Ticket, reason: Reason | None = None, *, finished: bool = True) -> None:
        partition = ours.partition
        partition.leave(ours, self.now, reason, finished=finished)
        partition.admission.retire(partition, self.now)

    @precondition(lambda self: self.in_state(*LIVE))
    @rule(pick=picks)
    def evict(self, pick: int) -> None:
        live = self.in_state(*LIVE)
        theirs, ours = live[pick % len(live)]
        partition = ours.partition
        step = self.step()
        self.store.evict(
            self.numbers[self.admissions.index(partition.admission)], int(theirs.id), self.now, step
        )
        partition.evict(ours, self.now)
        partition.admission.retire(partition, self.now)
        self.told(step)

    @precondition(lambda self: self.in_state(*LIVE))
    @rule(who=st.sampled_from([0, 1]))
    def bury(self, who: int) -> None:
        dead = self.clients[who]
        step = self.step()
        self.ids += 1
        self.clients[who] = register(self.store, 10 + self.ids, "one:1" if who == 0 else "other:2")
        self.store.bury(dead, self.now, step)
        of = sorted(
            (pair for pair in self.in_state(*LIVE) if int(pair[1].id) >> BITS == dead),
            key=lambda pair: (pair[1].state != "waiting", pair[1].id),
        )
        for _, ours in of:
            if ours.state in LIVE:
                self.leave_rules(ours, finished=False)
        self.pairs = [pair for pair in self.pairs if int(pair[1].id) >> BITS != dead]
        assert not self.store.connection.execute("SELECT 1 FROM ticket WHERE client = ?", (dead,)).fetchall()
        for admission in self.admissions:
            admission.changed = [one for one in admission.changed if int(one.id) >> BITS != dead]
        self.told(step)

    @rule(
        guard=guards,
        key=keys,
        limit=st.sampled_from([KEEP, KEEP, None, 1, 2, 3]),
        paused=st.sampled_from([None, True, False, False]),
    )
    def configure(self, guard: int, key: str | None, limit: Setting, paused: bool | None) -> None:
        step = self.step()
        self.store.configure(self.numbers[guard], key, self.now, step, limit=limit, paused=paused)
        admission = self.admissions[guard]
        if key is None:
            admission.configure(self.now, limit=limit, paused=paused)
        else:
            partition = admission.partitions.setdefault(key, Partition(admission, key))
            partition.configure(self.now, limit=limit, paused=paused)
            admission.retire(partition, self.now)
        self.told(step)

    @rule(guard=guards, declared=rules, force=st.booleans())
    def declare(self, guard: int, declared: Rules, force: bool) -> None:
        admission = self.admissions[guard]
        self.ids += 1
        step = self.declarer << BITS | self.ids
        _, standing = self.store.declare(Declaration(admission.name, declared), self.now, step, force=force)
        if force:
            if declared != admission.rules:
                admission.redeclare(declared, self.now)
        else:
            agrees = admission.declare(declared, self.now)
            assert agrees == (standing.revision != declared.revision or standing == declared)
        assert standing == admission.rules
        self.told(step)

    @rule(units=st.sampled_from([0.001, 0.5, 1, 1, 2, 50]))
    def time_passes(self, units: float) -> None:
        self.now += round(units * UNIT)
        step = self.step()
        for number, admission in zip(self.numbers, self.admissions, strict=True):
            for key, partition in [*admission.partitions.items()]:
                partition.advance(self.now)
                at = self.store.partition(number, key)
                if at is not None:
                    self.store.advance(at, self.now, step)
                assert self.store.due(number, key, self.now) == partition.due(self.now)
        self.told(step)

    def told(self, step: int | str) -> None:
        """Whoever was decided upon is found by the step, and by the clients."""
        decided = {t.id for admission in self.admissions for t in admission.take_changed()} - {step}
        sql = "SELECT id FROM ticket WHERE decided_by = ?"
        found = {row[0] for row in self.store.connection.execute(sql, (step,))}
        assert decided <= found
        tickets = {int(theirs.id): theirs for theirs, _ in self.pairs}
        news: list[Ticket] = []
        for client in self.clients:
            news += self.store.news(client, tickets)
        assert {ticket.id for ticket in news} == decided
        assert self.store.decided(step, self.now) >= {int(one) >> BITS for one in decided}

    # --- what is the same ----------------------------------------------------------------------

    @invariant()
    def the_same_is_decided(self) -> None:
        for admission in self.admissions:
            admission._sweep(self.now)
        for theirs, ours in self.pairs:
            assert theirs.state == ours.state
            if ours.state in {"held", "released", "lost"}:
                assert (theirs.arrival, theirs.granted) == (ours.arrival, ours.granted)
            if ours.state == "refused":
                assert theirs.reason == ours.reason
                # Several that a lowered limit turns away together meet each other in the order of arrival, in
                # SQL; the rules ask fair order who would have come first.
                fair = hasattr(ours, "partition") and ours.partition._order == "fair"
                if not (theirs.reason == "too_large" and fair):
                    assert theirs.outlook == ours.outlook
        self.store.forget(theirs for theirs, ours in self.pairs if ours.state in {"refused", "lost"})
        self.pairs = self.in_state(*LIVE) + self.in_state("new")[:1] + self.in_state("released")[:2]

    @invariant()
    def the_same_is_stored(self) -> None:
        execute = self.store.connection.execute
        stored = execute("SELECT id, state, arrival, granted FROM ticket ORDER BY id").fetchall()
        live = sorted((pair[1] for pair in self.in_state(*LIVE)), key=lambda ticket: ticket.id)
        assert stored == [(t.id, t.state, t.arrival, t.granted if t.state == "held" else None) for t in live]
        for number, admission in zip(self.numbers, self.admissions, strict=True):
            seen = admission.statistics
            sql = "SELECT ended, batch, batch_ticks, mean_hold FROM guard WHERE id = ?"
            assert execute(sql, (number,)).fetchone() == (
                seen.ended,
                len(seen._batch),
                sum(seen._batch),
                seen.mean_hold,
            )
            sql = """
                SELECT key, ordering, held, waiting, tat, last_arrival + 1, next_grant, id, virtual, turns, debts
                FROM partition WHERE guard = ? AND (idle_from IS NULL OR idle_from > ?) ORDER BY key
            """
            rows = execute(sql, (number, self.now)).fetchall()
            partitions = sorted(admission.partitions.values(), key=lambda one: one.key or "")
            for row, ours in zip(rows, partitions, strict=True):
                known, stamps, (partition, virtual, turns, debts) = [*row[:4]], row[4:7], row[7:]
                held = 1 << 40 if ours._exclusive else ours.in_use
                assert known == [ours.key, ours._order, held, ours.waiting]
                # A row that is used again keeps stamps of the past, which mean no more than none.
                for stamp, our_stamp in zip(
                    stamps, (ours._tat, ours.last_arrival + 1, ours.next_grant), strict=True
                ):
                    assert max(stamp, self.now) == max(our_stamp, self.now)
                tenants = execute(
                    "SELECT name, tag, advanced, share, holding, waiting, born FROM tenant WHERE partition = ?",
                    (partition,),
                ).fetchall()
                if isinstance(ours.queue, FairQueue):
                    assert tenants == sorted(
                        (t.name, t.tag, t.advanced, t.share, t.holding, len(t.line), t.born)
                        for t in ours.queue._tenants.values()
                    )
                    assert (virtual, turns, debts) == (
                        ours.queue._virtual,
                        len(ours.queue._turns),
                        len(ours.queue._debts),
                    )
                else:
                    assert not tenants

    @invariant()
    def the_same_is_seen(self) -> None:
        for admission in self.admissions:
            for key in (None, *admission.partitions):
                ours = admission if key is None else admission.partitions[key]
                seen = self.store.inspect(admission.name, key, self.now)
                assert by_key(seen) == by_key(ours.inspect(self.now))


TestSqlAgainstRules = SqlAgainstRules.TestCase
TestSqlAgainstRules.settings = settings(
    max_examples=3000 if LONG else 300, stateful_step_count=80 if LONG else 40, deadline=None
)


# --- what random steps are too small for -----------------------------------------------------------


class Guarded:
    """One guard in one file, entered by hand."""

    def __init__(self, store: Store, **declared: Any) -> None:
        self.store = store
        self.now = 5 * TICKS
        self.client = register(store, 1 + len(store.clients()), "host:1")
        self.declaration = Declaration("guard", Rules(**{"max_waiting": None, **declared}))
        self.number, _ = store.declare(self.declaration, self.now, self.client << BITS)
        self.ids = self.client << BITS

    def enter(self, key: str | None = None, *, wait: bool = True, **ask: Any) -> Ticket:
        self.ids += 1
        ticket = new_ticket(self.ids, Terms(self.declaration, **ask), key)
        self.store.enter(ticket, self.number, self.now, wait)
        return ticket

    def fill(self, count: int, **ask: Any) -> list[Ticket]:
        """Have many enter, in one commit."""
        with self.store.connection:
            self.store.connection.execute("BEGIN")
            return [self.enter(**ask) for _ in range(count)]

    def value(self, sql: str, *values: Any) -> Any:
        return self.store.connection.execute(sql, values).fetchone()[0]


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(":memory:", epoch=EPOCH)
    yield store
    store.close()


ON_THE_WAY = [
    "INSERT INTO op_enter VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
    "INSERT INTO op_leave VALUES (?,?,?,?,?)",
    "INSERT INTO op_advance VALUES (?,?,?)",
    "INSERT INTO op_evict VALUES (?,?,?,?)",
    "SELECT state FROM ticket WHERE id = ?",
    "SELECT client FROM ticket WHERE decided_by = ?",
    "SELECT id, state FROM ticket WHERE client = ? AND decided_by IS NOT NULL",
    "SELECT opening FROM gate WHERE guard = ? AND key IS ?",
    "DELETE FROM ticket WHERE id = ? AND state IN ('refused', 'lost')",
]


@pytest.mark.parametrize("sql", ON_THE_WAY)
def test_nothing_on_the_way_scans_a_table(store: Store, sql: str) -> None:
    tables = {
        root: name
        for name, root in store.connection.execute(
            "SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0"
        )
    }
    opened: dict[int, str] = {}
    found = 0
    for _, opcode, p1, p2, *_ in store.connection.execute(f"EXPLAIN {sql}", [None] * sql.count("?")):
        if opcode in {"OpenRead", "OpenWrite"}:
            opened[p1] = tables[p2]
        elif opcode in {"OpenEphemeral", "OpenPseudo", "OpenAutoindex", "SorterOpen"}:
            opened.pop(p1, None)
        elif opcode in {
            "SeekRowid",
            "NotExists",
            "SeekGE",
            "SeekGT",
            "SeekLE",
            "SeekLT",
            "Found",
            "NotFound",
        }:
            found += 1
        assert opcode not in {"OpenAutoindex", "SorterOpen"}, "an index is missing"
        assert opcode not in {"Rewind", "Last"} or p1 not in opened, (
            f"{opened[p1]} is read from one end to the other"
        )
    assert found, "it finds something by an index"


def steps_of(store: Store, act: Any) -> int:
    """How many steps SQLite's machine takes for something."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    store.connection.set_progress_handler(count, 1)
    act()
    store.connection.set_progress_handler(None, 1)
    return steps


@pytest.mark.parametrize(
    ("order", "ask"),
    [
        ("fifo", {}),
        ("fifo", {"priority": 3 * UNIT}),
        ("lifo", {}),
        ("fair", {}),
    ],
)
def test_no_step_grows_with_the_queue(order: Any, ask: dict[str, Any]) -> None:
    """With 10 tickets waiting and with many a step is as long, wherever a ticket leaves from."""
    few = steps_with(10, order, ask)
    many = steps_with(100_000 if LONG else 5_000, order, ask)
    assert all(large <= 1.05 * small + 1000 for small, large in zip(few, many, strict=True)), (few, many)


def steps_with(waiting: int, order: Any, ask: dict[str, Any]) -> list[int]:
    store = Store(":memory:", epoch=EPOCH)
    guarded = Guarded(store, order=order)
    for _ in range(5):  # so that waits are estimated
        ticket = guarded.enter()
        guarded.now += UNIT
        store.leave(ticket, guarded.now)
    holding = guarded.enter()
    queue = guarded.fill(waiting)
    newcomer: list[Ticket] = []
    steps = [
        steps_of(store, lambda: newcomer.append(guarded.enter(patience=1 << 60, **ask))),
        steps_of(store, lambda: store.leave(queue[waiting // 2], guarded.now)),
        steps_of(store, lambda: store.leave(newcomer[0], guarded.now, "timeout")),
        steps_of(store, lambda: guarded.enter(wait=False)),
        steps_of(store, lambda: store.leave(holding, guarded.now)),
        steps_of(store, lambda: store.evict(guarded.number, int(queue[waiting // 3].id), guarded.now, 1)),
        steps_of(store, lambda: store.news(guarded.client, {})),
    ]
    store.close()
    return steps


def test_a_thousand_are_granted_by_several_statements(store: Store) -> None:
    guarded = Guarded(store)
    holding = guarded.enter()
    queue = guarded.fill(1200)
    assert store.configure(guarded.number, None, guarded.now, 7, limit=1300) == {guarded.client}
    store.news(guarded.client, {int(ticket.id): ticket for ticket in queue})
    assert {ticket.state for ticket in queue} == {"held"}
    tokens = [ticket.granted for ticket in queue]
    assert tokens == sorted({*tokens})
    assert tokens[0] > holding.granted


def test_a_dead_client_with_many_tickets_is_buried(store: Store) -> None:
    guarded = Guarded(store)
    guarded.enter()
    guarded.fill(1200)
    guarded.enter(patience=0)
    alive = Guarded(store)
    heir = alive.enter()
    assert store.bury(guarded.client, guarded.now, 7) == {alive.client}
    assert store.read(heir)
    assert heir.state == "held"
    assert guarded.value("SELECT count(*) FROM ticket") == 1
    assert guarded.value("SELECT count(*) FROM client") == 1
    assert guarded.value("SELECT held FROM partition") == 1


def test_tokens_grow_though_a_partition_was_deleted_and_the_caller_s_clock_is_behind(store: Store) -> None:
    """Its caller had read the clock, and then waited for the lock."""
    guarded = Guarded(store)
    early = guarded.now
    guarded.now += TICKS
    one = guarded.enter("key")
    guarded.now += UNIT
    store.leave(one, guarded.now)
    for other in range(400):
        store.leave(guarded.enter(f"other {other}"), guarded.now)
        guarded.now += UNIT
    assert guarded.value("SELECT count(*) FROM partition WHERE key = 'key'") == 0
    guarded.now = early
    assert guarded.enter("key").granted > one.granted


def test_the_first_in_line_waits_for_all_that_it_asks_for(store: Store) -> None:
    guarded = Guarded(store, limit=3)
    tickets = [guarded.enter(permits=permits) for permits in (2, 2, 1, EXCLUSIVE)]
    held = []
    for leaves in (None, *tickets):
        if leaves is not None:
            guarded.now += UNIT
            store.leave(leaves, guarded.now)
            store.news(guarded.client, {int(ticket.id): ticket for ticket in tickets})
        held.append([ticket.state == "held" for ticket in tickets])
    assert held == [
        [True, False, False, False],
        [False, True, True, False],
        [False, False, True, False],
        [False, False, False, True],
        [False, False, False, False],
    ]


def test_a_key_is_in_use_while_its_permit_passes_on(store: Store) -> None:
    guarded = Guarded(store)
    one, other = guarded.enter("key"), guarded.enter("key")
    idle_from = "SELECT idle_from FROM partition WHERE key = 'key'"
    for ticket, is_idle in ((one, False), (other, True)):
        guarded.now += UNIT
        store.leave(ticket, guarded.now)
        assert (guarded.value(idle_from) is not None) == is_idle


@pytest.mark.parametrize("count", [4, 5, 21, 1013, 1030, 3000])
def test_percentiles_are_those_of_the_last_thousand(store: Store, count: int) -> None:
    guarded = Guarded(store)
    holds = [1 + one * one for one in range(count)]
    for hold in holds:
        ticket = guarded.enter()
        guarded.now += hold
        store.leave(ticket, guarded.now)
        guarded.now += UNIT
    seen = store.inspect("guard", None, guarded.now)
    assert (seen.granted, seen.hold) == (count, percentiles(deque(holds[-1000:])))
    assert guarded.value("SELECT count(*) FROM recent") <= 64


@pytest.mark.parametrize(("max_keys", "few"), [(10, 10), (100_000, 256)])
def test_keys_used_once_leave_few_rows_behind(store: Store, max_keys: int, few: int) -> None:
    guarded = Guarded(store, max_keys=max_keys)
    for key in range(1000):
        store.leave(guarded.enter(str(key)), guarded.now)
        guarded.now += UNIT
    assert guarded.value("SELECT count(*) FROM partition") <= few
    assert guarded.value("SELECT keys FROM guard") == guarded.value("SELECT count(*) FROM partition")


def test_tenants_that_came_once_are_forgotten_as_the_rules_do(store: Store) -> None:
    guarded = Guarded(store, order="fair", limit=2)
    admission = Admission(Declaration("guard", guarded.declaration.rules), EPOCH)
    partition = admission.partition(None, guarded.now)
    assert partition is not None
    for one in range(300):
        pair = []
        for share in (1.0, 3.0):
            ask: dict[str, Any] = {"tenant": f"{one} {share}", "share": share}
            theirs = guarded.enter(**ask)
            ours = new_ticket(theirs.id, Terms(guarded.declaration, **ask))
            partition.enter(ours, guarded.now)
            pair.append((theirs, ours))
        for theirs, ours in pair:
            guarded.now += UNIT * (1 + one % 7)
            store.leave(theirs, guarded.now)
            partition.leave(ours, guarded.now)
    queue = partition.queue
    assert isinstance(queue, FairQueue)
    stored = store.connection.execute("SELECT name, tag FROM tenant ORDER BY name").fetchall()
    assert stored == sorted((one.name, one.tag) for one in queue._tenants.values())
    assert 0 < len(stored) < 70
    assert guarded.value("SELECT virtual FROM partition") == queue._virtual


def test_among_many_tenants_a_ticket_s_place_is_that_of_the_rules(store: Store) -> None:
    """More tenants than are looked at."""
    guarded = Guarded(store, order="fair")
    admission = Admission(Declaration("guard", guarded.declaration.rules), EPOCH)
    partition = admission.partition(None, guarded.now)
    assert partition is not None

    def enter(**ask: Any) -> tuple[Ticket, Ticket]:
        theirs = guarded.enter(**ask)
        ours = new_ticket(theirs.id, Terms(guarded.declaration, **ask))
        partition.enter(ours, guarded.now)
        assert theirs.state == ours.state
        return theirs, ours

    for _ in range(6):
        theirs, ours = enter()
        guarded.now += UNIT
        store.leave(theirs, guarded.now)
        partition.leave(ours, guarded.now)
    for one in range(160):
        enter(tenant=str(one * 7 % 100), share=0.5 + one % 3, patience=10_000 * UNIT)
        _, ours = enter(tenant=str(one * 13 % 100), share=0.5 + one % 4, patience=10_000 * UNIT)
        wait = guarded.value("SELECT foreseen FROM ticket WHERE id = ?", ours.id)
        if wait is not None:
            assert queue_wait(partition, ours, guarded.now) == wait


def queue_wait(partition: Partition, ticket: Ticket, now: int) -> float | None:
    assert partition.queue is not None
    position = partition.queue.ahead_of(ticket)
    return partition._estimate(partition._ahead(position), position, ticket.terms.permits, now)


def test_what_nobody_alive_declared_stands_no_longer(store: Store) -> None:
    """A process that starts with other rules goes by them once those who declared the old have ended."""

    def declare(client: int, limit: int) -> int:
        rules = Rules(limit=limit, max_waiting=None)
        return store.declare(Declaration("guard", rules), TICKS, client << BITS)[1].limit

    def standing() -> list[int]:
        return [each.rules.limit for each in store.guards("guard")]

    old = Guarded(store, limit=1)
    held = old.enter()
    older, new, newest = (register(store, number, "") for number in (11, 12, 13))
    assert [declare(older, 1), declare(new, 2), declare(newest, 3)] == [1, 1, 1]
    others = Guarded(store, limit=1)
    waits = others.enter()
    assert (held.state, waits.state) == ("held", "waiting")
    store.bury(others.client, TICKS, 7)
    store.bury(old.client, TICKS, 8)
    assert standing() == [1], "one lives who declared it, too"

    store.bury(older, TICKS, 9)
    assert standing() == [2]
    assert declare(newest, 3) == 2
    store.bury(new, TICKS, 10)
    assert standing() == [3]
    store.bury(newest, TICKS, 11)
    assert standing() == [3], "nobody has another"
    assert declare(register(store, 14, ""), 1) == 1


def test_who_waits_is_granted_when_the_rules_of_the_living_let_it(store: Store) -> None:
    old = Guarded(store, limit=1)
    new = Guarded(store, limit=2)
    assert [new.enter().state, new.enter().state] == ["held", "waiting"]
    assert store.bury(old.client, new.now, old.client << BITS | 1) == {new.client}


def test_declarations_that_differ_are_seen(store: Store) -> None:
    first = Rules(limit=2, rate=Rate(3, per=2.5, burst=2), order="fair", max_waiting=None, revision=4)
    number, standing = store.declare(Declaration("guard", first), 1, 1)
    assert standing == first
    assert store.declare(Declaration("guard", dataclasses.replace(first, limit=3)), 1, 1) == (number, first)
    assert store.declare(Declaration("guard", Rules(revision=3)), 1, 1) == (number, first)
    later = Rules(limit=9, revision=5)
    assert store.declare(Declaration("guard", later), 1, 1) == (number, later)
    assert store.declare(Declaration("guard", Rules(revision=1)), 1, 1, force=True) == (
        number,
        Rules(revision=1),
    )


def test_a_file_of_another_version_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "guards"
    Store(path, epoch=EPOCH).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="expected schema version 2, found 99"):
        Store(path, epoch=EPOCH)


def test_all_who_open_a_file_count_from_the_same_epoch(tmp_path: Path) -> None:
    path = tmp_path / "guards"
    one, other = Store(path, epoch=1), Store(path, epoch=2)
    assert one.epoch == other.epoch == 1
    one.close()
    other.close()


def test_who_finds_the_file_locked_has_done_nothing_and_can_come_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "guards", epoch=EPOCH)
    guarded = Guarded(store)
    other = sqlite3.connect(tmp_path / "guards", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        guarded.enter()
    assert guarded.value("SELECT count(*) FROM ticket") == 0  # who only reads isn't kept out
    other.execute("ROLLBACK")
    other.close()
    assert guarded.enter().state == "held"
    store.close()


# --- two processes, each with a thread that never lets go of the GIL gladly ------------------------


def hammer(path: str, until: int, results: Any) -> None:
    """Enter and leave until a moment, beside a thread that only computes; give holds and the longest calls."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(10_000))

    thread = threading.Thread(target=compute)
    thread.start()
    store = Store(path, epoch=EPOCH, patience=20)
    client = register(store, os.getpid(), "host:1")
    declaration = Declaration("guard", Rules(max_waiting=None))
    number, _ = store.declare(declaration, time.monotonic_ns(), client << BITS)
    terms = Terms(declaration)
    ids = client << BITS
    holds = []
    while time.monotonic_ns() < until:
        ids += 1
        ticket = new_ticket(ids, terms)
        store.enter(ticket, number, time.monotonic_ns())
        while ticket.state == "waiting":
            store.read(ticket)
        began = time.monotonic_ns()
        ended = time.monotonic_ns()
        store.leave(ticket, time.monotonic_ns())
        holds.append((ticket.granted, began, ended))
    stop.set()
    thread.join()
    store.close()
    results.put(holds)


def test_processes_whose_threads_compute_do_not_hold_the_lock_while_they_wait(tmp_path: Path) -> None:
    """One more process, which does nothing besides, measures how long the lock is taken from it."""
    path = tmp_path / "guards"
    store = Store(path, epoch=EPOCH, patience=20)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    begin = time.monotonic_ns() + TICKS
    until = begin + (10 if LONG else 2) * TICKS
    processes = [context.Process(target=hammer, args=(str(path), until, results)) for _ in range(2)]
    for process in processes:
        process.start()
    probe = Guarded(store)
    other, _ = store.declare(Declaration("other", Rules()), 1, 1)
    waits = []
    while time.monotonic_ns() < until:
        time.sleep(0.002)
        if time.monotonic_ns() > begin:
            probe.ids += 1
            ticket = new_ticket(probe.ids, Terms(probe.declaration))
            began = time.monotonic_ns()
            store.enter(ticket, other, began)
            waits.append(time.monotonic_ns() - began)
            store.leave(ticket, time.monotonic_ns())
    holds = sorted(hold for _ in processes for hold in results.get(timeout=30))
    for process in processes:
        process.join()
    store.close()
    assert len(holds) > 50
    assert len({token for token, *_ in holds}) == len(holds), "no token is given twice"
    for (*_, ended), (_, began, _) in itertools.pairwise(holds):
        assert ended < began, "one at a time, in the order of the tokens"
    waits.sort()
    print(
        f"{len(holds)} holds; to enter beside them took",
        *(waits[len(waits) * p // 1000] / 1000 for p in (500, 990, 999)),
        "us",
    )
    # A thread waits for the GIL for 5 ms, and for longer where there are few cores: half of all statements would.
    assert waits[len(waits) // 2] < 2 * UNIT
