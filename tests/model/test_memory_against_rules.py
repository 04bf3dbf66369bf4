"""The memory backend, whose quick paths do in place what the rules come to, decides as the rules do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.backends.memory import MemoryBackend
from asyncguard.clock import TICKS
from asyncguard.statistics import Percentiles
from asyncguard.ticket import EXCLUSIVE, Declaration, Rate, Rules, Terms, Ticket

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from asyncguard.admission import Setting
    from asyncguard.clock import Timer
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot

T = TypeVar("T")
UNIT = TICKS // 1000
ASKS: list[dict[str, Any]] = [
    {},
    {},
    {"patience": 4 * UNIT},
    {"patience": 0},
    {"permits": 2},
    {"permits": EXCLUSIVE, "tenant": "a"},
    {"permits": 2, "priority": 3 * UNIT, "tenant": "b", "patience": 6 * UNIT},
    {"priority": 2 * UNIT, "tenant": "a", "share": 2.0},
    {"tenant": "b"},
]
rules = st.builds(
    Rules,
    limit=st.sampled_from([1, 1, 2, 3]),
    max_waiting=st.sampled_from([None, 0, 1, 3, 100]),
    order=st.sampled_from(["fifo", "fifo", "lifo", "fair"]),
    rate=st.sampled_from([None, None, Rate(1, per=0.002), Rate(2, per=0.01, burst=3)]),
    max_keys=st.just(3),
)
asks = st.sampled_from(range(len(ASKS)))
picks = st.integers(min_value=0, max_value=1 << 16)
keys = st.sampled_from([None, None, None, "a", "b", "c", "d"])


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.epoch = 1_000 * TICKS
        self.time = 5 * TICKS

    def now(self) -> int:
        return self.time

    def call_later(
        self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[..., object], *args: Any
    ) -> Timer:
        raise AssertionError("tickets that no loop waits for set no timers")


class Heard(Ticket):
    """A ticket whose client writes down what it is told."""

    __slots__ = ("told",)

    told: list[int | str]

    def notify(self, interrupts: bool = False) -> bool:
        self.told.append(self.id)
        return True


NO_LOOP: Any = None
"""Time alone moves the partition, whoever noticed it."""


def now_of(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("it waits")


def without_microseconds(snapshot: Snapshot) -> Snapshot:
    """Round the times in a picture: who finds a permit free may be dated a few microseconds ahead."""
    wait = snapshot.wait
    waits = (None if one is None else round(one, 4) for one in (wait.p50, wait.p90, wait.p99))
    queue = [
        dataclasses.replace(waiter, since=round(waiter.since, 4), waited=round(waiter.waited, 4))
        for waiter in snapshot.queue
    ]
    return dataclasses.replace(snapshot, wait=Percentiles(wait.count, *waits), queue=tuple(queue))


class MemoryAgainstRules(RuleBasedStateMachine):
    """Each step is taken by the backend, and by the rules alone."""

    @initialize(declared=rules)
    def begin(self, declared: Rules) -> None:
        self.clock = ManualClock()
        self.backend = MemoryBackend(self.clock)
        self.declaration = Declaration("guard", declared)
        self.admission = Admission(self.declaration, self.clock.epoch)
        self.asked = [(Terms(self.declaration, **ask), Terms(self.declaration, **ask)) for ask in ASKS]
        self.pairs: list[tuple[Heard, Heard]] = []
        self.told: list[int | str] = []
        self.ids = 0

    # --- what happens --------------------------------------------------------------------------

    @rule(ask=asks, key=keys, wait=st.sampled_from([True, True, True, False]))
    def enter(self, ask: int, key: str | None, wait: bool) -> None:
        self.ids += 1
        pair = self.heard(self.asked[ask][0], key), self.heard(self.asked[ask][1], key)
        self.pairs.append(pair)
        self.backend.enter(pair[0], wait=wait)
        partition = self.admission.partition(key, self.clock.time)
        if partition is None:
            self.admission.refuse_key(pair[1])
        else:
            partition.enter(pair[1], self.clock.time, wait)
            self.settle(partition)

    def heard(self, terms: Terms, key: str | None) -> Heard:
        ticket = Heard()
        ticket.id, ticket.terms, ticket.key, ticket.state = self.ids, terms, key, "new"
        ticket.told = self.told
        return ticket

    @precondition(lambda self: self.pairs)
    @rule(
        pick=picks, finished=st.sampled_from([True, True, False]), reason=st.sampled_from([None, "timeout"])
    )
    def leave(self, pick: int, finished: bool, reason: Reason | None) -> None:
        live = [pair for pair in self.pairs if pair[1].state in {"held", "waiting"}] or self.pairs
        self.leave_as(live[pick % len(live)], finished, reason)

    @precondition(lambda self: self.pairs)
    @rule(pick=picks)
    def leave_again(self, pick: int) -> None:
        ended = [pair for pair in self.pairs if pair[1].state not in {"held", "waiting"}]
        if ended:
            self.leave_as(ended[pick % len(ended)], True, None)

    @precondition(lambda self: any(pair[1].state == "held" for pair in self.pairs))
    @rule(pick=picks, held=st.integers(0, 3))
    def finish(self, pick: int, held: int) -> None:
        self.clock.time += held * UNIT
        holding = [pair for pair in self.pairs if pair[1].state == "held"]
        self.leave_as(holding[pick % len(holding)], True, None)

    def leave_as(self, pair: tuple[Heard, Heard], finished: bool, reason: Reason | None) -> None:
        self.backend.leave(pair[0], reason, finished=finished)
        if pair[1].state in {"held", "waiting"}:
            partition = pair[1].partition
            partition.leave(pair[1], self.clock.time, reason, finished=finished)
            self.settle(partition)

    @precondition(lambda self: any(pair[1].state in {"held", "waiting"} for pair in self.pairs))
    @rule(pick=picks)
    def evict(self, pick: int) -> None:
        live = [pair for pair in self.pairs if pair[1].state in {"held", "waiting"}]
        _, ticket = live[pick % len(live)]
        assert now_of(self.backend.evict(self.declaration, str(ticket.id)))
        partition = ticket.partition
        partition.evict(ticket, self.clock.time)
        self.settle(partition)

    @rule(
        key=keys,
        limit=st.sampled_from([KEEP, KEEP, None, 1, 2, 3]),
        paused=st.sampled_from([None, True, False, False]),
    )
    def configure(self, key: str | None, limit: Setting, paused: bool | None) -> None:
        now_of(self.backend.configure(self.declaration, key, limit=limit, paused=paused))
        now = self.clock.time
        if key is None:
            self.admission.configure(now, limit=limit, paused=paused)
            self.told_as(self.admission)
        else:
            partition = self.admission.partitions.setdefault(key, Partition(self.admission, key))
            partition.configure(now, limit=limit, paused=paused)
            self.settle(partition)

    @rule(declared=rules)
    def redeclare(self, declared: Rules) -> None:
        self.declaration = dataclasses.replace(self.declaration, rules=declared)
        self.backend.redeclare(self.declaration)
        self.admission.redeclare(declared, self.clock.time)
        self.told_as(self.admission)

    @rule(units=st.sampled_from([0.001, 0.5, 1, 1, 2, 50]))
    def time_passes(self, units: float) -> None:
        self.clock.time += round(units * UNIT)
        theirs = self.backend._admissions.get("guard")
        for key, partition in self.admission.partitions.items():
            partition.advance(self.clock.time)
            assert theirs is not None
            self.backend._ring(theirs.partitions[key], NO_LOOP, 0)
        self.told_as(self.admission)

    def settle(self, partition: Partition) -> None:
        self.told_as(self.admission)
        self.admission.retire(partition, self.clock.time)

    def told_as(self, admission: Admission) -> None:
        """The backend told what the rules decided, to the same clients in the same order."""
        decided = [ticket.id for ticket in admission.changed]
        admission.changed.clear()
        assert self.told == decided
        self.told.clear()

    # --- what is the same ----------------------------------------------------------------------

    @invariant()
    def the_same_is_decided(self) -> None:
        for theirs, ours in self.pairs:
            assert theirs.state == ours.state
            if ours.state in {"held", "released", "lost"}:
                assert theirs.granted == ours.granted
            if ours.state == "refused":
                assert (theirs.reason, theirs.outlook) == (ours.reason, ours.outlook)
        self.pairs = [pair for pair in self.pairs if pair[1].state != "refused"]

    @invariant()
    def the_same_is_seen(self) -> None:
        now = self.clock.time
        places: dict[Any, Any] = {**self.admission.partitions, None: self.admission}
        for key, ours in places.items():
            seen = now_of(self.backend.inspect(self.declaration, key))
            assert without_microseconds(seen) == without_microseconds(ours.inspect(now))


TestMemoryAgainstRules = MemoryAgainstRules.TestCase
TestMemoryAgainstRules.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
