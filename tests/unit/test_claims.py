"""What a client makes of what it hears, rule by rule."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from asyncguard.backends.claims import Claims
from asyncguard.ticket import Declaration, Rules, Terms, Ticket, new_ticket

LEASE, MARGIN = 1000, 90
TERM = 900
"""0.99 of a lease, less the margin."""
TERMS = Terms(Declaration("guard", Rules()), lease=LEASE)


class Row(NamedTuple):
    state: str
    arrival: int = 7
    id: str = "one"


def write(ticket: Ticket, row: Any) -> None:
    ticket.state = row.state


def state_of(ticket: Ticket) -> str:
    return ticket.state


@pytest.fixture
def claims() -> Claims:
    return Claims(LEASE, MARGIN, write)


@pytest.fixture
def ticket(claims: Claims) -> Ticket:
    """One that was sent to enter at tick 100."""
    ticket = new_ticket("one", TERMS)
    claims.enter(ticket, 100)
    return ticket


def test_a_ticket_is_known_until_it_leaves(claims: Claims, ticket: Ticket) -> None:
    claim = claims.find("one")
    assert claim is not None
    assert claim.ticket is ticket
    assert claims.all() == [claim]
    assert claims.leave("one") is claim
    assert claims.leave("one") is None
    assert len(claims) == 0
    assert claims.find("one") is None


def test_what_is_said_of_a_ticket_that_left_is_ignored(claims: Claims, ticket: Ticket) -> None:
    claims.leave("one")
    assert claims.hear(Row("held"), 110, 100) == "nothing"
    assert state_of(ticket) == "new"


def test_a_ticket_is_held_for_less_than_a_lease_from_when_it_was_sent(claims: Claims, ticket: Ticket) -> None:
    assert claims.hear(Row("held"), 500, 100) == "tell"
    assert state_of(ticket) == "held"
    assert claims.next_deadline == 100 + TERM
    assert claims.overdue(100 + TERM - 1) == []
    assert claims.overdue(100 + TERM) == [ticket]
    assert (ticket.state, ticket.reason, ticket.ended) == ("lost", "unavailable", 100 + TERM)
    assert claims.next_deadline is None


def test_what_was_lost_here_is_lost_for_good(claims: Claims, ticket: Ticket) -> None:
    # docket: renewal resurrects an evicted holder; redisson#4698: the holder isn't told
    claims.hear(Row("held"), 110, 100)
    claims.overdue(100 + TERM)
    assert claims.hear(Row("held"), 1001, 999) == "nothing"
    assert state_of(ticket) == "lost"


def test_a_renewal_counts_from_when_it_was_sent_and_takes_nothing_away(
    claims: Claims, ticket: Ticket
) -> None:
    claims.hear(Row("held"), 110, 100)
    assert claims.hear(Row("held"), 700, 400) == "nothing"
    assert claims.hear(Row("held"), 710, 300) == "nothing"  # an older one, late
    assert claims.overdue(100 + TERM) == []
    assert claims.overdue(400 + TERM) == [ticket]


def test_a_grant_is_heard_of_by_notice(claims: Claims, ticket: Ticket) -> None:
    assert claims.hear(Row("waiting"), 110, 100) == "nothing"
    assert state_of(ticket) == "waiting"
    assert claims.hear(Row("held"), 120) == "tell"
    assert claims.next_deadline == 100 + TERM  # a handoff extends nothing
    assert claims.hear(Row("held"), 130) == "nothing"  # the notice comes twice


def test_a_notice_before_the_answer_waits_for_it(claims: Claims, ticket: Ticket) -> None:
    assert claims.hear(Row("held"), 105) == "nothing"
    assert state_of(ticket) == "new"
    assert claims.hear(Row("waiting"), 110, 100) == "tell"
    assert state_of(ticket) == "held"


def test_a_notice_after_the_deadline_is_renewed_before_work_starts(claims: Claims, ticket: Ticket) -> None:
    # a try, then a subscription: what came between is seen late (redisson#5762, #6026, #7264)
    claims.hear(Row("waiting"), 110, 100)
    assert claims.hear(Row("held"), 100 + TERM) == "renew"
    assert state_of(ticket) == "waiting"
    assert claims.hear(Row("held"), 1020, 1010) == "tell"
    assert state_of(ticket) == "held"


def test_an_answer_after_the_deadline_has_the_ticket_wait_meanwhile(claims: Claims, ticket: Ticket) -> None:
    assert claims.hear(Row("held"), 100 + TERM, 100) == "renew"
    assert state_of(ticket) == "waiting"  # so that it is renewed again, should that fail


def test_an_answer_of_before_the_grant_takes_nothing_back(claims: Claims, ticket: Ticket) -> None:
    claims.hear(Row("waiting"), 110, 100)
    claims.hear(Row("held"), 300)
    assert claims.hear(Row("waiting"), 310, 200) == "nothing"
    assert state_of(ticket) == "held"
    assert claims.overdue(100 + TERM) == []  # it was believed in then


def test_who_waits_there_holds_nothing_here(claims: Claims, ticket: Ticket) -> None:
    claims.hear(Row("held"), 110, 100)
    assert claims.hear(Row("waiting"), 310, 200) == "lost"
    assert state_of(ticket) == "lost"


@pytest.mark.parametrize("state", ["refused", "lost"])
def test_what_was_decided_is_told(claims: Claims, ticket: Ticket, state: str) -> None:
    claims.hear(Row("waiting"), 110, 100)
    assert claims.hear(Row(state), 120) == "tell"
    assert state_of(ticket) == state
    assert len(claims) == 0


def test_a_holder_that_was_turned_out_has_lost(claims: Claims, ticket: Ticket) -> None:
    claims.hear(Row("held"), 110, 100)
    assert claims.hear(Row("refused"), 120) == "tell"
    assert state_of(ticket) == "lost"


def test_who_was_forgotten_enters_again_with_its_stamp(claims: Claims, ticket: Ticket) -> None:
    claims.hear(Row("waiting"), 110, 100)
    assert claims.hear(Row("gone", 0), 210, 200) == "enter"
    claim = claims.find("one")
    assert claim is not None
    assert (claim.since, claim.entered) == (7, 210)
    assert claims.hear(Row("gone", 0), 220, 205) == "nothing"  # asked for before
    assert claims.hear(Row("gone", 0), 230) == "nothing"
    assert state_of(ticket) == "waiting"


def test_a_grant_that_may_have_been_forgotten_is_asked_for(claims: Claims, ticket: Ticket) -> None:
    claims.hear(Row("waiting"), 110, 100)
    claims.hear(Row("gone", 0), 210, 200)
    assert claims.hear(Row("held"), 220) == "renew"
    assert claims.hear(Row("held"), 230, 205) == "renew"
    assert state_of(ticket) == "waiting"
    assert claims.hear(Row("held"), 240, 231) == "tell"


def test_a_holder_that_was_forgotten_has_lost(claims: Claims, ticket: Ticket) -> None:
    claims.hear(Row("held"), 110, 100)
    assert claims.hear(Row("gone", 0), 120, 105) == "nothing"  # asked for before the grant was known
    assert claims.hear(Row("gone", 0), 220, 200) == "lost"
    assert state_of(ticket) == "lost"


def test_who_has_no_answer_yet_is_not_gone(claims: Claims, ticket: Ticket) -> None:
    assert claims.hear(Row("gone", 0), 120, 110) == "nothing"
    assert state_of(ticket) == "new"


def test_deadlines_of_tickets_that_left_are_dropped(claims: Claims, ticket: Ticket) -> None:
    claims.hear(Row("held"), 110, 100)
    claims.leave("one")
    assert claims.overdue(5000) == []
    assert state_of(ticket) == "held"
    assert claims.next_deadline is None


def test_deadlines_take_no_more_room_than_tickets(claims: Claims, ticket: Ticket) -> None:
    for sent in range(100, 1100):
        claims.hear(Row("held"), 110, sent)
    assert len(claims._deadlines) <= 67
    assert claims.overdue(1099 + TERM) == [ticket]
