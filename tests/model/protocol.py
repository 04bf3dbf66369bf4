"""Two clients, one server and the network between them: all that may happen to what they say.

The clients are `asyncguard.backends.claims` with a driver that sends what `RedisBackend` sends, the server
is `asyncguard.admission`. Each is a pure function of its state and what it is told, so a state of the whole is
a tuple of small ones, of which each is worked out once.
"""

from __future__ import annotations

import io
import pickle
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from world import SHARED, Violation

from asyncguard.admission import Admission
from asyncguard.backends.claims import Claims
from asyncguard.clock import TICKS_PER_MICROSECOND
from asyncguard.ticket import Declaration, Rules, Terms, new_ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asyncguard.ticket import Ticket

STEP: Final = 100 * TICKS_PER_MICROSECOND
"""A step of time, in ticks of the server's clock; the clients' clocks go 1 % slower or faster."""
LEASE: Final = 2 * STEP
START: Final = 50 * STEP
BEGINS: Final = (1_000 * STEP, 1_007 * STEP)
"""Where the clocks of the clients stand: no two are compared."""
LATEST: Final = 4
"""Steps of time after which nothing of what was sent arrives any more: two leases."""
_TERMS = Terms(Declaration("guard", Rules(limit=1, max_waiting=None)), lease=LEASE)
_OVER = ("released", "withdrawn", "refused", "lost")
_LEGAL = {
    "new": {"new", "waiting", "held", *_OVER},
    "waiting": {"waiting", "held", *_OVER},
    "held": {"held", "released", "lost"},
}
_ROUNDS: Final = 6


class Row(NamedTuple):
    """What the server says of one ticket."""

    id: str
    state: str
    arrival: int = 0
    granted: int = 0


class Request(NamedTuple):
    """What a client sends; the same one may be sent again."""

    who: int
    what: str
    ids: tuple[str, ...]
    sent: int
    """By the client's clock: the first time."""
    since: int = 0
    born: int = 0
    """By the world's: when this copy was."""


class Answer(NamedTuple):
    """What comes back."""

    request: Request
    rows: tuple[Row, ...]
    decided: tuple[Row, ...]
    born: int


class Notice(NamedTuple):
    """What one client is told because of another's request, or of time."""

    who: int
    row: Row
    born: int


class Step(NamedTuple):
    """Something that happens."""

    what: str
    who: int = -1
    about: Any = None


@dataclass(frozen=True)
class Setup:
    """What may happen to whom."""

    steps: tuple[str, ...] = ("leave", "renew")
    """What clients do besides entering."""
    tickets: tuple[int, int] = (1, 1)
    """How many each client enters, one after the other or at once."""
    rates: tuple[int, int] = (100, 100)
    """Ticks of each client's clock, in thousands, for each step of time."""
    resends: int = 0
    """How many requests are sent again, as no answer came."""
    duplicates: int = 0
    """How many notices come twice."""
    crashes: int = 0
    stalls: int = 0
    """How often a client stands still."""
    losses: int = 0
    """How often the server loses its data."""
    ticks: int = 4
    """Steps of time that are followed."""
    depth: int = 12
    """How many steps are followed, from after those of `begins`."""
    begins: tuple[Step, ...] = ()


# --- a client --------------------------------------------------------------------------------------


def write(ticket: Ticket, row: Any) -> None:
    """Write into a ticket what a row says of it."""
    ticket.state = row.state
    if row.granted:
        ticket.granted = row.granted


@final
class Client:
    """What `RedisBackend` does about its claims, without threads, loops and connections.

    Its methods go by that one's names; what each gives are the requests that are sent.
    """

    def __init__(self, who: int) -> None:
        self.who = who
        self.claims = Claims(LEASE, 0, write)
        self.tickets: list[Ticket] = []
        self.states: list[str] = []
        """What was seen of them."""
        self.unanswered: dict[tuple[str, tuple[str, ...], int], int] = {}
        """Requests, by all but since: that."""
        self.renewed = -1
        self.is_running = True

    def enter(self, now: int) -> list[Request]:
        ticket = new_ticket(f"{self.who}.{len(self.tickets)}", _TERMS)
        self.tickets.append(ticket)
        self.states.append("new")
        self.claims.enter(ticket, now)
        return [self._send("enter", (str(ticket.id),), now)]

    def leave(self, ticket_id: str, now: int) -> list[Request]:
        claim = self.claims.leave(ticket_id)
        if claim is None:
            return []
        ticket = claim.ticket
        ticket.state = "released" if ticket.state == "held" else "withdrawn"
        return [self._send("leave", (ticket_id,), now)]

    def renew(self, now: int) -> list[Request]:
        """Renew all, once the last renewal is answered, or has failed."""
        self.renewed = now
        self.unanswered = {
            key: since for key, since in self.unanswered.items() if key[0] != "renew" or key[2] == now
        }
        if any(what == "renew" for what, _, _ in self.unanswered):
            return []
        ids = tuple(
            str(claim.ticket.id) for claim in self.claims.all() if claim.ticket.state in ("waiting", "held")
        )
        return [self._send("renew", ids, now)] if ids else []

    def tick(self, now: int) -> list[Request]:
        sent = [self._send("leave", (str(ticket.id),), now) for ticket in self.claims.overdue(now)]
        late = [key for key in self.unanswered if key[2] + LEASE <= now]
        for key in late:  # given up, at the latest: the courier hasn't got hold of the server
            is_first = not self.unanswered.pop(key)
            if key[0] == "enter" and is_first:
                sent += self.leave(key[1][0], now)
        return sent

    def stall(self, now: int) -> list[Request]:
        """Stand still: nothing is seen to, though what arrives is heard when it wakes, or just before."""
        del now
        self.is_running = False
        return []

    def wake(self, now: int) -> list[Request]:
        self.is_running = True
        return self.tick(now)

    def resend(self, what: str, ids: tuple[str, ...], sent: int, now: int) -> list[Request]:
        """Send something again; when it was sent first is what counts."""
        del now
        return [Request(self.who, what, ids, sent, self.unanswered[what, ids, sent])]

    def answered(self, answer: Answer, now: int) -> list[Request]:
        request = answer.request
        key = (request.what, request.ids, request.sent)
        if key not in self.unanswered:
            return []
        sent: list[Request] = []
        is_lease = not self.unanswered.pop(key)
        for row in answer.rows:
            sent += self.hear(row, now, request.sent if is_lease else None)
        for row in answer.decided:
            sent += self.hear(row, now, None)
        return sent

    def hear(self, row: Row, now: int, sent: int | None = None) -> list[Request]:
        claim = self.claims.find(row.id)
        if claim is None:
            return []
        verdict = self.claims.hear(row, now, sent)
        if verdict == "renew":
            return [self._send("renew", (row.id,), now)]
        if verdict == "enter":
            return [self._send("enter", (row.id,), now, claim.since)]
        if verdict == "lost":
            return [self._send("leave", (row.id,), now)]
        return []

    def _send(self, what: str, ids: tuple[str, ...], now: int, since: int = 0) -> Request:
        self.unanswered[what, ids, now] = since
        return Request(self.who, what, ids, now, since)

    def check(self) -> None:
        """See that tickets only move forward."""
        for index, ticket in enumerate(self.tickets):
            was = self.states[index]
            _require(
                ticket.state in _LEGAL.get(was, {was}), f"a ticket that was {was} isn't {ticket.state} next"
            )
            self.states[index] = ticket.state

    def canonical(self) -> tuple[object, ...]:
        claims = self.claims
        return (
            self.who,
            tuple(ticket.state for ticket in self.tickets),
            tuple(getattr(ticket, "granted", 0) for ticket in self.tickets),
            tuple(
                (claim.ticket.id, claim.entered, claim.expires, claim.grant, claim.since)
                for claim in claims.all()
            ),
            tuple(sorted((at, claim.ticket.id) for at, _, claim in claims._deadlines)),
            tuple(sorted(self.unanswered.items())),
            self.renewed,
            self.is_running,
        )


class ClientView(NamedTuple):
    """What the world needs to know of a client."""

    entered: int
    claimed: tuple[str, ...]
    held: tuple[tuple[str, int, int], ...]
    """Tickets with their grants, and until when it believes in them."""
    may_renew: bool
    renewed: int
    unanswered: tuple[tuple[tuple[str, tuple[str, ...], int], int], ...]
    is_running: bool
    open: bool
    """Whether any ticket hasn't ended."""


def view_of_client(client: Client) -> ClientView:
    claims = client.claims.all()
    return ClientView(
        len(client.tickets),
        tuple(str(claim.ticket.id) for claim in claims),
        tuple(
            (str(claim.ticket.id), claim.ticket.granted, claim.expires)
            for claim in claims
            if claim.ticket.state == "held"
        ),
        any(claim.ticket.state in ("waiting", "held") for claim in claims),
        client.renewed,
        tuple(client.unanswered.items()),
        client.is_running,
        any(ticket.state not in _OVER for ticket in client.tickets),
    )


# --- the server ------------------------------------------------------------------------------------


@final
class Server:
    """The rules, with what redis.lua does beside them; and an account of its own."""

    def __init__(self, now: int) -> None:
        self.said: dict[str, Row] = {}
        """What is told of tickets that ended, but for those that left, as long as their tombstones stand."""
        self.stamps: dict[str, int] = {}
        self.last_token = 0
        self.over: frozenset[str] = frozenset()
        self.lose(now)

    def lose(self, now: int) -> None:
        """Lose all data."""
        self.admission = Admission(_TERMS.guard)
        self.said.clear()
        self.over = frozenset()
        self.reborn = now

    def take(self, request: Request, now: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """Take a step: the rows that are asked for, and what was decided beside."""
        partition = self.admission.partition(None, now)
        assert partition is not None
        waited = [ticket.id for ticket in partition.in_order()]
        held = {str(ticket.id) for ticket in partition.held()}
        tickets = [new_ticket(one, _TERMS) for one in request.ids]
        rows = []
        own: list[Ticket] = []
        if request.what == "enter":
            (ticket,) = own = tickets
            partition.enter(ticket, now)
            if ticket.state == "waiting" and request.since and ticket.id not in waited:
                self._put_back(ticket, request.since)
            rows.append(self._row(ticket))
        elif request.what == "leave":
            (ticket,) = tickets
            known = partition.find(str(ticket.id))
            partition.leave(ticket, now)
            said = self.said.pop(request.ids[0], None)
            rows.append(said or self._row(known or ticket))
        else:
            lost = partition.renew(tickets, now)
            for ticket in tickets:
                known = partition.find(str(ticket.id))
                if ticket in lost:
                    rows.append(self._what_is_said(ticket))
                else:
                    _require(known is not None, "what was renewed is there")
                    rows.append(self._row(known))
        changed = self.admission.take_changed()
        decided = tuple(self._row(ticket) for ticket in changed)
        for row in (*rows, *decided):
            if row.state in ("refused", "lost") and row.id not in self.said and row.id not in self.over:
                self.said[row.id] = row
        self._check(request, held, [*own, *changed])
        return tuple(rows), decided

    def _put_back(self, ticket: Ticket, since: int) -> None:
        """Give a ticket its old place, that its client says it had before the server lost its data."""
        partition = ticket.partition
        assert partition.queue is not None
        assert partition._leases is not None
        partition.queue.remove(ticket)
        partition._leases.remove(ticket)
        ticket.arrival = since
        partition._leases.add(ticket, ticket.expires - LEASE)
        rest = [other for other in partition.in_order() if other.arrival > since]
        for other in rest:
            partition.queue.remove(other)
        for other in (ticket, *rest):
            partition.queue.add(other)

    def _row(self, ticket: Any) -> Row:
        state = "gone" if ticket.state == "new" else ticket.state
        live = state in ("waiting", "held")
        return Row(
            str(ticket.id), state, ticket.arrival if live else 0, ticket.granted if state == "held" else 0
        )

    def _what_is_said(self, ticket: Ticket) -> Row:
        partition = self.admission.partition(None, 0)
        assert partition is not None
        leases = partition._leases
        is_buried = leases is not None and leases.why_buried(ticket) is not None
        said = self.said.get(str(ticket.id))
        return said if is_buried and said is not None else Row(str(ticket.id), "gone")

    def _check(self, request: Request, held: set[str], moved: list[Ticket]) -> None:
        partition = self.admission.partition(None, 0)
        assert partition is not None
        holders = {str(ticket.id): ticket for ticket in partition.held()}
        waiting = {str(ticket.id): ticket for ticket in partition.in_order()}
        _require(len(holders) <= 1, "no more permits are held than there are")
        for ticket in moved:
            if ticket.state in ("waiting", "held"):
                self.stamps.setdefault(str(ticket.id), ticket.arrival)
        granted = {t.granted: t for t in moved if t.state == "held" and str(t.id) not in held}
        for _, ticket in sorted(granted.items()):
            token = self.admission.token(ticket)
            _require(token > self.last_token, "tokens grow")
            self.last_token = token
            for other in waiting.keys() - (request.ids if request.what == "enter" else ()):
                _require(
                    self.stamps[str(ticket.id)] < self.stamps[other],
                    "a ticket that waited keeps its place",
                )
        live = {*holders, *waiting}
        _require(not live & self.over, "a ticket that ended doesn't come back")
        ended = {str(ticket.id) for ticket in moved if ticket.state in _OVER}
        if request.what == "leave":
            ended.update(request.ids)
            _require(not live & ended, "who left is gone")
        self.over |= ended - live
        _require(not waiting or bool(holders), "no permit is free while anybody waits")

    def canonical(self) -> tuple[object, ...]:
        partition = self.admission.partition(None, 0)
        assert partition is not None
        leases = partition._leases
        return (
            tuple((t.id, t.arrival, t.granted, t.expires) for t in partition.held()),
            tuple((t.id, t.arrival, t.expires) for t in partition.in_order()),
            tuple(leases._tombstones.items()) if leases is not None else (),
            partition.next_grant,
            partition.last_arrival,
            tuple(sorted(self.said.items())),
            tuple(sorted(self.stamps.items())),
            self.last_token,
            tuple(sorted(self.over)),
            self.reborn,
        )


class ServerView(NamedTuple):
    """What the world needs to know of the server."""

    held: tuple[tuple[str, int], ...]
    """Tickets, and when their leases end."""
    waiting: tuple[str, ...]
    reborn: int


def view_of_server(server: Server) -> ServerView:
    partition = server.admission.partition(None, 0)
    assert partition is not None
    return ServerView(
        tuple((str(ticket.id), ticket.expires) for ticket in partition.held()),
        tuple(str(ticket.id) for ticket in partition.in_order()),
        server.reborn,
    )


# --- all of it -------------------------------------------------------------------------------------


class State(NamedTuple):
    """All there is at a moment; machines are numbers of states that were met."""

    time: int
    server: int
    clients: tuple[int, int]
    """-1: it crashed."""
    requests: frozenset[Request]
    answers: frozenset[Answer]
    notices: frozenset[Notice]
    resends: int
    duplicates: int
    crashes: int
    stalls: int
    losses: int


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Violation(rule)


def _freeze(machine: object) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = SHARED
    pickler.dump(machine)
    return buffer.getvalue()


class _Machines:
    """States of a kind of machine that were met, by number; what is asked of one is worked out once."""

    def __init__(self, view: Callable[[Any], Any]) -> None:
        self._view = view
        self._frozen: list[bytes] = []
        self._numbers: dict[object, int] = {}
        self.views: list[Any] = []
        self._known: dict[object, tuple[int, Any]] = {}

    def add(self, machine: Any) -> int:
        canonical = machine.canonical()
        number = self._numbers.get(canonical)
        if number is None:
            number = self._numbers[canonical] = len(self._frozen)
            self._frozen.append(_freeze(machine))
            self.views.append(self._view(machine))
        return number

    def run(self, number: int, what: str, *args: Any) -> tuple[int, Any]:
        key = (number, what, args)
        known = self._known.get(key)
        if known is None:
            machine = pickle.loads(self._frozen[number])  # noqa: S301  # our own
            result = getattr(machine, what)(*args)
            check = getattr(machine, "check", None)
            if check is not None:
                check()
            known = self._known[key] = (self.add(machine), result)
        return known


class Explored(NamedTuple):
    """How far the exploration went."""

    states: int
    steps: int


@final
class Exploration:
    """All that may happen in a setup, breadth first, so that what breaks a rule is a shortest story."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._servers = _Machines(view_of_server)
        self._clients = _Machines(view_of_client)
        self._drained: set[State] = set()
        self._settled: set[State] = set()
        self._arrived: dict[State, State] = {}

    def run(self) -> Explored:
        """Take every step from every state, and drain every state.

        Raises:
            Violation: a rule was broken; the steps that led there are its notes.
        """
        setup = self.setup
        state = self._first()
        story: Any = None
        for step in setup.begins:
            state, story = self._try(state, step, story), (step, story)
        seen = {state}
        ahead: deque[tuple[State, int, Any]] = deque([(state, 0, story)])
        taken = 0
        while ahead:
            state, depth, story = ahead.popleft()
            self._drain(state, story)
            if depth == setup.depth:
                continue
            for step in self._steps(state):
                after = self._try(state, step, story)
                taken += 1
                if after not in seen:
                    seen.add(after)
                    ahead.append((after, depth + 1, (step, story)))
        return Explored(len(seen), taken)

    def _first(self) -> State:
        setup = self.setup
        none: frozenset[Any] = frozenset()
        clients = (self._clients.add(Client(0)), self._clients.add(Client(1)))
        server = self._servers.add(Server(START))
        faults = (setup.resends, setup.duplicates, setup.crashes, setup.stalls, setup.losses)
        return State(0, server, clients, none, none, none, *faults)

    def _now(self, who: int, time: int) -> int:
        return BEGINS[who] + time * self.setup.rates[who] * TICKS_PER_MICROSECOND

    # --- what may happen -----------------------------------------------------------------------

    def _steps(self, state: State) -> Iterator[Step]:
        setup = self.setup
        for who, number in enumerate(state.clients):
            if number < 0:
                continue
            view = self._clients.views[number]
            if state.crashes:
                yield Step("crash", who)
            if not view.is_running:
                yield Step("wake", who)
                continue
            if view.entered < setup.tickets[who]:
                yield Step("enter", who)
            for one in view.claimed if "leave" in setup.steps else ():
                yield Step("leave", who, one)
            if view.may_renew and "renew" in setup.steps and view.renewed < self._now(who, state.time):
                yield Step("renew", who)
            if state.stalls and view.claimed:
                yield Step("stall", who)
            if state.resends:
                for copy in self._copies(state, who):
                    if copy not in state.requests:
                        yield Step("resend", who, (copy.what, copy.ids, copy.sent))
        for request in state.requests:
            yield Step("deliver", request.who, request)
        for answer in state.answers:
            yield Step("answer", answer.request.who, answer)
        for notice in state.notices:
            yield Step("notice", notice.who, notice)
            if state.duplicates:
                yield Step("notice twice", notice.who, notice)
        if state.time < setup.ticks:
            yield Step("tick")
            if state.losses:
                yield Step("lose")

    def apply(self, state: State, step: Step) -> State:
        """Have it happen, and check what the protocol promises.

        Raises:
            Violation: a rule was broken.
        """
        what, who, about = step
        time = state.time
        if what == "settle":
            after = self._deliver_all(state, ends=False)
        elif what == "tick" or what == "lose":
            after = self._pass(state, loses=what == "lose")
        elif what == "crash":
            after = self._with_client(state, who, -1)._replace(
                crashes=state.crashes - 1,
                answers=frozenset(one for one in state.answers if one.request.who != who),
                notices=frozenset(one for one in state.notices if one.who != who),
            )
        elif what == "stall" or what == "wake":
            after = self._client(state, who, "stall" if what == "stall" else "wake", self._now(who, time))
            after = after._replace(stalls=state.stalls - (what == "stall"))
        elif what == "linger":  # what was sent long ago, on a connection that is given up
            after = state._replace(requests=state.requests | {about})
        elif what == "resend":
            after = self._client(state, who, "resend", *about, self._now(who, time))
            after = after._replace(resends=state.resends - 1)
        elif what == "deliver":
            after = self._deliver(state, about)
        elif what == "answer":
            after = self._client(state, who, "answered", about, self._now(who, time))
            after = self._check_it_was_true(state, after, step)._replace(answers=after.answers - {about})
        elif what == "notice":
            after = self._client(state, who, "hear", about.row, self._now(who, time))
            after = self._check_it_was_true(state, after, step)._replace(notices=after.notices - {about})
        elif what == "notice twice":
            after = self._client(state, who, "hear", about.row, self._now(who, time))
            after = self._check_it_was_true(state, after, step)._replace(duplicates=state.duplicates - 1)
        elif what == "leave":
            after = self._client(state, who, "leave", about, self._now(who, time))
        else:
            after = self._client(state, who, what, self._now(who, time))
        self._check(after)
        return after

    def _with_client(self, state: State, who: int, number: int) -> State:
        one, other = state.clients
        return state._replace(clients=(number, other) if who == 0 else (one, number))

    def _client(self, state: State, who: int, what: str, *args: Any) -> State:
        """Have a client do something, and what it sends be on its way."""
        number, sent = self._clients.run(state.clients[who], what, *args)
        after = self._with_client(state, who, number)
        if sent:
            copies = (request._replace(born=state.time) for request in sent)
            after = after._replace(requests=after.requests.union(copies))
        if number != state.clients[who]:
            after = self._forget_what_is_ignored(after, who)
        return after

    def _forget_what_is_ignored(self, state: State, who: int) -> State:
        """Leave out what a client wouldn't heed, now or later."""
        answers = frozenset(
            one for one in state.answers if one.request.who != who or self._is_heeded(state, one)
        )
        view = self._clients.views[state.clients[who]]
        notices = frozenset(one for one in state.notices if one.who != who or one.row.id in view.claimed)
        if answers != state.answers or notices != state.notices:
            state = state._replace(answers=answers, notices=notices)
        return state

    def _is_heeded(self, state: State, answer: Answer) -> bool:
        request = answer.request
        number = state.clients[request.who]
        if number < 0:
            return False
        view = self._clients.views[number]
        key = (request.what, request.ids, request.sent)
        return any(key == known for known, _ in view.unanswered) and any(
            row.id in view.claimed for row in (*answer.rows, *answer.decided)
        )

    def _deliver(self, state: State, request: Request) -> State:
        now = START + state.time * STEP
        asked = request._replace(born=0)
        number, (rows, decided) = self._servers.run(state.server, "take", asked, now)
        after = state._replace(server=number, requests=state.requests - {request})
        answer = Answer(asked, rows, tuple(row for row in decided if _whose(row) == request.who), state.time)
        if self._is_heeded(after, answer):
            after = after._replace(answers=after.answers | {answer})
        notices = []
        for row in decided:
            who = _whose(row)
            client = after.clients[who]
            if who != request.who and client >= 0 and row.id in self._clients.views[client].claimed:
                notices.append(Notice(who, row, state.time))
        return after._replace(notices=after.notices.union(notices)) if notices else after

    def _pass(self, state: State, *, loses: bool) -> State:
        """Have a step of time pass, at the end of which whoever runs looks at its clock."""
        time = state.time + 1
        state = state._replace(
            time=time,
            requests=frozenset(one for one in state.requests if time - one.born < LATEST),
            answers=frozenset(one for one in state.answers if time - one.born < LATEST),
            notices=frozenset(one for one in state.notices if time - one.born < LATEST),
        )
        if loses:
            server, _ = self._servers.run(state.server, "lose", START + time * STEP)
            state = state._replace(server=server, losses=state.losses - 1)
        for who, number in enumerate(state.clients):
            if number >= 0 and self._clients.views[number].is_running:
                state = self._client(state, who, "tick", self._now(who, time))
        return state

    # --- what is promised ----------------------------------------------------------------------

    def _check(self, state: State) -> None:
        server = self._servers.views[state.server]
        now = START + state.time * STEP
        believe = []
        for who, number in enumerate(state.clients):
            if number < 0:
                continue
            view = self._clients.views[number]
            for one, granted, expires in view.held:
                if not view.is_running and expires <= self._now(who, state.time):
                    continue
                if granted < server.reborn:
                    _require(now < server.reborn + LEASE, "what the server lost is over within a lease")
                    continue
                believe.append(one)
                ends = dict(server.held).get(one, 0)
                _require(now < ends, "a client is told before its permit may pass on")
        _require(len(believe) <= 1, "no two hold what only one may")

    def _check_it_was_true(self, before: State, after: State, step: Step) -> State:
        """See that nobody was thrown out by hearsay; what the server said before it lost its data may do that."""
        views, server = self._clients.views, self._servers.views[after.server]
        if START + step.about.born * STEP < server.reborn:
            return after
        believes = {one for one, _, _ in views[after.clients[step.who]].held}
        held = {one for one, _ in server.held}
        for one, granted, _ in views[before.clients[step.who]].held:
            is_forgotten = granted < server.reborn
            _require(
                one in believes or one not in held or is_forgotten, "what is old takes nothing from who holds"
            )
        return after

    def _drain(self, state: State, story: Any) -> None:
        """Have nothing go wrong from here, and check that nothing is stuck."""
        none: frozenset[Any] = frozenset()
        state = state._replace(crashes=0, stalls=0, losses=0, resends=0, duplicates=0)
        for begin in (state, state._replace(requests=none, answers=none, notices=none)):
            if begin not in self._drained:
                self._drained.add(begin)
                self._try(begin, Step("drain", about=begin is state), story, self._settle)

    def _settle(self, state: State) -> State:
        """Have all arrive that is on its way, or is sent from now on, and work end once it began."""
        passed = []
        for _ in range(_ROUNDS):
            for who, number in enumerate(state.clients):
                if number >= 0 and not self._clients.views[number].is_running:
                    state = self.apply(state, Step("wake", who))
            state = self._resend(state)
            for who, number in enumerate(state.clients):
                if number >= 0 and self._clients.views[number].may_renew:
                    state = self.apply(state, Step("renew", who))
            state = self._deliver_all(state, ends=True)
            if state in self._settled:
                break
            passed.append(state)
            if all(number < 0 or not self._clients.views[number].open for number in state.clients):
                break
            state = self.apply(state, Step("tick"))
        else:
            raise Violation("whoever waits is served, or refused, within a lease or so")
        self._settled.update(passed)
        return state

    def _deliver_all(self, state: State, *, ends: bool) -> State:
        """Have all arrive that is on its way, and, if it `ends`, the work that begins with it."""
        passed = []
        while True:
            if ends and (known := self._arrived.get(state)) is not None:
                state = known
                break
            passed.append(state)
            step = self._next_arrival(state)
            if step is None and ends:
                step = self._next_end(state)
            if step is None:
                break
            state = self.apply(state, step)
        if ends:
            self._arrived.update(dict.fromkeys(passed, state))
        return state

    def _next_arrival(self, state: State) -> Step | None:
        if state.requests:
            request = min(state.requests)
            return Step("deliver", request.who, request)
        if state.answers:
            answer = min(state.answers)
            return Step("answer", answer.request.who, answer)
        if state.notices:
            notice = min(state.notices)
            return Step("notice", notice.who, notice)
        return None

    def _next_end(self, state: State) -> Step | None:
        for who, number in enumerate(state.clients):
            held = number >= 0 and self._clients.views[number].held
            if held:
                return Step("leave", who, held[0][0])
        return None

    def _resend(self, state: State) -> State:
        """Have all be sent again that wasn't answered, as on a new connection."""
        for who, number in enumerate(state.clients):
            if number >= 0:
                state = state._replace(requests=state.requests.union(self._copies(state, who)))
        return state

    def _copies(self, state: State, who: int) -> Iterator[Request]:
        """What may be sent again: an enter not once its leave has been sent, which would follow it."""
        view = self._clients.views[state.clients[who]]
        for (what, ids, sent), since in view.unanswered:
            if what != "enter" or ids[0] in view.claimed:
                yield Request(who, what, ids, sent, since, state.time)

    def _try(
        self, state: State, step: Step, story: Any, happens: Callable[[State], State] | None = None
    ) -> State:
        try:
            return happens(state) if happens is not None else self.apply(state, step)
        except Violation as violation:
            steps = [step]
            while story is not None:
                one, story = story
                steps.append(one)
            violation.add_note(f"in {self.setup}")
            violation.add_note("\n".join(f"- {_tell(one)}" for one in reversed(steps)))
            raise


def _whose(row: Row) -> int:
    return int(row.id.split(".")[0])


def _tell(step: Step) -> str:
    return " ".join(str(part) for part in step if part not in (None, -1))
