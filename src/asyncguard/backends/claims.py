"""What a client knows of its own tickets, where the backend believes in each for one lease: no I/O.

Answers and notices may come late, twice, or in another order than they were given. Here is what follows
from each, whatever came before: a ticket only ever moves forward, from new over waiting and held to its
end, and work goes on only while the backend surely believes in it. docs/assumptions.md says what that
rests on.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Literal, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.ticket import Ticket

Verdict = Literal["nothing", "tell", "renew", "enter", "lost"]
"""What a client does next about a ticket.

"tell": it was decided upon, and whoever waits or works is told. "renew": it was granted, but perhaps too
long ago to be believed in still: renew it, and the answer decides. "enter": the backend has forgotten that
it waits: enter again, with the stamp that `Claim.since` keeps, and so in its old place.
"""
_PER_MILLE: Final = 990
"""Of a lease, what passes here for sure before it has passed there: clocks' rates differ by 1 % at most."""


class Row(Protocol):
    """What a backend says of one ticket."""

    @property
    def id(self) -> int | str:
        """The ticket's."""
        ...

    @property
    def state(self) -> str:
        """That of a ticket; or `gone`: the backend knows nothing of it."""
        ...

    @property
    def arrival(self) -> int:
        """The backend's stamp of its arrival; 0: not told."""
        ...


@final
class Claim:
    """One ticket of the client's, from when it is about to enter until it has left, or was lost."""

    __slots__ = ("again", "entered", "expires", "grant", "since", "ticket")

    def __init__(self, ticket: Ticket, now: int) -> None:
        self.ticket = ticket
        self.entered = now
        """When it was last sent to enter, or its grant was relied on: what was asked before may miss it."""
        self.expires = 0
        """Until when the backend surely believes in it, as far as its answers say; 0: none came yet."""
        self.grant: Row | None = None
        """A grant that was heard of, and isn't relied on yet."""
        self.since = 0
        """The backend's stamp of its arrival."""
        self.again = False
        """Whether it entered again: a grant may be one that the backend has forgotten."""


@final
class Claims:
    """The tickets of one client, by id. Moments are ticks of the client's own clock.

    `lease` is for how long the backend believes in each, and `margin` what it takes to tell its work.
    `write` writes into a ticket what a row says of it.
    """

    def __init__(self, lease: int, margin: int, write: Callable[[Ticket, Row], None]) -> None:
        self.term = lease * _PER_MILLE // 1000 - margin
        """Ticks from when something was sent until what it achieved has to be done again, or is lost."""
        self._write = write
        self._claims: dict[int | str, Claim] = {}
        self._deadlines: list[tuple[int, int, Claim]] = []
        """Of claims that are held, by when they end, or sooner: a heap."""
        self._count = 0

    def __len__(self) -> int:
        return len(self._claims)

    def all(self) -> list[Claim]:
        """List them, in the order in which they entered."""
        return list(self._claims.values())

    def find(self, ticket_id: int | str) -> Claim | None:
        """Find the claim of a ticket that has neither left nor been lost."""
        return self._claims.get(ticket_id)

    def enter(self, ticket: Ticket, now: int) -> Claim:
        """Note that a ticket is about to be sent."""
        claim = self._claims[ticket.id] = Claim(ticket, now)
        return claim

    def leave(self, ticket_id: int | str) -> Claim | None:
        """Forget a ticket that leaves; whatever is said of it afterwards is ignored."""
        return self._claims.pop(ticket_id, None)

    def hear(self, row: Row, now: int, sent: int | None = None) -> Verdict:
        """Hear what a backend says of a ticket.

        `sent` is when that was sent to which this is the answer, the first time where it was sent again;
        None: it is a notice, which says that something was decided, but not when.
        """
        claim = self._claims.get(row.id)
        if claim is None:
            return "nothing"
        if row.state not in ("waiting", "held"):
            return self._hear_it_has_ended(claim, row, now, sent)
        ticket = claim.ticket
        if ticket.state == "held" and row.state == "waiting" and sent is not None and sent > claim.entered:
            self._lose(claim, now)
            return "lost"
        if sent is not None:
            claim.expires = max(claim.expires, sent + self.term)
        claim.since = row.arrival or claim.since
        if ticket.state == "held":
            if sent is not None:
                self._note_deadline(claim)
            return "nothing"
        if row.state == "held":
            if claim.again and (sent is None or sent < claim.entered):
                return "renew"
            claim.grant = row
        return self._move_on(claim, row, now)

    def _hear_it_has_ended(self, claim: Claim, row: Row, now: int, sent: int | None) -> Verdict:
        if row.state == "gone":
            return self._hear_it_is_gone(claim, sent, now)
        ticket = claim.ticket
        del self._claims[ticket.id]
        was_held = ticket.state == "held"
        self._write(ticket, row)
        if was_held:
            ticket.state = "lost"
        elif row.state == "lost":  # its lease ended while it waited: its process was stopped
            ticket.reason = "unavailable"
        return "tell"

    def _move_on(self, claim: Claim, row: Row, now: int) -> Verdict:
        ticket, grant = claim.ticket, claim.grant
        if grant is None:
            if ticket.state == "new":
                self._write(ticket, row)
            return "nothing"
        if not claim.expires:  # the answer, which says since when it is believed in, is on its way
            return "nothing"
        if now >= claim.expires:
            if ticket.state == "new":
                ticket.state = "waiting"  # for what decides about it, as far as one knows here
            return "renew"
        self._write(ticket, grant)
        claim.grant = None
        claim.entered = now
        self._note_deadline(claim)
        return "tell"

    def _hear_it_is_gone(self, claim: Claim, sent: int | None, now: int) -> Verdict:
        ticket = claim.ticket
        if sent is None or sent <= claim.entered or not claim.expires:
            return "nothing"  # it was asked for before it had entered
        if ticket.state == "held":
            self._lose(claim, now)
            return "lost"
        claim.grant = None
        claim.entered = now
        claim.again = True
        return "enter"

    def _note_deadline(self, claim: Claim) -> None:
        self._count += 1
        heapq.heappush(self._deadlines, (claim.expires, self._count, claim))
        if len(self._deadlines) > 2 * len(self._claims) + 64:
            self._deadlines = [
                (claim.expires, number, claim)
                for number, claim in enumerate(self._claims.values())
                if claim.ticket.state == "held"
            ]
            heapq.heapify(self._deadlines)
            self._count = len(self._deadlines)

    @property
    def next_deadline(self) -> int | None:
        """The tick at which to ask for `overdue`: the first held ticket may be lost by then."""
        return self._deadlines[0][0] if self._deadlines else None

    def overdue(self, now: int) -> list[Ticket]:
        """Take out the tickets that are held no more for sure: they are lost, whatever comes, and leave."""
        lost = []
        while self._deadlines and self._deadlines[0][0] <= now:
            claim = heapq.heappop(self._deadlines)[2]
            ticket = claim.ticket
            if self._claims.get(ticket.id) is not claim or ticket.state != "held":
                continue
            if claim.expires <= now:
                self._lose(claim, now)
                lost.append(ticket)
        return lost

    def _lose(self, claim: Claim, now: int) -> None:
        del self._claims[claim.ticket.id]
        claim.ticket.state = "lost"
        claim.ticket.reason = "unavailable"
        claim.ticket.ended = now
