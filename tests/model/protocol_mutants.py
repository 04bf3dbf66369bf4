"""Small ways to get the protocol wrong, at a client or at the server: the exploration has to notice each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from protocol import BEGINS, Client, Request, Setup, Step

from asyncguard.admission import Partition
from asyncguard.backends import claims
from asyncguard.backends.claims import Claims
from asyncguard.leases import Leases

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

SLOW = (99, 100)
SETTLE = Step("settle")
QUEUE = (Step("enter", 0), SETTLE, Step("enter", 1), SETTLE)
ONE = Setup(rates=SLOW, tickets=(1, 0), resends=1)
LONG = Setup(rates=SLOW, tickets=(1, 0), ticks=5)
TWO = Setup(rates=SLOW, begins=(Step("enter", 0), Step("enter", 1)), depth=7)
PASSING = Setup(rates=(100, 99), duplicates=1, begins=QUEUE, depth=8)
OWN = Setup(rates=SLOW, tickets=(2, 0), begins=(Step("enter", 0), SETTLE, Step("enter", 0), SETTLE), depth=9)
LOST = Setup(losses=1, begins=QUEUE, depth=7)
LINE = Setup(
    tickets=(2, 2),
    losses=1,
    depth=6,
    begins=(Step("enter", 0), *QUEUE, Step("lose"), Step("enter", 1), SETTLE),
)
STALE = Setup(
    tickets=(2, 1),
    losses=1,
    begins=(
        *(Step("enter", 1), SETTLE, Step("enter", 0), SETTLE, Step("leave", 1, "1.0")),
        Step("deliver", 1, Request(1, "leave", ("1.0",), BEGINS[1])),
    ),
    depth=6,
)
LATE = Setup(
    losses=1,
    steps=("renew",),
    begins=(
        *(Step("enter", 0), SETTLE, Step("tick"), Step("renew", 0), SETTLE),
        *(Step("lose"), Step("enter", 1), SETTLE),
        *(Step("linger", 0, Request(0, "enter", ("0.0",), BEGINS[0], born=2)), SETTLE),
    ),
    ticks=5,
    depth=9,
)
ALONE = Setup(
    losses=1,
    crashes=1,
    steps=("renew",),
    begins=(Step("enter", 1), SETTLE, Step("enter", 0), SETTLE, Step("crash", 1)),
    ticks=5,
    depth=13,
)


class Mutant(NamedTuple):
    """A mistake, and where it shows."""

    make: Callable[[pytest.MonkeyPatch], None]
    setup: Setup


def _without_tombstones(owner: type, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def make(patch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)

        def mutated(self: Any, *args: Any, **kwargs: Any) -> Any:
            with patch.context() as inner:
                inner.setattr(Leases, "bury", lambda *_: None)
                return original(self, *args, **kwargs)

        patch.setattr(owner, name, mutated)

    return make


def tombstones_of_half_a_lease(patch: pytest.MonkeyPatch) -> None:
    original = Leases.bury

    def mutated(self: Leases, ticket: Any, now: int, reason: Any = "superseded") -> None:
        original(self, ticket, now - 3 * ticket.terms.lease // 2, reason)

    patch.setattr(Leases, "bury", mutated)


def a_late_notice_starts_work(patch: pytest.MonkeyPatch) -> None:
    original = Claims._move_on

    def mutated(self: Claims, claim: Any, row: Any, now: int) -> Any:
        return original(self, claim, row, min(now, claim.expires - 1))

    patch.setattr(Claims, "_move_on", mutated)


def a_renewal_revives_what_was_lost(patch: pytest.MonkeyPatch) -> None:
    original = Claims._lose

    def mutated(self: Claims, claim: Any, now: int) -> None:
        original(self, claim, now)
        self._claims[claim.ticket.id] = claim

    patch.setattr(Claims, "_lose", mutated)


def what_left_is_still_listened_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Claims, "leave", lambda self, ticket_id: self._claims.get(ticket_id))


def _heard_as(change: Callable[[int | None, int], int | None]) -> Callable[[pytest.MonkeyPatch], None]:
    def make(patch: pytest.MonkeyPatch) -> None:
        original = Claims.hear

        def mutated(self: Claims, row: Any, now: int, sent: int | None = None) -> Any:
            return original(self, row, now, change(sent, now))

        patch.setattr(Claims, "hear", mutated)

    return make


def the_last_sending_counts(patch: pytest.MonkeyPatch) -> None:
    def mutated(self: Client, what: str, ids: tuple[str, ...], sent: int, now: int) -> list[Request]:
        return [self._send(what, ids, now, self.unanswered.pop((what, ids, sent)))]

    patch.setattr(Client, "resend", mutated)


def a_notice_that_comes_first_is_a_lease(patch: pytest.MonkeyPatch) -> None:
    original = Claims._move_on

    def mutated(self: Claims, claim: Any, row: Any, now: int) -> Any:
        claim.expires = claim.expires or now + self.term
        return original(self, claim, row, now)

    patch.setattr(Claims, "_move_on", mutated)


def an_old_gone_throws_out(patch: pytest.MonkeyPatch) -> None:
    original = Claims._hear_it_is_gone

    def mutated(self: Claims, claim: Any, sent: int | None, now: int) -> Any:
        return original(self, claim, sent and now + 1, now)

    patch.setattr(Claims, "_hear_it_is_gone", mutated)


def _for_so_much_of_a_lease(per_mille: int) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(claims, "_PER_MILLE", per_mille)


def deadlines_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Claims, "overdue", lambda *_: [])


def an_old_answer_takes_a_grant_back(patch: pytest.MonkeyPatch) -> None:
    original = Claims.hear

    def mutated(self: Claims, row: Any, now: int, sent: int | None = None) -> Any:
        claim = self.find(row.id)
        if claim is not None and claim.ticket.state == "held" and row.state == "waiting":
            self._write(claim.ticket, row)
        return original(self, row, now, sent)

    patch.setattr(Claims, "hear", mutated)


def what_was_granted_late_is_not_renewed(patch: pytest.MonkeyPatch) -> None:
    original = Claims._move_on

    def mutated(self: Claims, claim: Any, row: Any, now: int) -> Any:
        was_new = claim.ticket.state == "new"
        verdict = original(self, claim, row, now)
        if verdict == "renew" and was_new:
            claim.ticket.state = "new"
        return verdict

    patch.setattr(Claims, "_move_on", mutated)


def what_was_decided_by_the_way_renews(patch: pytest.MonkeyPatch) -> None:
    original = Client.answered

    def mutated(self: Client, answer: Any, now: int) -> Any:
        return original(self, answer._replace(rows=answer.rows + answer.decided, decided=()), now)

    patch.setattr(Client, "answered", mutated)


def who_enters_again_is_last(patch: pytest.MonkeyPatch) -> None:
    original = Client._send
    patch.setattr(
        Client, "_send", lambda self, what, ids, now, since=0: original(self, what, ids, now, since and 0)
    )


def tokens_repeat(patch: pytest.MonkeyPatch) -> None:
    original = Partition._grant

    def mutated(self: Partition, ticket: Any, now: int) -> bool:
        self.next_grant = 0
        return original(self, ticket, now)

    patch.setattr(Partition, "_grant", mutated)


def a_renewal_revives_at_the_server(patch: pytest.MonkeyPatch) -> None:
    original = Partition.renew

    def mutated(self: Partition, tickets: Any, now: int) -> Any:
        lost = original(self, tickets, now)
        for ticket in lost:
            ticket.arrival, ticket.partition = now, self
            self._open_leases().add(ticket, now)
            self._grant(ticket, now)
        return []

    patch.setattr(Partition, "renew", mutated)


def a_release_frees_whoever_holds(patch: pytest.MonkeyPatch) -> None:
    original = Partition.leave

    def mutated(self: Partition, ticket: Any, now: int, *args: Any, **kwargs: Any) -> None:
        for holder in self.held():
            original(self, holder, now)
        original(self, ticket, now, *args, **kwargs)

    patch.setattr(Partition, "leave", mutated)


def leases_end_early(patch: pytest.MonkeyPatch) -> None:
    original = Leases.renew

    def mutated(self: Leases, ticket: Any, now: int) -> None:
        original(self, ticket, now - ticket.terms.lease // 2)

    patch.setattr(Leases, "renew", mutated)


def a_forgotten_grant_is_relied_on(patch: pytest.MonkeyPatch) -> None:
    original = Claims.hear

    def mutated(self: Claims, row: Any, now: int, sent: int | None = None) -> Any:
        claim = self.find(row.id)
        if claim is not None:
            claim.again = False
        return original(self, row, now, sent)

    patch.setattr(Claims, "hear", mutated)


def who_waits_there_may_hold_here(patch: pytest.MonkeyPatch) -> None:
    original = Claims.hear

    def mutated(self: Claims, row: Any, now: int, sent: int | None = None) -> Any:
        claim = self.find(row.id)
        if claim is not None and claim.ticket.state == "held" and row.state == "waiting":
            row = row._replace(state="held")
        return original(self, row, now, sent)

    patch.setattr(Claims, "hear", mutated)


def an_older_gone_throws_out(patch: pytest.MonkeyPatch) -> None:
    original = Claims._move_on

    def mutated(self: Claims, claim: Any, row: Any, now: int) -> Any:
        entered = claim.entered
        verdict = original(self, claim, row, now)
        claim.entered = entered
        return verdict

    patch.setattr(Claims, "_move_on", mutated)


def entering_again_is_a_lease(patch: pytest.MonkeyPatch) -> None:
    original = Client.answered

    def mutated(self: Client, answer: Any, now: int) -> Any:
        for key in self.unanswered:
            self.unanswered[key] = 0
        return original(self, answer, now)

    patch.setattr(Client, "answered", mutated)


MUTANTS = {
    # redis/redis-py#3847, #4258; pottery: cancelled after it was sent, it stays locked
    "leave is overtaken by enter": Mutant(_without_tombstones(Partition, "_find_or_bury"), ONE),
    "what expired comes back": Mutant(_without_tombstones(Partition, "_drop_expired"), ONE),
    "tombstones of half a lease": Mutant(tombstones_of_half_a_lease, ONE),
    "a notice after the deadline starts work": Mutant(a_late_notice_starts_work, PASSING),
    "a renewal revives what was lost": Mutant(a_renewal_revives_what_was_lost, ONE),
    "what left is still listened for": Mutant(what_left_is_still_listened_for, ONE),
    "the answer's arrival counts": Mutant(_heard_as(lambda sent, now: sent and now), ONE),
    # Elijas/token-throttle#21: a driver sends again what was answered
    "the last sending counts": Mutant(the_last_sending_counts, ONE),
    "a handoff is a lease": Mutant(_heard_as(lambda sent, now: now if sent is None else sent), PASSING),
    "a notice that comes first is a lease": Mutant(a_notice_that_comes_first_is_a_lease, TWO),
    "an old gone throws out": Mutant(an_old_gone_throws_out, ALONE),
    "a gone of before it was held throws out": Mutant(an_older_gone_throws_out, LOST),
    "a forgotten grant is relied on": Mutant(a_forgotten_grant_is_relied_on, STALE),
    "who waits there may hold here": Mutant(who_waits_there_may_hold_here, LATE),
    "entering again is a lease": Mutant(entering_again_is_a_lease, ALONE),
    "1.01 of a lease": Mutant(_for_so_much_of_a_lease(1010), ONE),
    "all of a lease": Mutant(_for_so_much_of_a_lease(1000), ONE),
    # redisson#4698, #5697, #7272; mithril-locks; node-redlock#309: the holder isn't told
    "deadlines are forgotten": Mutant(deadlines_are_forgotten, ONE),
    "an old answer takes a grant back": Mutant(an_old_answer_takes_a_grant_back, PASSING),
    "what was granted late isn't renewed": Mutant(what_was_granted_late_is_not_renewed, LONG),
    "what was decided by the way renews": Mutant(what_was_decided_by_the_way_renews, OWN),
    "who enters again is last": Mutant(who_enters_again_is_last, LINE),
    "tokens repeat": Mutant(tokens_repeat, OWN),
    # docket: a renewal brings back an evicted holder, above the limit
    "a renewal revives at the server": Mutant(a_renewal_revives_at_the_server, TWO),
    # py-cachify 3.1, redis-py 8.1, pottery, NoneGG/aredis#119
    "a release frees whoever holds": Mutant(a_release_frees_whoever_holds, TWO),
    "leases end early": Mutant(leases_end_early, ONE),
}
