"""Small ways to get admission wrong: each breaks a rule, so the exploration has to notice each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from world import PACE, Ask, Setup

from asyncguard.admission import Partition
from asyncguard.leases import Leases
from asyncguard.order import Line
from asyncguard.ticket import EXCLUSIVE

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

ONES = (Ask(), Ask(), Ask())
TWO = (Ask(), Ask(permits=2), Ask())
MIXED = (Ask(), Ask(permits=2), Ask(permits=0))
PLAIN = Setup(ONES, limits=(2,), pauses=("key",), evicts=True, tries=True)
WIDE = Setup(TWO, limit=2, limits=(1, 3), pauses=("key",), evicts=True)
EXCLUSIVELY = Setup(MIXED, limit=2, limits=(1, 3))
PACED = Setup(ONES, limit=2, rate=PACE)
ROOMY = Setup(ONES, limit=3, rate=PACE)
LEASED = Setup((Ask(), Ask()), lease=2)
LATE = Setup((Ask(), Ask()), lease=2, vanishes=True)


class Mutant(NamedTuple):
    """A mistake, and where it shows."""

    make: Callable[[pytest.MonkeyPatch], None]
    setup: Setup


def _after(patch: pytest.MonkeyPatch, owner: type, name: str, then: Callable[..., Any]) -> None:
    """Have `then(self, result, *args)` follow a method; what it gives is the result, unless None."""
    original = getattr(owner, name)

    def mutated(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        changed = then(self, result, *args)
        return result if changed is None else changed

    patch.setattr(owner, name, mutated)


def _forgets_to_advance(name: str, state: str = "") -> Callable[[pytest.MonkeyPatch], None]:
    def make(patch: pytest.MonkeyPatch) -> None:
        original = getattr(Partition, name)

        def forgetful(self: Partition, *args: Any, **kwargs: Any) -> Any:
            if state and args[0].state != state:
                return original(self, *args, **kwargs)
            with patch.context() as inner:
                inner.setattr(Partition, "advance", lambda self, now: None)
                return original(self, *args, **kwargs)

        patch.setattr(Partition, name, forgetful)

    return make


def one_permit_too_many(patch: pytest.MonkeyPatch) -> None:
    original = Partition._read_rules

    def mutated(self: Partition) -> None:
        self.room -= self.limit > 0
        original(self)
        self.room += 1

    patch.setattr(Partition, "_read_rules", mutated)


def a_lowered_limit_is_ignored(patch: pytest.MonkeyPatch) -> None:
    original = Partition.configure

    def mutated(self: Partition, now: int, *, limit: Any = "keep", paused: bool | None = None) -> None:
        lowered = limit != "keep" and (limit or self.admission.rules.limit) < self.limit
        original(self, now, limit="keep" if lowered else limit, paused=paused)

    patch.setattr(Partition, "configure", mutated)


def a_lowered_limit_revokes(patch: pytest.MonkeyPatch) -> None:
    original = Partition.configure

    def mutated(self: Partition, now: int, **settings: Any) -> None:
        original(self, now, **settings)
        while self.in_use > self.limit:
            self.evict(next(iter(self.holders)), now)

    patch.setattr(Partition, "configure", mutated)


def too_large_is_kept(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: Partition, now: int) -> None:
        self._read_rules()
        self.advance(now)

    patch.setattr(Partition, "settle", mutated)


def a_newcomer_barges(patch: pytest.MonkeyPatch) -> None:
    original = Partition.enter

    def mutated(self: Partition, ticket: Any, now: int, wait: bool = True) -> None:
        hidden, self.waiting = self.waiting, 0
        original(self, ticket, now, wait)
        self.waiting += hidden

    patch.setattr(Partition, "enter", mutated)


def the_last_is_first(patch: pytest.MonkeyPatch) -> None:
    def last(self: Line) -> Any:
        return [*self.in_order(lambda _: 0.0)][-1]

    patch.setattr(Line, "first", last)


def head_starts_are_ignored(patch: pytest.MonkeyPatch) -> None:
    original = Line.add

    def mutated(self: Line, ticket: Any) -> None:
        with patch.context() as inner:
            inner.setattr(ticket.terms, "priority", 0)
            original(self, ticket)

    patch.setattr(Line, "add", mutated)


def who_is_behind_passes_a_large_first(patch: pytest.MonkeyPatch) -> None:
    def first(self: Line) -> Any:
        return min(self.in_order(lambda _: 0.0), key=lambda ticket: (ticket.terms.permits, ticket.arrival))

    patch.setattr(Line, "first", first)


def an_exclusive_joins_others(patch: pytest.MonkeyPatch) -> None:
    original = Partition._fits

    def mutated(self: Partition, ticket: Any, now: int) -> bool:
        free = not self._exclusive and len(self.holders) < self.room
        return original(self, ticket, now) or (ticket.terms.permits == EXCLUSIVE and free)

    patch.setattr(Partition, "_fits", mutated)


def others_join_an_exclusive(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, _: bool, *__: Any) -> None:
        self._exclusive = None

    _after(patch, Partition, "_grant", then)


def several_permits_count_as_one(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, granted: bool, ticket: Any, __: int) -> None:
        if granted and ticket.terms.permits > 1:
            self.room += ticket.terms.permits - 1

    _after(patch, Partition, "_grant", then)


def several_permits_are_given_back_as_one(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, _: None, ticket: Any, __: int) -> None:
        if ticket.terms.permits > 1:
            self.room -= ticket.terms.permits - 1

    _after(patch, Partition, "_release", then)


def leaving_twice_frees_twice(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, _: None, ticket: Any, *__: Any) -> None:
        if ticket.state == "released":
            ticket.state = "held"

    _after(patch, Partition, "leave", then)


def who_leaves_the_queue_stays_in_it(patch: pytest.MonkeyPatch) -> None:
    original = Partition.leave

    def mutated(self: Partition, ticket: Any, *args: Any, **kwargs: Any) -> None:
        if ticket.state != "waiting":
            original(self, ticket, *args, **kwargs)

    patch.setattr(Partition, "leave", mutated)


def who_only_tries_stays(patch: pytest.MonkeyPatch) -> None:
    original = Partition.enter

    def mutated(self: Partition, ticket: Any, now: int, wait: bool = True) -> None:
        del wait
        original(self, ticket, now)

    patch.setattr(Partition, "enter", mutated)


def a_token_repeats(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, _: Any, ticket: Any, __: int) -> None:
        self.next_grant = ticket.granted

    _after(patch, Partition, "_grant", then)


def a_partition_is_forgotten_too_soon(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, idle_from: int | None, now: int) -> int | None:
        del self
        return None if idle_from is None else now

    _after(patch, Partition, "idle_from", then)


def a_partition_is_never_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "idle_from", lambda self, now: None)


def what_an_operator_set_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = Partition.idle_from

    def mutated(self: Partition, now: int) -> int | None:
        override, self._override = self._override, None
        try:
            return original(self, now)
        finally:
            self._override = override

    patch.setattr(Partition, "idle_from", mutated)


def a_pause_is_ignored(patch: pytest.MonkeyPatch) -> None:
    original = Partition._fits

    def mutated(self: Partition, ticket: Any, now: int) -> bool:
        paused, self._paused = self._paused, False
        try:
            return original(self, ticket, now)
        finally:
            self._paused = paused

    patch.setattr(Partition, "_fits", mutated)


def the_pace_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "_opening", lambda self, position: 0)


def the_pace_stands_still(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, _: bool, __: Any, now: int) -> None:
        self._tat = min(self._tat, now)

    _after(patch, Partition, "_grant", then)


def a_quiet_time_saves_up_bursts(patch: pytest.MonkeyPatch) -> None:
    original = Partition._grant

    def mutated(self: Partition, ticket: Any, now: int) -> bool:
        before = self._tat
        granted = original(self, ticket, now)
        rate = self.admission.rules.rate
        if granted and before and rate is not None:
            self._tat = before + rate.interval
        return granted

    patch.setattr(Partition, "_grant", mutated)


def nothing_is_due(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "due", lambda self, now: None)


def the_queue_is_one_longer(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, _: None) -> None:
        self.max_waiting += 1

    _after(patch, Partition, "_read_rules", then)


def a_full_queue_refuses_the_first(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Line, "surplus", lambda self, newcomer: self.first())


def who_is_turned_away_is_not_told(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, _: None, ticket: Any, __: int) -> None:
        self.admission.changed.remove(ticket)

    _after(patch, Partition, "evict", then)


def expiry_extends(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: Partition, leases: Leases, now: int) -> None:
        del self
        for ticket in leases.expired(now):
            leases.renew(ticket, now)

    patch.setattr(Partition, "_drop_expired", mutated)


def who_expires_keeps_its_permit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "_drop_expired", lambda self, leases, now: None)


def who_expires_passes_nothing_on(patch: pytest.MonkeyPatch) -> None:
    original = Partition.advance

    def mutated(self: Partition, now: int) -> None:
        if self._leases is not None and (self._leases.next_expiry() or now + 1) <= now:
            self._drop_expired(self._leases, now)
        else:
            original(self, now)

    patch.setattr(Partition, "advance", mutated)


def a_renewal_comes_before_the_expiry(patch: pytest.MonkeyPatch) -> None:
    original = Partition.renew

    def mutated(self: Partition, tickets: Any, now: int) -> Any:
        with patch.context() as inner:
            inner.setattr(Partition, "advance", lambda self, now: None)
            lost = original(self, tickets, now)
        self.advance(now)
        return lost

    patch.setattr(Partition, "renew", mutated)


def a_renewal_resurrects(patch: pytest.MonkeyPatch) -> None:
    def then(self: Partition, lost: list[Any], *_: Any) -> list[Any]:
        for ticket in lost:
            ticket.state = "held"
            self.holders.add(ticket)
        return []

    _after(patch, Partition, "renew", then)


def a_renewal_extends_by_two_leases(patch: pytest.MonkeyPatch) -> None:
    original = Leases.renew
    patch.setattr(Leases, "renew", lambda self, ticket, now: original(self, ticket, now + ticket.terms.lease))


def entering_again_is_entering_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "find", lambda self, ticket: ticket if ticket.state != "new" else None)


def a_tombstone_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "why_buried", lambda self, ticket: None)


def who_was_known_leaves_no_tombstone(patch: pytest.MonkeyPatch) -> None:
    original = Leases.bury

    def mutated(self: Leases, ticket: Any, now: int, *why: Any) -> None:
        if self.find(ticket) is None:
            original(self, ticket, now, *why)

    patch.setattr(Leases, "bury", mutated)


def a_tombstone_lasts_for_one_lease(patch: pytest.MonkeyPatch) -> None:
    original = Leases.bury
    patch.setattr(
        Leases, "bury", lambda self, ticket, now, *why: original(self, ticket, now - ticket.terms.lease, *why)
    )


def a_tombstone_goes_with_its_partition(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "last_tombstone", lambda self: 0)


def a_lease_outlives_its_ticket(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: Leases, ticket: Any) -> None:
        del self._tickets[ticket.id]

    patch.setattr(Leases, "remove", mutated)


def a_pause_of_all_keys_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "paused", property(lambda self: self._paused))


MUTANTS = {
    "one permit too many": Mutant(one_permit_too_many, PLAIN),
    "a lowered limit is ignored": Mutant(a_lowered_limit_is_ignored, WIDE),
    "a lowered limit revokes": Mutant(a_lowered_limit_revokes, WIDE),
    "too large is kept": Mutant(too_large_is_kept, WIDE),
    "a newcomer barges": Mutant(a_newcomer_barges, WIDE),
    "the last is first": Mutant(the_last_is_first, PLAIN),
    "head starts are ignored": Mutant(head_starts_are_ignored, Setup((Ask(), Ask(), Ask(priority=1)))),
    "who is behind passes a large first": Mutant(who_is_behind_passes_a_large_first, WIDE),
    "an exclusive joins others": Mutant(an_exclusive_joins_others, EXCLUSIVELY),
    "others join an exclusive": Mutant(others_join_an_exclusive, EXCLUSIVELY),
    "several permits count as one": Mutant(several_permits_count_as_one, WIDE),
    "several permits are given back as one": Mutant(several_permits_are_given_back_as_one, WIDE),
    "leaving twice frees twice": Mutant(leaving_twice_frees_twice, PLAIN),
    "who leaves the queue stays in it": Mutant(who_leaves_the_queue_stays_in_it, PLAIN),
    "who only tries stays": Mutant(who_only_tries_stays, PLAIN),
    "forgets to advance after a release": Mutant(_forgets_to_advance("leave", "held"), PLAIN),
    "forgets to advance after a withdrawal": Mutant(_forgets_to_advance("leave", "waiting"), WIDE),
    "forgets to advance after an eviction": Mutant(_forgets_to_advance("evict"), PLAIN),
    "forgets to advance after a change of the limit, or a pause": Mutant(
        _forgets_to_advance("settle"), PLAIN
    ),
    "a token repeats": Mutant(a_token_repeats, PLAIN),
    "a partition is forgotten too soon": Mutant(a_partition_is_forgotten_too_soon, WIDE),
    "a partition is never forgotten": Mutant(a_partition_is_never_forgotten, PLAIN),
    "a pace is forgotten with its partition": Mutant(a_partition_is_forgotten_too_soon, PACED),
    "what an operator set is forgotten": Mutant(what_an_operator_set_is_forgotten, PLAIN),
    "a pause is ignored": Mutant(a_pause_is_ignored, PLAIN),
    "a pause of all keys is ignored": Mutant(a_pause_of_all_keys_is_ignored, Setup(ONES, pauses=("guard",))),
    "the pace is ignored": Mutant(the_pace_is_ignored, PACED),
    "the pace stands still": Mutant(the_pace_stands_still, PACED),
    "a quiet time saves up bursts": Mutant(a_quiet_time_saves_up_bursts, ROOMY),
    "a pace's opening is not due": Mutant(nothing_is_due, PACED),
    "the end of a lease is not due": Mutant(nothing_is_due, LEASED),
    "the queue is one longer": Mutant(the_queue_is_one_longer, Setup(ONES, max_waiting=1)),
    "a full queue refuses the first": Mutant(
        a_full_queue_refuses_the_first, Setup(ONES, max_waiting=1, order="lifo")
    ),
    "who is turned away isn't told": Mutant(who_is_turned_away_is_not_told, PLAIN),
    "expiry extends": Mutant(expiry_extends, LEASED),
    "who expires keeps its permit": Mutant(who_expires_keeps_its_permit, LEASED),
    "who expires passes nothing on": Mutant(who_expires_passes_nothing_on, LEASED),
    "a renewal comes before the expiry": Mutant(a_renewal_comes_before_the_expiry, LEASED),
    "a renewal resurrects": Mutant(a_renewal_resurrects, LEASED),
    "a renewal extends by two leases": Mutant(a_renewal_extends_by_two_leases, LEASED),
    "entering again is entering anew": Mutant(entering_again_is_entering_anew, LEASED),
    "a tombstone is ignored": Mutant(a_tombstone_is_ignored, LATE),
    "who was known leaves no tombstone": Mutant(who_was_known_leaves_no_tombstone, LATE),
    "a tombstone lasts for one lease": Mutant(a_tombstone_lasts_for_one_lease, LATE),
    "a tombstone goes with its partition": Mutant(a_tombstone_goes_with_its_partition, LATE),
    "a lease outlives its ticket": Mutant(a_lease_outlives_its_ticket, LEASED),
}
