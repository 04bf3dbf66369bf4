"""The rules in Lua decide as `asyncguard.admission` does: each step is taken by both, and all is compared."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import Phase, settings
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from leaving import LIVE, Leaving, picks
from test_sqlite_against_rules import by_key
from valkey_server import connect

import asyncguard.admission
from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.backends import redis_rules
from asyncguard.backends.redis_rules import SCRIPT, Answer, Call, RedisRules, Row
from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND
from asyncguard.order import FairQueue
from asyncguard.statistics import Statistics
from asyncguard.ticket import EXCLUSIVE, Declaration, Rate, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncguard.admission import Setting
    from asyncguard.errors import Reason

LONG = bool(os.environ.get("ASYNCGUARD_TEST_LONG"))
UNIT = TICKS // 1000
EPOCH = 1_735_689_600 * TICKS
START = 5 * TICKS
LEASE = 20 * TICKS
"""Tombstones expire by the server's clock, so two leases are longer than an example takes."""
ODD = 337
"""Ticks that keep a patience from being exactly what a wait is estimated at: that is rounded differently."""
ASKS: list[dict[str, Any]] = [
    {},
    {},
    {"patience": 4 * UNIT + ODD},
    {"patience": 3 * UNIT + ODD, "within": 5 * UNIT + ODD, "tenant": "a"},
    {"patience": 0},
    {"permits": 2},
    {"permits": EXCLUSIVE, "tenant": "a"},
    {"permits": 2, "priority": 3 * UNIT, "tenant": "b{:}", "patience": 6 * UNIT + ODD},
    {"priority": 2 * UNIT, "tenant": "a", "share": 2.0},
    {"tenant": "b{:}", "share": 0.3, "label": "été"},
    {"tenant": "c", "patience": 2 * UNIT + ODD},
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
READ = """
    local packed = redis.call('GET', KEYS[1])
    local p = packed and cmsgpack.unpack(packed)
    return p and {p[1], tostring(p[5]), tostring(p[9]), string.format('%.0f', p[12]),
        string.format('%.0f', p[13]), string.format('%.0f', p[14]), string.format('%.17g', p[17])} or {}
"""
"""What is stored of a partition: order, held, waiting, next_grant, last_arrival, tat and virtual."""
asks = st.sampled_from(range(len(ASKS)))
keys = st.sampled_from([None, None, None, "a", "b:{\0}", "c/é", "d"])
guards = st.sampled_from([0, 0, 0, 1])


@pytest.fixture(autouse=True, scope="module")
def _as_in_lua() -> Iterator[None]:
    """Have the rules take no quick paths, count holds at once, and tell arrivals apart by microseconds."""
    released, enqueue = Statistics.released, Partition._enqueue

    def count_at_once(self: Statistics, ticket: Ticket, *, finished: bool) -> None:
        released(self, ticket, finished=finished)
        self.digest()

    def enqueue_later(self: Partition, ticket: Ticket, now: int) -> None:
        self.last_arrival += TICKS_PER_MICROSECOND - 1
        enqueue(self, ticket, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncguard.admission, "_HAS_GIL", False)
        patch.setattr(Statistics, "released", count_at_once)
        patch.setattr(Partition, "_enqueue", enqueue_later)
        yield


@pytest.fixture(autouse=True, scope="module")
def _server(redis_url: str) -> Iterator[None]:
    with contextlib.closing(connect(redis_url)) as connection:
        LuaAgainstRules.server = connection
        yield


class LuaAgainstRules(Leaving):
    """Two guards, and two clients; time stands until it is moved."""

    server: ClassVar[Any]
    script: ClassVar[str] = SCRIPT
    favoured: ClassVar[dict[str, Any] | None] = None
    """Rules that stand here throughout, of one guard without keys that nobody pauses."""
    favourites: ClassVar[tuple[int, ...]] = tuple(range(len(ASKS)))
    """What is asked for here, by its place in `ASKS`."""

    @initialize(one=rules, other=rules)
    def begin(self, one: Rules, other: Rules) -> None:
        one = self.in_favour(one)
        self.now = START
        self.sha = self.server.script_load(self.script)
        self.namespace = f"{{t}}:{uuid.uuid4()}"
        self.clients = [
            RedisRules(self.namespace, client, EPOCH, now=self.moment) for client in ("one", "other")
        ]
        self.admissions = [
            Admission(Declaration("a guard", one), EPOCH),
            Admission(Declaration("{other}", other), EPOCH),
        ]
        self.pairs: list[tuple[Ticket, Ticket]] = []
        self.ids = 0
        self.nowhere: set[int | str] = set()
        """Ids that have a tombstone on the server alone, as there was no partition to keep it in."""
        self.ear = self.server.pubsub(ignore_subscribe_messages=True)
        channels = [c.channel(a.name) for c in self.clients for a in self.admissions]
        self.ear.subscribe(*channels)
        for _ in channels:
            self.ear.get_message(timeout=5)
        for admission in self.admissions:
            self.run(0, self.clients[0].declare(Declaration(admission.name, admission.rules)))

    def in_favour(self, declared: Rules) -> Rules:
        return dataclasses.replace(declared, **(self.favoured or {}))

    def there(self, guard: int, key: str | None) -> tuple[int, str | None]:
        return (guard, key) if self.favoured is None else (0, None)

    def moment(self) -> int:
        return (self.now + EPOCH) // TICKS_PER_MICROSECOND

    def teardown(self) -> None:
        if hasattr(self, "ear"):
            assert self.ear.get_message(timeout=0) is None, "nobody is told what doesn't concern them"
            self.ear.close()
            for key in self.server.scan_iter(f"{self.clients[0].base('')[:-2]}*", count=1000):
                self.server.delete(key)

    # --- how a step is taken -------------------------------------------------------------------

    def run(self, who: int, call: Call) -> Answer:
        """Have the server take a step, which may be several, and write into tickets what it decided."""
        answer = self.clients[who].read(call, self.server.evalsha(self.sha, 1, call.key, *call.args))
        told = [row for row in answer.decided if row.id.partition(".")[0] != self.clients[who].client]
        if told:
            message = self.ear.get_message(timeout=5)
            assert message is not None
            assert self.clients[1 - who].read_message(message["data"]) == told
        for row in answer.decided:
            self.write(row)
        for following in answer.more:
            answer.decided.extend(self.run(who, following).decided)
        return answer

    def write(self, row: Row) -> None:
        for theirs, _ in self.pairs:
            if theirs.id == row.id:
                self.clients[0].write(theirs, row)

    def meanwhile(self, admission: Admission) -> None:
        """Have the rules do what each step on the server begins with: see to leases that ended."""
        admission._sweep(self.now)
        for partition in [*admission.partitions.values()]:
            leases = partition._leases
            if leases is not None and (leases.next_expiry() or self.now + 1) <= self.now:
                partition.advance(self.now)
                admission.retire(partition, self.now)

    def decided_as(self, admission: Admission, answer: Answer) -> None:
        assert {row.id for row in answer.decided} == {ticket.id for ticket in admission.take_changed()}

    def admission_of(self, ticket: Ticket) -> Admission:
        return next(one for one in self.admissions if one.name == ticket.terms.guard.name)

    def up_to_date(self, ticket: Ticket) -> Ticket:
        """Have a request declare the rules that stand."""
        admission = self.admission_of(ticket)
        ticket.terms.guard = Declaration(admission.name, admission.rules)
        return ticket

    def who(self, ticket: Ticket) -> int:
        return int(not str(ticket.id).startswith("one."))

    # --- what happens --------------------------------------------------------------------------

    def pair(self, guard: int, ask: int, key: str | None, who: int) -> tuple[Ticket, Ticket]:
        self.ids += 1
        ask = self.favourites[ask % len(self.favourites)]
        guard, key = self.there(guard, key)
        admission = self.admissions[guard]
        declaration = Declaration(admission.name, admission.rules)
        ticket_id = f"{self.clients[who].client}.{self.ids}"
        theirs, ours = (
            new_ticket(ticket_id, Terms(declaration, f"host:{who}", lease=LEASE, **ASKS[ask]), key)
            for _ in range(2)
        )
        return theirs, ours

    @rule(
        guard=guards,
        some=st.lists(asks, min_size=1, max_size=4),
        key=keys,
        who=st.sampled_from([0, 0, 1]),
        wait=st.sampled_from([True, True, True, False]),
    )
    def enter(self, guard: int, some: list[int], key: str | None, who: int, wait: bool) -> None:
        for ask in some:
            pair = self.pair(guard, ask, key, who)
            self.pairs.append(pair)
            self.enter_as(pair, wait)

    def enter_as(self, pair: tuple[Ticket, Ticket], wait: bool) -> None:
        theirs, ours = pair
        admission = self.admission_of(ours)
        call = self.clients[self.who(ours)].enter(self.up_to_date(theirs), wait=wait)
        answer = self.run(self.who(ours), call)
        self.clients[0].write(theirs, answer.rows[0])
        self.meanwhile(admission)
        partition = admission.partition(ours.key, self.now)
        if partition is None:
            admission.refuse_key(ours)
        else:
            partition.enter(ours, self.now, wait)
            admission.retire(partition, self.now)
        self.decided_as(admission, answer)

    @precondition(lambda self: self.pairs)
    @rule(pick=picks, wait=st.sampled_from([True, True, False]))
    def enter_again(self, pick: int, wait: bool) -> None:
        """A request is sent twice, or comes after the ticket has ended."""
        theirs, ours = self.pairs[pick % len(self.pairs)]
        if ours.id in self.nowhere or ours.state == "new":
            return
        again = (
            new_ticket(theirs.id, theirs.terms, theirs.key),
            new_ticket(ours.id, ours.terms, ours.key),
        )
        self.enter_as(again, wait)
        self.agree(*again)
        if again[1].state != ours.state and again[1].state in LIVE:
            self.pairs.append(again)  # its tombstone was gone
            self.pairs.remove((theirs, ours))

    @rule(guard=guards, ask=asks, key=keys, who=st.sampled_from([0, 1]))
    def leave_first(self, guard: int, ask: int, key: str | None, who: int) -> None:
        """A request to enter is overtaken by that to leave."""
        pair = self.pair(guard, ask, key, who)
        pair[0].state = pair[1].state = "withdrawn"
        self.pairs.append(pair)
        self.leave_as(pair, False, None)

    @precondition(lambda self: self.in_state("held"))
    @rule(pick=picks, held=st.integers(0, 3), times=st.integers(1, 3))
    def finish(self, pick: int, held: int, times: int) -> None:
        self.now += held * UNIT
        for _ in range(times):
            holding = self.in_state("held")
            if holding:
                self.leave_as(holding[pick % len(holding)], True, None)

    def leave_as(self, pair: tuple[Ticket, Ticket], finished: bool, reason: Reason | None) -> None:
        theirs, ours = pair
        admission = self.admission_of(ours)
        call = self.clients[self.who(ours)].leave(self.up_to_date(theirs), reason, finished=finished)
        answer = self.run(self.who(ours), call)
        (row,) = answer.rows
        self.meanwhile(admission)
        live = ours.state in LIVE
        partition = admission.partition(ours.key, self.now)
        if partition is None:
            self.nowhere.add(ours.id)
        else:
            partition.leave(ours, self.now, reason, finished=finished)
            admission.retire(partition, self.now)
        if live:
            self.clients[0].write(theirs, row)
        else:
            # What it was told last may be that to a request that was sent again much later.
            assert row.state in {"gone", "refused", ours.state}
        self.decided_as(admission, answer)

    @precondition(lambda self: self.pairs)
    @rule(guard=guards, who=st.sampled_from([0, 1]), some=st.lists(picks, min_size=1, max_size=6))
    def renew(self, guard: int, who: int, some: list[int]) -> None:
        admission = self.admissions[guard]
        of = [pair for pair in self.pairs if self.admission_of(pair[1]) is admission]
        chosen = [of[pick % len(of)] for pick in some if of]
        declaration = Declaration(admission.name, admission.rules)
        answer = self.run(who, self.clients[who].renew(declaration, [theirs.id for theirs, _ in chosen]))
        self.meanwhile(admission)
        for (theirs, ours), row in zip(chosen, answer.rows, strict=True):
            assert row.id == theirs.id
            leases = ours.partition._leases if hasattr(ours, "partition") else None
            known = leases.find(ours) if leases is not None else None
            if known is None:
                assert row.state in {"gone", "refused", ours.state}
            else:
                assert leases is not None
                leases.renew(known, self.now)
                assert row.state == ours.state
                self.clients[0].write(theirs, row)
        self.decided_as(admission, answer)

    @precondition(lambda self: self.in_state(*LIVE))
    @rule(pick=picks)
    def evict(self, pick: int) -> None:
        live = self.in_state(*LIVE)
        _, ours = live[pick % len(live)]
        partition, admission = ours.partition, self.admission_of(ours)
        call = self.clients[0].evict(Declaration(admission.name, admission.rules), str(ours.id))
        answer = self.run(0, call)
        self.meanwhile(admission)
        assert [row.id for row in answer.rows] == [ours.id] * (ours.state in LIVE)
        partition.evict(ours, self.now)
        admission.retire(partition, self.now)
        self.decided_as(admission, answer)

    @rule(
        guard=guards,
        key=keys,
        limit=st.sampled_from([KEEP, KEEP, None, 1, 2, 3]),
        paused=st.sampled_from([None, True, False, False]),
    )
    def configure(self, guard: int, key: str | None, limit: Setting, paused: bool | None) -> None:
        guard, key = self.there(guard, key)
        paused = paused if self.favoured is None else None
        admission = self.admissions[guard]
        declaration = Declaration(admission.name, admission.rules)
        answer = self.run(0, self.clients[0].configure(declaration, key, limit=limit, paused=paused))
        self.meanwhile(admission)
        if key is None:
            admission.configure(self.now, limit=limit, paused=paused)
        else:
            partition = admission.partitions.setdefault(key, Partition(admission, key))
            partition.configure(self.now, limit=limit, paused=paused)
            admission.retire(partition, self.now)
        self.decided_as(admission, answer)

    @rule(guard=guards, declared=rules, force=st.booleans())
    def declare(self, guard: int, declared: Rules, force: bool) -> None:
        admission = self.admissions[self.there(guard, None)[0]]
        declared = self.in_favour(declared)
        call = self.clients[1].declare(Declaration(admission.name, declared), force=force)
        answer = self.run(1, call)
        self.meanwhile(admission)
        if not force:
            admission.declare(declared, self.now)
        elif declared != admission.rules:
            admission.redeclare(declared, self.now)
        assert (answer.standing or declared) == admission.rules
        self.decided_as(admission, answer)

    @rule(seconds=st.sampled_from([12, 12, 12, 21, 41]), noticed=st.booleans())
    def leases_end(self, seconds: int, noticed: bool) -> None:
        self.now += seconds * TICKS
        if noticed:
            self.time_is_noticed()

    @rule(units=st.sampled_from([0.001, 0.5, 1, 1, 2, 50]))
    def time_passes(self, units: float) -> None:
        self.now += round(units * UNIT)
        self.time_is_noticed()

    def time_is_noticed(self) -> None:
        for admission in self.admissions:
            of = [*admission.partitions]
            declaration = Declaration(admission.name, admission.rules)
            answer = self.run(0, self.clients[0].advance(declaration, of))
            self.meanwhile(admission)
            for key in of:
                if key in admission.partitions:
                    admission.partitions[key].advance(self.now)
            dues = [partition.due(self.now) for partition in admission.partitions.values()]
            assert answer.due == min((due for due in dues if due is not None), default=None)
            self.decided_as(admission, answer)

    # --- what is the same ----------------------------------------------------------------------

    def agree(self, theirs: Ticket, ours: Ticket) -> None:
        assert theirs.state == ours.state
        if ours.state in {"waiting", "held", "released", "lost"}:
            assert theirs.arrival == ours.arrival
            assert getattr(theirs, "granted", None) == getattr(ours, "granted", None)
        if ours.state == "refused":
            assert theirs.reason == ours.reason
            # Several that a lowered limit turns away together meet each other in the order of arrival, in
            # Lua; the rules ask fair order who would have come first.
            fair = hasattr(ours, "partition") and ours.partition._order == "fair"
            if not (theirs.reason == "too_large" and fair):
                assert theirs.outlook == pytest.approx(ours.outlook, abs=0.01)

    @invariant()
    def the_same_is_decided(self) -> None:
        for admission in self.admissions:
            admission._sweep(self.now)
        for pair in self.pairs:
            self.agree(*pair)
        ended = [pair for pair in self.pairs if pair[1].state not in {"new", *LIVE}]
        self.pairs = self.in_state(*LIVE) + ended[-6:]

    @invariant()
    def the_same_is_stored(self) -> None:
        for admission in self.admissions:
            base = self.clients[0].base(admission.name)
            live = {ours.id for _, ours in self.in_state(*LIVE) if self.admission_of(ours) is admission}
            assert {str(one) for one in live} == {
                one.decode() for one in self.server.zrange(f"{base}:x", 0, -1)
            }
            for key, ours in admission.partitions.items():
                self.is_stored(base, redis_rules._encode(key), ours)

    def is_stored(self, base: str, key: str, ours: Partition) -> None:
        stored = self.server.eval(READ, 1, f"{base}:p:{key}")
        if not stored:  # made, and left as it was
            assert (ours.waiting, ours.holders) == (0, set())
            assert ours.next_grant <= self.now
            return
        order, held, waiting, *moments, virtual = (value.decode() for value in stored)
        in_use = 1 << 40 if ours._exclusive else ours.in_use
        assert (order, int(held), int(waiting)) == (ours._order, in_use, ours.waiting)
        for stamp, ticks in zip(moments, (ours.next_grant, ours.last_arrival, ours._tat), strict=True):
            # Where a partition was made anew, those of the past mean no more than none.
            moment = (ticks + EPOCH) // TICKS_PER_MICROSECOND
            assert max(int(stamp), self.moment()) == max(moment, self.moment())
        tenants = self.server.hgetall(f"{base}:f:{key}")
        debts = self.server.zcard(f"{base}:b:{key}")
        turns = self.server.zcard(f"{base}:n:{key}")
        if isinstance(ours.queue, FairQueue):
            assert len(tenants) == len(ours.queue._tenants)
            assert (float(virtual), turns, debts) == (
                ours.queue._virtual,
                len(ours.queue._turns),
                len(ours.queue._debts),
            )
        else:
            assert (tenants, turns, debts) == ({}, 0, 0)

    @invariant()
    def the_same_is_seen(self) -> None:
        for admission in self.admissions:
            declaration = Declaration(admission.name, admission.rules)
            for key in (None, *admission.partitions):
                ours = admission if key is None else admission.partitions[key]
                call = self.clients[0].inspect(declaration, key)
                answer = self.server.evalsha(self.sha, 1, call.key, *call.args)
                seen = self.clients[0].picture(declaration, key, answer)
                assert by_key(seen) == by_key(ours.inspect(self.now))


STEPS = settings(max_examples=2000 if LONG else 120, stateful_step_count=80 if LONG else 40, deadline=None)
TestLuaAgainstRules = LuaAgainstRules.TestCase
TestLuaAgainstRules.settings = STEPS


# --- the machine notices what is wrong -------------------------------------------------------------


class Mutant(NamedTuple):
    """A mistake, and among what it shows soon: rules that all guards have, and what alone is asked for."""

    right: str
    wrong: str
    favoured: dict[str, Any] | None = None
    favourites: tuple[int, ...] = LuaAgainstRules.favourites


TWO: dict[str, Any] = {"limit": 2, "max_waiting": None, "rate": None}
LINE: dict[str, Any] = {**TWO, "limit": 1, "order": "fifo"}
TURNS: dict[str, Any] = {**LINE, "order": "fair"}
MUTANTS = {
    "a newcomer barges": Mutant(
        "if p.waiting == 0 and p.order ~= 'fair'", "if p.order ~= 'fair'", {**TWO, "order": "fifo"}, (0, 5, 6)
    ),
    "a token repeats": Mutant("p.next_grant = granted + 1", "p.next_grant = granted"),
    "the queue is one longer": Mutant("p.waiting > guard.max_waiting", "p.waiting > guard.max_waiting + 1"),
    "head starts are ignored": Mutant(
        "and -ticket.arrival or ticket.arrival - ticket.priority",
        "and -ticket.arrival or ticket.arrival",
        LINE,
        (0, 8),
    ),
    "an exclusive joins others": Mutant(
        "return p.holders == 0", "return p.held < rules.limit_of(p)", TWO, (0, 6)
    ),
    "a release passes nothing on": Mutant(
        "if p and ticket ~= asked then", "if p and ticket == asked then", LINE
    ),
    "a quiet time saves up bursts": Mutant("math.max(p.tat, now) + guard.pace", "p.tat + guard.pace"),
    "V takes in what is only expected": Mutant(
        "tenant.tag - tenant.advanced)", "tenant.tag)", {**TURNS, "limit": 2}, (8,)
    ),
    "a charge is never corrected": Mutant("(cost / tenant.share - ticket.charged)", "0", TURNS),
    "an expired holder keeps its permit": Mutant(
        "        rules.release(p, ticket, false)\n    else", "    else", LINE, (0,)
    ),
    "an expired ticket leaves no tombstone": Mutant(
        "    rules.bury(p, ticket, 'superseded')\n    rules.decide(ticket)",
        "    rules.decide(ticket)",
        LINE,
        (0,),
    ),
    "a renewal extends nothing": Mutant("ends[#ends + 1] = now + ticket.lease", "ends[#ends + 1] = now + 1"),
    "a tombstone is ignored": Mutant("if tombstone then", "if false then"),
    "who left leaves no tombstone": Mutant("    rules.bury(p, ticket, 'superseded')\n    if p", "    if p"),
    "entering again is entering anew": Mutant("    return known\nend", "    return tombstone and known\nend"),
    "a tombstone goes with its partition": Mutant("p.next_grant, p.buried, now)", "p.next_grant, now)"),
    "others aren't told": Mutant("if whose ~= client then", "if whose == client then", LINE, (0,)),
    "moments are rounded": Mutant("return string.format('%.0f', moment)", "return tostring(moment)"),
    "an older revision stands": Mutant(")[1] > guard.revision", ")[1] < guard.revision"),
    "who is too large is kept": Mutant(
        "if p.beyond > 0 then", "if p.beyond < 0 then", {"max_waiting": None}, (0, 5)
    ),
    "what was fetched before stands": Mutant(
        "    fetched = nil\n    local ends", "    local ends", LINE, (0,)
    ),
    "a hopeless one waits": Mutant(
        "return wait and (wait > patience", "return false and (wait > patience", LINE, (0, 0, 2)
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    assert SCRIPT.count(mutant.right) == 1

    class Mutated(LuaAgainstRules):
        script = SCRIPT.replace(mutant.right, mutant.wrong)
        favoured = mutant.favoured
        favourites = mutant.favourites

    quickly = settings(
        STEPS,
        max_examples=1000,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
    )
    # A step that differs, a script that stumbles over the state it was left, or an answer that can't be read.
    with pytest.raises((AssertionError, LookupError, ValueError, redis.ResponseError)):
        run_state_machine_as_test(Mutated, settings=quickly)
