"""A backend against the rules themselves: random steps, and each decision compared, ticket for ticket.

    class MineAgainstRules(AgainstRules):
        def open(self, clock: Clock) -> Backend:
            return Mine(clock)

    TestMineAgainstRules = MineAgainstRules.TestCase

It needs Hypothesis. Where the `conformance` suite finds what a backend does wrong, this finds when.
"""

# ruff: noqa: D102, S101 - steps assert, and their names say what

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND, SystemClock
from asyncguard.statistics import Percentiles
from asyncguard.testing.clock import ManualClock
from asyncguard.ticket import EXCLUSIVE, Declaration, Rate, Rules, Terms, Ticket

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from asyncguard.admission import Setting
    from asyncguard.backends import Backend
    from asyncguard.clock import Clock
    from asyncguard.errors import Reason
    from asyncguard.statistics import Holder, Snapshot, Waiter

T = TypeVar("T")
UNIT = TICKS // 1000
_LONG = 60 * TICKS
"""A head start beside which it doesn't matter that the rules are asked a moment after the backend."""
_SOON = 2.0
"""Seconds within which a backend has told what it decided."""
_LIVE = ("held", "waiting")
_ASKS: list[dict[str, Any]] = [
    {},
    {"patience": 4 * UNIT},
    {"patience": 0},
    {"permits": 2},
    {"permits": EXCLUSIVE, "tenant": "a"},
    {"permits": 2, "priority": 3 * UNIT + UNIT // 7, "tenant": "b", "patience": 6 * UNIT},
    {"priority": 2 * UNIT + UNIT // 3, "tenant": "a", "share": 2.0},
    {"tenant": "b"},
]
"""Head starts are such that no two tickets tie for a place: arrivals at one moment are a few ticks apart."""
_rules = st.builds(
    Rules,
    limit=st.sampled_from([1, 1, 2, 3]),
    max_waiting=st.sampled_from([None, 100, 3, 1, 0]),
    order=st.sampled_from(["fifo", "fifo", "fifo", "lifo", "fair"]),
    rate=st.sampled_from([None, None, None, Rate(1, per=0.002), Rate(2, per=0.01, burst=3)]),
    max_keys=st.just(3),
)
_asks = st.sampled_from([0] * len(_ASKS) + [*range(len(_ASKS))])
"""Most are plain, as most are in life; for these a backend may have a way of its own."""
_picks = st.integers(min_value=0, max_value=1 << 16)
_reasons = st.sampled_from([None, "timeout"])
_keys = st.sampled_from([None, None, None, "a", "b", "c", "d"])


class Heard(Ticket):
    """A ticket whose client writes down what it is told."""

    __slots__ = ("told",)

    told: list[int | str]

    def notify(self, interrupts: bool = False) -> bool:
        del interrupts
        self.told.append(self.id)
        return True


class AgainstRules(RuleBasedStateMachine):
    """Each step is taken by the backend, and by `asyncguard.admission` alone.

    A subclass says how to open a backend that nobody else uses. One that believes the clock which it
    is given also says, in `notice_time`, how it comes to see that time has passed: it is compared to
    the tick. With `moves_time = False` time is real, and what depends on moments is left out.
    """

    moves_time: ClassVar[bool] = True
    """Whether the backend's time is that of the clock which it is given."""
    answers_at_once: ClassVar[bool] = True
    """Whether it can be asked without waiting for it."""
    tells_in_order: ClassVar[bool] = True
    """Whether tickets hear of what was decided in the order in which it was."""

    def open(self, clock: Clock) -> Backend:
        """Open a backend that has no guards yet."""
        raise NotImplementedError

    def notice_time(self, keys: list[str | None]) -> None:
        """Have the backend advance these keys of the guard, as it does when an alarm of its own rings."""
        raise NotImplementedError

    def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a step of the backend's to its end."""
        return self._runner.run(coroutine)

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()

    def teardown(self) -> None:
        self._runner.close()

    @initialize(declared=_rules, calm=st.booleans())
    def begin(self, declared: Rules, calm: bool) -> None:
        self.calm = calm
        """Whether all is as in most guards: one permit, no keys, nobody who meddles."""
        if calm:
            declared = dataclasses.replace(declared, limit=1, order="fifo", rate=None)
        self.clock = ManualClock() if self.moves_time else SystemClock()
        self.backend = self.open(self.clock)
        self.declaration = Declaration("guard", self._within_means(declared))
        self.admission = Admission(self.declaration, self.clock.epoch)
        self.asked = [(self._terms(ask), self._terms(ask)) for ask in _ASKS]
        self.pairs: list[tuple[Heard, Heard]] = []
        self.told: list[int | str] = []
        self.id: int | str = 0

    def _within_means(self, rules: Rules) -> Rules:
        """Leave out the rules that count moments, where these aren't the same for both."""
        if self.moves_time:
            return rules
        return dataclasses.replace(rules, rate=None, order="fifo" if rules.order == "fair" else rules.order)

    def _terms(self, ask: dict[str, Any]) -> Terms:
        terms = Terms(self.declaration, self.backend.owner, lease=self.backend.lease, **ask)
        if not self.moves_time:
            patience = 0 if terms.patience == 0 else None
            priority = terms.priority // UNIT * _LONG
            terms = dataclasses.replace(terms, patience=patience, priority=priority)
        return terms

    # --- what happens --------------------------------------------------------------------------

    @rule(asks=st.lists(_asks, min_size=1, max_size=6), key=_keys)
    def some_enter(self, asks: list[int], key: str | None) -> None:
        for ask in asks:
            self._enter(ask, key, True)

    @rule(ask=_asks, key=_keys)
    def one_tries(self, ask: int, key: str | None) -> None:
        self._enter(ask, key, False)

    def _enter(self, ask: int, key: str | None, wait: bool) -> None:
        wait = wait or not self.answers_at_once
        key = None if self.calm else key
        self.id = self.backend.new_id()
        theirs, ours = pair = self._heard(self.asked[ask][0], key), self._heard(self.asked[ask][1], key)
        self.pairs.append(pair)

        async def enter() -> bool:
            answer = self.backend.enter(theirs, wait=wait)
            if answer is not None:
                await answer
            return answer is not None

        if self.finish(enter()) and theirs.id in self.told:
            self.told.remove(theirs.id)  # what is answered later is told to whoever entered, too
        now = self.clock.now()
        partition = self.admission.partition(key, now)
        if partition is None:
            self.admission.refuse_key(ours)
        else:
            partition.enter(ours, now, wait)
            self._settle(partition)

    def _heard(self, terms: Terms, key: str | None) -> Heard:
        ticket = Heard()
        ticket.id, ticket.terms, ticket.key, ticket.state = self.id, terms, key, "new"
        ticket.told = self.told
        return ticket

    @precondition(lambda self: self.pairs)
    @rule(pick=_picks, again=st.sampled_from([False, False, False, True]), reason=_reasons)
    def one_leaves(self, pick: int, again: bool, reason: Reason | None) -> None:
        live = self._in_state(*_LIVE)
        some = self.pairs if again or not live else live
        self._leave(some[pick % len(some)], finished=False, reason=reason)

    @precondition(lambda self: self._in_state("held"))
    @rule(pick=_picks, held=st.integers(1, 3), times=st.integers(1, 4))
    def work_is_done(self, pick: int, held: int, times: int) -> None:
        self._pass_time(held * UNIT)
        for _ in range(times):
            holding = self._in_state("held")
            if holding:
                self._leave(holding[pick % len(holding)], finished=True)

    def _in_state(self, *states: str) -> list[tuple[Heard, Heard]]:
        return [pair for pair in self.pairs if pair[1].state in states]

    def _leave(self, pair: tuple[Heard, Heard], *, finished: bool, reason: Reason | None = None) -> None:
        theirs, ours = pair

        async def leave() -> None:
            acknowledged = self.backend.leave(theirs, reason, finished=finished)
            if acknowledged is not None:
                await acknowledged

        self.finish(leave())
        if ours.state in _LIVE or ours.terms.lease:  # of the unknown, too, a tombstone stays
            partition = self.admission.partition(ours.key, self.clock.now())
            if partition is not None:
                partition.leave(ours, self.clock.now(), reason, finished=finished)
                self._settle(partition)

    @precondition(lambda self: self._in_state(*_LIVE))
    @rule(pick=_picks)
    def one_is_evicted(self, pick: int) -> None:
        live = self._in_state(*_LIVE)
        _, ticket = live[pick % len(live)]
        assert self.finish(self.backend.evict(self.declaration, str(ticket.id)))
        partition = ticket.partition
        partition.evict(ticket, self.clock.now())
        self._settle(partition)

    @precondition(lambda self: not self.calm)
    @rule(
        key=_keys,
        limit=st.sampled_from([KEEP, KEEP, None, 1, 2, 3]),
        paused=st.sampled_from([None, False, False, False, True]),
    )
    def it_is_configured(self, key: str | None, limit: Setting, paused: bool | None) -> None:
        self.finish(self.backend.configure(self.declaration, key, limit=limit, paused=paused))
        now = self.clock.now()
        if key is None:
            self.admission.configure(now, limit=limit, paused=paused)
            self._told_as_decided()
        else:
            partition = self.admission.partitions.setdefault(key, Partition(self.admission, key))
            partition.configure(now, limit=limit, paused=paused)
            self._settle(partition)

    @precondition(lambda self: not self.calm)
    @rule(declared=_rules)
    def it_is_declared_anew(self, declared: Rules) -> None:
        revision = self.declaration.rules.revision + 1
        rules = dataclasses.replace(self._within_means(declared), revision=revision)
        self.declaration = dataclasses.replace(self.declaration, rules=rules)

        async def redeclare() -> None:
            self.backend.redeclare(self.declaration)

        self.finish(redeclare())
        self.admission.redeclare(rules, self.clock.now())
        self._told_as_decided()

    @precondition(lambda self: self.moves_time)
    @rule(units=st.sampled_from([0.001, 0.5, 1, 1, 2, 50]))
    def time_passes(self, units: float) -> None:
        self._pass_time(round(units * UNIT))
        for partition in self.admission.partitions.values():
            partition.advance(self.clock.now())
        self.notice_time([*self.admission.partitions])
        self._told_as_decided()

    def _pass_time(self, ticks: int) -> None:
        if isinstance(self.clock, ManualClock):
            self.clock.advance(ticks / TICKS)

    def _settle(self, partition: Partition) -> None:
        self._told_as_decided()
        self.admission.retire(partition, self.clock.now())

    def _told_as_decided(self) -> None:
        """Have the backend have told what the rules decided, to the same clients in the same order."""
        decided = [ticket.id for ticket in self.admission.take_changed()]
        until = time.monotonic() + _SOON
        while len(self.told) < len(decided) and time.monotonic() < until:
            self.finish(asyncio.sleep(0))
        if not self.tells_in_order:
            self.told.sort(key=decided.index)
        assert self.told == decided
        self.told.clear()

    # --- what is the same ----------------------------------------------------------------------

    @invariant()
    def the_same_is_decided(self) -> None:
        for theirs, ours in self.pairs:
            assert theirs.state == ours.state
            if ours.state == "refused":
                assert theirs.reason == ours.reason
            if self.moves_time:
                if ours.state in {"held", "released", "lost"}:
                    assert theirs.granted == ours.granted
                if ours.state == "refused":
                    assert theirs.outlook[1:] == ours.outlook[1:]
                    assert _are_near(theirs.outlook.wait, ours.outlook.wait)
        self.pairs = [pair for pair in self.pairs if pair[1].state != "refused"]

    @invariant()
    def the_same_is_seen(self) -> None:
        places: dict[Any, Any] = {**self.admission.partitions, None: self.admission}
        for key, ours in places.items():
            seen = _by_key(self.finish(self.backend.inspect(self.declaration, key)))
            expected = _by_key(ours.inspect(self.clock.now()))
            if self.moves_time:
                assert _without_microseconds(seen) == _without_microseconds(expected)
            else:
                assert _without_moments(seen) == _without_moments(expected)


def _are_near(one: float | None, other: float | None) -> bool:
    """Whether two waits are less than a microsecond apart: each of those that come at once has a tick."""
    if one is None or other is None:
        return one is other
    return abs(one - other) < TICKS_PER_MICROSECOND


def _by_key(snapshot: Snapshot) -> Snapshot:
    """Put the keys in order: which of them a picture shows first is left to the backend."""
    holders = sorted(snapshot.holders, key=_key_of)
    queue = sorted(snapshot.queue, key=_key_of)
    return dataclasses.replace(snapshot, holders=tuple(holders), queue=tuple(queue))


def _key_of(one: Holder | Waiter) -> tuple[bool, str]:
    return one.key is not None, one.key or ""


def _without_microseconds(snapshot: Snapshot) -> Snapshot:
    """Round the times in a picture: who finds a permit free may be dated a few microseconds ahead."""
    wait = snapshot.wait
    waits = (None if one is None else round(one, 4) for one in (wait.p50, wait.p90, wait.p99))
    queue = [
        dataclasses.replace(waiter, since=round(waiter.since, 4), waited=round(waiter.waited, 4))
        for waiter in snapshot.queue
    ]
    return dataclasses.replace(snapshot, wait=Percentiles(wait.count, *waits), queue=tuple(queue))


def _without_moments(snapshot: Snapshot) -> Any:
    """Keep of a picture who holds and who waits, in which order, and what was counted."""
    of = snapshot
    holders = [(holder.id, holder.key, holder.permits) for holder in of.holders]
    queue = [(waiter.id, waiter.key, waiter.position, waiter.permits) for waiter in of.queue]
    counts = (of.limit, of.in_use, of.waiting, of.keys, of.paused, of.granted, of.hold.count)
    return holders, queue, counts, dict(of.refused)
