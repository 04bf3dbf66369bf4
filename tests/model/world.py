"""Three clients and one partition, with an account of their own of what may happen: a world to explore.

Everything that the rules promise is checked after each step, against what the clients saw and not
against what the partition believes; what it believes is then compared with that.
"""

from __future__ import annotations

import io
import itertools
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asyncguard.admission import Admission, Partition
from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND
from asyncguard.statistics import Statistics
from asyncguard.ticket import EXCLUSIVE, Declaration, Rate, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asyncguard.errors import Reason
    from asyncguard.ticket import Order

KEY = "key"
UNIT: Final = TICKS_PER_MICROSECOND
"""Time goes in steps of a microsecond, so that grants in a row get ahead of the clock."""
EPOCH: Final = 1_000 * TICKS
START: Final = 50 * UNIT
PACE = Rate(1, per=2 * UNIT / TICKS)
BURST = Rate(1, per=2 * UNIT / TICKS, burst=2)
_LEGAL = {
    "new": {"new", "waiting", "held", "refused"},
    "waiting": {"waiting", "held", "withdrawn", "refused", "lost", "released"},
    "held": {"held", "released", "lost"},
}
_GRANTED = {("new", "held"), ("waiting", "held"), ("waiting", "released")}
"""The last: who leaves at the very moment of the grant."""
_AHEAD = 2 * UNIT
"""How far tokens get ahead of the clock before it ticks: else there would be no end of states."""
_DRAINS_WITHIN = 30
_IDLE_WITHIN: Final = 20 * UNIT


class Violation(AssertionError):
    """A rule was broken."""


class Ask(NamedTuple):
    """What one client asks for."""

    permits: int = 1
    priority: int = 0
    tenant: str = ""
    share: float = 1.0
    patience: int | None = None


@dataclass(frozen=True)
class Setup:
    """A partition, its clients, and what else may happen to them."""

    asks: tuple[Ask, ...] = (Ask(), Ask(), Ask())
    limit: int = 1
    order: Order = "fifo"
    max_waiting: int | None = 2
    rate: Rate | None = None
    lease: int = 0
    """Steps of time for which clients are believed in unheard; 0: none has a lease."""
    limits: tuple[int, ...] = ()
    """What an operator may set the limit to."""
    pauses: tuple[str, ...] = ()
    """What an operator may pause: the "key", the "guard"."""
    evicts: bool = False
    tries: bool = False
    """Whether clients may enter without waiting."""
    vanishes: bool = False
    """Whether clients with a lease may leave before their enter arrives."""
    depth: int = 1_000
    """How many steps are followed."""
    declaration: Declaration = field(init=False, hash=False, compare=False)
    terms: tuple[Terms, ...] = field(init=False, hash=False, compare=False)

    def __post_init__(self) -> None:
        rules = Rules(limit=self.limit, max_waiting=self.max_waiting, order=self.order, rate=self.rate)
        declaration = Declaration("guard", rules)
        terms = tuple(
            Terms(
                declaration,
                permits=ask.permits,
                priority=ask.priority * UNIT,
                tenant=ask.tenant,
                share=ask.share,
                patience=ask.patience,
                lease=self.lease * UNIT,
            )
            for ask in self.asks
        )
        object.__setattr__(self, "declaration", declaration)
        object.__setattr__(self, "terms", terms)


class Step(NamedTuple):
    """Something that happens, to the partition or one of its clients."""

    what: str
    who: int = -1
    value: int | str | None = None


@dataclass(slots=True)
class Client:
    """One of the three: its ticket, and when its enter, overtaken by its leave, is lost for good."""

    ticket: Ticket
    late_until: int | None = None


class World:
    """One state of the partition and its clients; `apply` takes it to the next, or says what broke."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.now = START
        self.admission = Admission(setup.declaration, EPOCH)
        self.clients = [Client(new_ticket(index, terms, KEY)) for index, terms in enumerate(setup.terms)]
        self.ids = len(self.clients)
        self.last_token = 0
        self.pace = 0
        """Tick at which the pace allows the next grant, if no burst is allowed."""
        self.limit: int | None = None
        self.paused: tuple[str, ...] = ()
        self.last_arrival = 0
        self.tombstones: dict[int | str, tuple[int, Reason]] = {}
        """Ids of tickets that ended: until which tick that is remembered, and what one is told."""

    # --- what may happen -----------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:  # noqa: PLR0912
        """All that may happen next."""
        setup = self.setup
        for who, client in enumerate(self.clients):
            ticket = client.ticket
            if client.late_until is not None:
                yield Step("late", who)
            elif ticket.state == "waiting" or ticket.state == "held":
                yield Step("leave", who)
                if ticket.state == "waiting":
                    yield Step("give_up", who)
                if setup.evicts:
                    yield Step("evict", who)
                if setup.lease:
                    yield Step("renew", who)
                    if ticket.expires > self.now:
                        yield Step("resend", who)
            elif self.ahead <= _AHEAD:
                yield Step("enter", who)
                if setup.tries:
                    yield Step("try", who)
                if setup.vanishes:
                    yield Step("vanish", who)
                if setup.vanishes and ticket.id in self.tombstones:
                    yield Step("again", who)
                if ticket.state == "lost":
                    yield Step("renew", who)
                if ticket.state != "new" and not setup.lease:
                    yield Step("leave", who)
        yield Step("tick")
        yield Step("advance")
        for limit in setup.limits:
            if limit != self.limit:
                yield Step("limit", value=limit)
        if self.limit is not None:
            yield Step("limit", value=None)
        for what in setup.pauses:
            yield Step("resume" if what in self.paused else "pause", value=what)

    def apply(self, step: Step) -> None:
        """Have it happen, and check all that the rules say about it.

        Raises:
            Violation: a rule was broken.
        """
        before = _Before(self)
        step = self._begin(step, before)
        partition = self._partition()
        getattr(self, f"_{step.what}")(step, partition)
        _Check(self, step, before, partition).run()
        for ticket, state in zip(self.tickets, before.states, strict=True):
            if ticket.terms.lease and ticket.state != state:
                self._bury_if_ended(ticket, step)
        waiting = [ticket.arrival for ticket in self.in_state("waiting")]
        self.last_arrival = max(self.last_arrival, *waiting, 0)
        self.admission.changed.clear()
        self.admission.retire(partition, self.now)
        self._check_retired(partition)

    def _begin(self, step: Step, before: _Before) -> Step:
        if step.what in {"enter", "try", "vanish"}:
            self.ids += 1
            client = self.clients[step.who]
            client.ticket = new_ticket(self.ids, self.setup.terms[step.who], KEY)
            before.states[step.who] = "new"
        return step

    def _partition(self) -> Partition:
        partition = self.admission.partition(KEY, self.now)
        _require(partition is not None, "a key finds its partition")
        assert partition is not None
        return partition

    def _enter(self, step: Step, partition: Partition) -> None:
        partition.enter(self.clients[step.who].ticket, self.now)

    def _try(self, step: Step, partition: Partition) -> None:
        partition.enter(self.clients[step.who].ticket, self.now, wait=False)

    def _leave(self, step: Step, partition: Partition, reason: Reason | None = None) -> None:
        ticket = self.clients[step.who].ticket
        if ticket.terms.lease:
            self._bury(ticket, "superseded")
        partition.leave(ticket, self.now, reason, finished=False)

    def _give_up(self, step: Step, partition: Partition) -> None:
        self._leave(step, partition, "timeout")

    def _vanish(self, step: Step, partition: Partition) -> None:
        """Leave before the enter arrives, which is still on its way."""
        self._leave(step, partition)
        client = self.clients[step.who]
        client.late_until, _ = self.tombstones[client.ticket.id]

    def _late(self, step: Step, partition: Partition) -> None:
        client = self.clients[step.who]
        partition.enter(client.ticket, self.now)
        client.late_until = None
        _require(client.ticket.state == "refused", "a late enter is refused")
        _require(client.ticket.reason == "superseded", "and told why")

    def _resend(self, step: Step, partition: Partition) -> None:
        ticket = self.clients[step.who].ticket
        again = new_ticket(ticket.id, ticket.terms, KEY)
        state = ticket.state
        partition.enter(again, self.now)
        if ticket.state == state:
            _require(again.state == state, "an enter sent again gets its first answer")
            _require(state != "held" or again.granted == ticket.granted, "and its first token")

    def _bury(self, ticket: Ticket, reason: Reason) -> None:
        self.tombstones[ticket.id] = (self.now + 2 * ticket.terms.lease, reason)

    def _bury_if_ended(self, ticket: Ticket, step: Step) -> None:
        own = step.who >= 0 and ticket is self.clients[step.who].ticket
        if ticket.state == "lost":
            self._bury(ticket, "evicted" if own and step.what == "evict" else "superseded")
            return
        left = own and step.what in {"late", "give_up"}
        if not left and ticket.state == "refused":
            self._bury(ticket, ticket.reason)

    def _again(self, step: Step, partition: Partition) -> None:
        """Have a copy of the enter arrive that was under way until now."""
        ticket = self.clients[step.who].ticket
        copy = new_ticket(ticket.id, ticket.terms, KEY)
        partition.enter(copy, self.now)
        _require(copy.state == "refused", "no ticket comes back")
        _require(copy.reason == self.tombstones[ticket.id][1], "and it is told the same again")

    def _renew(self, step: Step, partition: Partition) -> None:
        ticket = self.clients[step.who].ticket
        live = ticket.state in {"waiting", "held"} and ticket.expires > self.now
        lost = partition.renew([ticket], self.now)
        _require(lost == ([] if live else [ticket]), "a renewal names the lost, and only those")
        if live:
            _require(ticket.expires == self.now + ticket.terms.lease, "a renewal extends by one lease")

    def _evict(self, step: Step, partition: Partition) -> None:
        partition.evict(self.clients[step.who].ticket, self.now)

    def _advance(self, step: Step, partition: Partition) -> None:
        del step
        partition.advance(self.now)

    def _tick(self, step: Step, partition: Partition) -> None:
        del step
        due = partition.due(self.now)
        late = bool(self.overdue()) or self.fitting() is not None
        self.now += UNIT
        for client in self.clients:
            if client.late_until is not None and client.late_until <= self.now:
                client.late_until = None
        self.tombstones = {one: until for one, until in self.tombstones.items() if until[0] > self.now}
        idle = not self.overdue() and self.fitting() is None
        _require(idle or late or (due is not None and due <= self.now), "what time brings is due then")

    def _limit(self, step: Step, partition: Partition) -> None:
        assert step.value is None or isinstance(step.value, int)
        self.limit = step.value
        partition.configure(self.now, limit=step.value)

    def _pause(self, step: Step, partition: Partition) -> None:
        self._set_paused(step, partition, paused=True)

    def _resume(self, step: Step, partition: Partition) -> None:
        self._set_paused(step, partition, paused=False)

    def _set_paused(self, step: Step, partition: Partition, *, paused: bool) -> None:
        assert isinstance(step.value, str)
        self.paused = tuple(what for what in self.paused if what != step.value)
        if paused:
            self.paused = tuple(sorted((*self.paused, step.value)))
        (partition if step.value == "key" else self.admission).configure(self.now, paused=paused)

    # --- what the clients know -----------------------------------------------------------------

    @property
    def tickets(self) -> list[Ticket]:
        return [client.ticket for client in self.clients]

    def in_state(self, state: str) -> list[Ticket]:
        return [client.ticket for client in self.clients if client.ticket.state == state]

    @property
    def most(self) -> int:
        """The limit that stands."""
        return self.limit or self.setup.limit

    @property
    def in_use(self) -> int:
        return sum(ticket.terms.permits or self.most for ticket in self.in_state("held"))

    @property
    def ahead(self) -> int:
        """Ticks until the clock has passed the last token and the last arrival."""
        return max(0, self.last_token * UNIT - EPOCH + UNIT - self.now, self.last_arrival + 1 - self.now)

    def place(self, ticket: Ticket) -> tuple[int, ...]:
        """Where a waiting ticket stands: the lowest is first. With fair order, among its tenant's."""
        if self.setup.order == "lifo":
            return (-ticket.arrival,)
        return (ticket.arrival - ticket.terms.priority, ticket.arrival)

    def overdue(self) -> list[Ticket]:
        """Tickets whose lease has ended and that nobody has dropped yet."""
        live = self.in_state("waiting") + self.in_state("held")
        return [ticket for ticket in live if ticket.terms.lease and ticket.expires <= self.now]

    def due(self) -> int | None:
        """When time next brings something."""
        live = self.in_state("waiting") + self.in_state("held")
        ticks = [ticket.expires for ticket in live if ticket.terms.lease]
        rate = self.setup.rate
        if self.in_state("waiting") and not self.paused and rate and self.pace - rate.tolerance > self.now:
            ticks.append(self.pace - rate.tolerance)
        return min(ticks, default=None)

    def open(self) -> bool:
        """Whether pause and pace let anybody in now."""
        rate = self.setup.rate
        return not self.paused and (rate is None or self.pace - rate.tolerance <= self.now)

    def fitting(self) -> Ticket | None:
        """The first waiting ticket, if it could be granted now."""
        waiting = self.in_state("waiting")
        if not waiting or not self.open():
            return None
        held = self.in_state("held")
        firsts = [min(waiting, key=self.place)]
        if self.setup.order == "fair":
            tenants = {
                ticket.terms.tenant: ticket for ticket in sorted(waiting, key=self.place, reverse=True)
            }
            firsts = [*tenants.values()]
        for first in firsts:
            permits = first.terms.permits
            fits = not held if permits == EXCLUSIVE else self.in_use + permits <= self.most
            if not fits or any(ticket.terms.permits == EXCLUSIVE for ticket in held):
                return None  # with fair order any of them may be the first
        return firsts[0]

    def _check_retired(self, partition: Partition) -> None:
        kept = self.admission.partitions.get(KEY)
        if kept is None:
            _require(not self.in_state("held") + self.in_state("waiting"), "what is in use is kept")
            _require(self.limit is None and "key" not in self.paused, "what an operator set is kept")
            _require(self.setup.rate is None or self.pace <= self.now, "a pace is kept")
            _require(not self.tombstones, "tombstones are kept")
        elif partition.idle_from(self.now) == self.now:
            _require(kept.lingers, "what is idle is deleted, now or when it is looked at again")

    # --- states --------------------------------------------------------------------------------

    def canonical(self) -> tuple[object, ...]:
        """What makes a difference to the future: two worlds of which this is the same are the same."""
        partition = self.admission.partitions.get(KEY)
        now = self.now
        arrivals = sorted(ticket.arrival for ticket in self.in_state("waiting"))
        places = sorted(self.place(ticket) for ticket in self.in_state("waiting"))
        fair = self.setup.order == "fair"
        clients = []
        tombstones = {one: until for one, (until, _) in self.tombstones.items()}
        for client in self.clients:
            ticket = client.ticket
            live = ticket.state in {"waiting", "held"}
            clients.append(
                (
                    self.setup.asks[self.setup.terms.index(ticket.terms)],
                    ticket.state if live or ticket.state == "lost" else "",
                    arrivals.index(ticket.arrival) if ticket.state == "waiting" else -1,
                    places.index(self.place(ticket)) if ticket.state == "waiting" else -1,
                    now - ticket.granted if ticket.state == "held" and fair else 0,
                    max(0, ticket.expires - now) if live and ticket.terms.lease else 0,
                    client.late_until is not None,
                    max(0, tombstones.pop(ticket.id, now) - now),
                    self.tombstones.get(ticket.id, (0, ""))[1],
                )
            )
        clients.sort(key=repr)
        lead = max(ask.priority for ask in self.setup.asks)
        return (
            tuple(clients),
            tuple(min(round((now - place[0]) / UNIT), lead) for place in places if lead),
            tuple(sorted({max(0, until - now) for until in tombstones.values()})[-1:]),
            self.ahead > 0,
            max(0, self.pace - now),
            self.limit,
            self.paused,
            partition and (partition.lingers, max(-2 * UNIT, partition._tat - now), _tags(partition)),
        )

    def drain(self) -> None:
        """Have nothing else happen, and check that everybody who waits is served, and nothing remains.

        Raises:
            Violation: somebody is not, or something does.
        """
        self.look()
        for what in self.paused:
            self.apply(Step("resume", value=what))
        if self.limit is not None:
            self.apply(Step("limit", value=None))
        self.apply(Step("advance"))
        for _ in range(_DRAINS_WITHIN):
            for who, client in enumerate(self.clients):
                if client.late_until is not None:
                    self.apply(Step("late", who))
                elif client.ticket.state == "held":
                    self.apply(Step("leave", who))
                elif client.ticket.state == "waiting" and self.setup.lease:
                    self.apply(Step("renew", who))
            if not self.in_state("held") and not self.in_state("waiting"):
                break
            self.apply(Step("tick"))
            self.apply(Step("advance"))
        _require(not self.in_state("waiting"), "the queue drains")
        self.now += _IDLE_WITHIN
        self.admission.partition("another", self.now)
        _require(KEY not in self.admission.partitions, "nothing remains of a key that nobody uses")

    def look(self) -> None:
        """Check that a picture of the partition shows what is so.

        Raises:
            Violation: it doesn't.
        """
        partition = self.admission.partitions.get(KEY)
        if partition is not None:
            snapshot = partition.inspect(self.now)
            waiting, held = self.in_state("waiting"), self.in_state("held")
            queue = [one.id for one in snapshot.queue]
            ordered = [str(one.id) for one in sorted(waiting, key=self.place)]
            if self.setup.order == "fair":
                queue, ordered = sorted(queue), sorted(ordered)
            _require(queue == ordered, "the queue is those who wait, in order")
            shown = {one.id: one.token for one in snapshot.holders}
            tokens = {str(one.id): self.admission.token(one) for one in held}
            _require(shown == tokens, "the holders are those who hold")
            _require(snapshot.paused == bool(self.paused), "a pause is shown")
            _require(snapshot.limit == self.most, "the limit is shown")
            _require(snapshot.in_use == partition.in_use, "what is in use is shown")

    def freeze(self) -> bytes:
        """Take a copy, to thaw as often as needed."""
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = SHARED
        pickler.dump(self)
        return buffer.getvalue()


_known: dict[int, object] = {}


def _recall(key: int) -> object:
    return _known[key]


def _share(constant: object) -> tuple[Callable[[int], object], tuple[int]]:
    _known[id(constant)] = constant
    return _recall, (id(constant),)


SHARED: dict[type, Callable[[Any], Any]] = {
    Setup: _share,
    Terms: _share,
    Rules: _share,
    Statistics: lambda _: (Statistics, ()),
    itertools.count: lambda _: (itertools.count, ()),
}
"""What worlds share, or need not remember."""


def thaw(frozen: bytes) -> World:
    world = pickle.loads(frozen)  # noqa: S301  # our own
    assert isinstance(world, World)
    return world


def _tags(partition: Partition) -> object:
    queue = partition.queue
    tenants = getattr(queue, "_tenants", None)
    if tenants is None:
        return None
    least = getattr(queue, "_virtual", 0.0)
    return tuple(sorted((name, round(tenant.tag - least, 6)) for name, tenant in tenants.items()))


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Violation(rule)


class _Before:
    """What was so before a step."""

    def __init__(self, world: World) -> None:
        self.states = [client.ticket.state for client in world.clients]
        self.expires = [getattr(client.ticket, "expires", 0) for client in world.clients]
        self.in_use = world.in_use
        self.waiting = len(world.in_state("waiting"))
        self.most = world.most
        self.paused = world.paused


class _Check:
    """All that is true after each step."""

    def __init__(self, world: World, step: Step, before: _Before, partition: Partition) -> None:
        self.world = world
        self.step = step
        self.before = before
        self.partition = partition
        self.waiting = world.in_state("waiting")
        self.held = world.in_state("held")
        self.in_use = world.in_use
        self.own = world.clients[step.who].ticket if step.who >= 0 else None
        self.newcomer = self.own if step.what in {"enter", "try", "late"} else None
        pairs = [*zip(world.tickets, before.states, strict=True)]
        self.moved = [ticket for ticket, state in pairs if ticket.state != state]
        granted = [t for t, state in pairs if (state, t.state) in _GRANTED]
        self.granted = sorted(granted, key=lambda ticket: ticket.granted)

    def run(self) -> None:
        self.tickets_end_once()
        self.limit_holds()
        self.nobody_barges()
        self.tokens_grow()
        self.permits_are_used()
        self.leases_end()
        self.the_door_is_right()
        self.books_are_right()

    def tickets_end_once(self) -> None:
        for ticket, state in zip(self.world.tickets, self.before.states, strict=True):
            legal = _LEGAL.get(state, {state})
            _require(ticket.state in legal, f"a ticket that was {state} isn't {ticket.state} next")
        step = self.step
        if step.what == "leave" and self.own is not None:
            _require(self.own.state not in {"held", "waiting"}, "who left is gone")
        if step.what == "evict" and self.own is not None:
            _require(self.own.state in {"refused", "lost"}, "who was evicted is gone")
        for ticket in self.moved:
            evicted = step.what == "evict" and ticket is self.own
            overdue = ticket.terms.lease and ticket.state == "lost" and ticket.expires <= self.world.now
            _require(ticket.state != "lost" or evicted or bool(overdue), "nothing is taken from who is alive")
        told = self.world.admission.changed
        _require(len(set(told)) == len(told), "nobody is told twice")
        _require(
            {*told} - {self.own} == {*self.moved} - {self.own},
            "whoever is decided upon, and only they, are told",
        )
        _require(self.newcomer not in told, "a newcomer's answer isn't told a second time")
        if step.what == "evict" and self.own is not None:
            _require(self.own in told, "who is evicted is told")

    def limit_holds(self) -> None:
        world = self.world
        exclusive = [ticket for ticket in self.held if ticket.terms.permits == EXCLUSIVE]
        _require(not exclusive or len(self.held) == 1, "who has all permits is alone")
        # What was due is granted before a change of the rules takes effect.
        most = max(world.most, self.before.most if self.granted else self.before.in_use)
        _require(bool(exclusive) or self.in_use <= most, "no more permits are held than there are")

    def nobody_barges(self) -> None:
        world = self.world
        waiting = self.waiting
        fair = world.setup.order == "fair"
        others = [ticket for ticket in self.granted if ticket is not self.newcomer]
        for index, ticket in enumerate(others):
            behind = [*others[index + 1 :], *(other for other in waiting if other is not self.newcomer)]
            for other in behind:
                if not fair or other.terms.tenant == ticket.terms.tenant:
                    _require(world.place(ticket) < world.place(other), "permits are granted in order")
        if self.newcomer in self.granted:
            assert self.newcomer is not None
            for other in waiting:
                if not fair or other.terms.tenant == self.newcomer.terms.tenant:
                    _require(world.place(self.newcomer) < world.place(other), "a newcomer overtakes nobody")

    def tokens_grow(self) -> None:
        world = self.world
        rate = world.setup.rate
        paused = world.paused and self.before.paused
        _require(not self.granted or not paused, "nobody is granted in a pause")
        for ticket in self.granted:
            token = world.admission.token(ticket)
            _require(token > world.last_token, "tokens grow")
            world.last_token = token
            if rate is not None:
                _require(world.pace - rate.tolerance <= world.now, "grants keep the pace")
                world.pace = max(world.pace, world.now) + rate.interval

    def permits_are_used(self) -> None:
        if self.step.what != "tick":
            _require(self.world.fitting() is None, "no permit is free while the first in line could take it")

    def leases_end(self) -> None:
        world = self.world
        if self.step.what != "tick":
            _require(not world.overdue(), "who isn't heard of is dropped when the lease ends")
        for index, (ticket, was) in enumerate(zip(world.tickets, self.before.expires, strict=True)):
            if ticket.terms.lease and ticket.state in {"held", "waiting"}:
                _require(
                    ticket.expires <= world.now + ticket.terms.lease,
                    "no lease ends further ahead than itself",
                )
                if index != self.step.who:
                    _require(ticket.expires == was, "nobody's lease is extended but by themselves")

    def the_door_is_right(self) -> None:
        world = self.world
        waiting = len(self.waiting)
        most = world.setup.max_waiting
        if most is not None:
            _require(waiting <= max(most, self.before.waiting), "no more wait than may")
        for ticket in self.moved:
            if ticket.state == "refused":
                self.refusal_is_right(ticket, waiting, most)
        if self.newcomer is not None and self.step.what == "try":
            _require(self.newcomer.state != "waiting", "who only tries doesn't wait")
        elif self.newcomer is not None:
            _require(self.newcomer.state != "new", "who enters is answered")
        for ticket in self.waiting:
            _require(ticket.terms.permits <= world.most, "nobody waits for more permits than there are")

    def refusal_is_right(self, ticket: Ticket, waiting: int, most: int | None) -> None:
        world = self.world
        reason = ticket.reason
        if reason == "full":
            was_full = self.before.waiting == most  # its first may have made way for who fits
            _require(
                was_full or waiting == most or waiting >= self.before.waiting, "only a full queue refuses"
            )
            wanted: list[Ticket | None] = [self.newcomer]
            if world.setup.order == "lifo":
                rest = [*self.waiting, ticket]
                wanted = [min(rest, key=lambda one: one.arrival)]
            if world.setup.order != "fair":
                _require(ticket in wanted, "a full queue refuses whom it should")
        elif reason == "too_large":
            _require(ticket.terms.permits > world.most, "only what can't fit is too large")
        elif reason == "timeout":
            _require(self.step.what == "give_up" or ticket.terms.patience == 0, "only time makes a timeout")
        elif reason == "paused":
            _require(bool(world.paused) and ticket.terms.patience == 0, "only a pause refuses as paused")
        elif reason == "superseded":
            _require(self.step.what == "late", "only who left already is superseded")
        else:
            _require(reason == "evicted" and self.step.what == "evict", "only eviction evicts")

    def books_are_right(self) -> None:
        partition = self.partition
        _require(partition.holders == {*self.held}, "the holders are those who hold")
        _require(partition.in_use == (self.in_use if self.held else 0), "occupancy is the sum over holders")
        _require(partition.waiting == len(self.waiting), "those who wait are counted")
        if self.waiting and self.world.setup.order != "fair":
            first = min(self.waiting, key=self.world.place)
            _require(partition.first_in_line() is first, "the first in line is known")
        _require(partition.due(self.world.now) == self.world.due(), "a ticket that ended leaves no trace")
