"""Many hosts: partitions on a Redis or Valkey server, decided upon by the rules in `redis.lua`."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import os
import secrets
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, cast, final

from asyncguard.admission import KEEP
from asyncguard.backends.claims import Claims
from asyncguard.backends.courier import Courier, Request, Watch
from asyncguard.backends.redis_rules import MOST_RENEWED, RedisRules
from asyncguard.backends.redis_servers import find_keys, open_servers
from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND, ClockElsewhere
from asyncguard.errors import BackendUnavailable
from asyncguard.ticket import EXCLUSIVE, Declaration, Outlook, Rules

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from asyncguard.admission import Setting
    from asyncguard.backends.claims import Claim
    from asyncguard.backends.courier import Server
    from asyncguard.backends.redis_rules import Call, Row
    from asyncguard.clock import Clock
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Ticket

_log = logging.getLogger("asyncguard")
_RENEWALS_PER_LEASE: Final = 3
_LOOK: Final = TICKS
"""Ticks between two looks at what was decided about those that wait, whatever was heard of it."""
_LOOKED_AT: Final = 100
"""Tickets of a guard that each such look is about, the oldest: the others are seen when they are renewed."""
_KEYS_AT_ONCE: Final = 100
_AFTER: Final = 2.1
"""Leases after which nothing is left of the last ticket of a guard, but for what is deleted then."""


@final
class Place:
    """A partition, as one of its tickets knows it."""

    __slots__ = ("_backend", "gated", "limit")

    def __init__(self, backend: RedisBackend) -> None:
        self._backend = backend
        self.gated = False
        self.limit: int | None = None
        """How many permits there were when the ticket began to wait."""

    def is_full_for(self, ticket: Ticket) -> bool:
        """Whether permits that are held in this process keep a ticket out; only those are known here."""
        limit = cast("Place", ticket.partition).limit
        held = [
            held.terms.permits
            for held in self._backend.held(ticket.terms.guard.name)
            if held.key == ticket.key
        ]
        wanted = ticket.terms.permits
        if limit is None or not held:
            return False
        return EXCLUSIVE in (wanted, *held) or sum(held) + wanted > limit


@final
class _Guarded:
    """What is known of a guard that has been used here."""

    __slots__ = (
        "attended_at",
        "base",
        "courier",
        "declaration",
        "due",
        "is_late",
        "renewals",
        "sweep",
        "told",
    )

    def __init__(self, declaration: Declaration, base: str, courier: Courier) -> None:
        self.declaration = declaration
        self.base = base
        """Its first key, by which it is known where it is."""
        self.courier = courier
        """That whose listener hears of it."""
        self.renewals = 0
        """Those that are on their way."""
        self.is_late = False
        """Whether others were due meanwhile."""
        self.due: int | None = None
        """The tick at which time alone may move it, while any of our tickets waits."""
        self.sweep: int | None = None
        """The tick at which to have deleted what is left of it."""
        self.attended_at: int | None = None
        """The tick at which its next turn is."""
        self.told = False
        """Whether it was said that others declared it differently."""


@final
class RedisBackend:
    """A client of the server: this process, as far as one AsyncGuard goes.

    A courier, a thread with a connection of its own, asks; a listener hears what other clients' steps
    decided. So leases are renewed however long an event loop is blocked, and it doesn't matter on which
    loop a ticket waits. In a cluster there are the two for each node that has guards in use here.
    """

    answers_at_once = False

    def __init__(self, url: str, clock: Clock, namespace: str) -> None:
        self._servers = servers = open_servers(url)
        self.lease = servers.lease
        self.namespace = namespace
        self.place: object = (*cast("tuple[object, ...]", servers.place), namespace)
        self.assumptions = (
            f"redis: guards all processes of all hosts that use {servers.name} in namespace {namespace!r}; "
            f"one unheard of for {servers.lease / TICKS:g} s loses its permits. It rests on "
            f"{servers.rests_on}, and on clocks whose rates differ by less than 1 %"
        )
        self._system = clock
        self.clock: Clock = ClockElsewhere(clock)
        self._knows_the_time = False
        self._start_anew()
        _live.add(self)

    def _start_anew(self) -> None:
        """Be nobody yet; also in a forked child, where connections and tickets are the parent's."""
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        self._lock = threading.RLock()
        self._client = secrets.token_hex(8)
        self._rules = RedisRules(
            self.namespace, self._client, self.clock.epoch, cluster=self._servers.in_cluster
        )
        self._claims = Claims(self.lease, self._servers.margin, self._write)
        self._counter = itertools.count(1)
        self._guards: dict[str, _Guarded] = {}
        self._turns: list[tuple[int, int, _Guarded]] = []
        """When to see to each guard that time may move: a heap."""
        self._couriers: dict[Server, Courier] = {}
        self._version = self._servers.version
        """That of the servers by which the couriers were chosen."""
        self._ticking = threading.Lock()
        self._renew_at: int | None = None
        self._look_at = 0
        self._wakes_at: int | None = None
        """When the couriers next see what time has brought; None: when it is given something."""
        self._watch = Watch(self)
        self._watched: int | None = None
        """The tick at which the watch next sees whose lease ends; None: when it is woken."""
        self._undone: list[tuple[Ticket, Call, int]] = []
        """Tickets that couldn't leave, how they do, and until when that is worth another attempt."""

    # --- what is sent --------------------------------------------------------------------------

    def _hire(self, base: str) -> Courier:
        """Find who asks the server that has a guard, by the guard's first key."""
        server = self._servers.of(base)
        courier = self._couriers.get(server)
        if courier is None:
            with self._lock:
                courier = self._couriers.get(server)
                if courier is None:
                    courier = self._couriers[server] = Courier(server, self, self._system.now)
                    courier.start()
                    if self._watch.ident is None:
                        self._watch.start()
        return courier

    def _use(self, declaration: Declaration) -> _Guarded:
        guarded = self._guards.get(declaration.name)
        if guarded is None:
            with self._lock:
                base = self._rules.base(declaration.name)
                guarded = self._guards[declaration.name] = _Guarded(declaration, base, self._hire(base))
                guarded.courier.listener.listen(self._rules.channel(declaration.name))
        return guarded

    def _follow(self) -> None:
        """Have all guards heard of where they are by now, and let couriers go that are for none."""
        version = self._servers.version
        if version == self._version:
            return
        with self._lock:
            self._version = version
            for name, guarded in self._guards.items():
                courier, former = self._hire(guarded.base), guarded.courier
                if courier is not former:
                    former.listener.forget(self._rules.channel(name))
                    courier.listener.listen(self._rules.channel(name))
                    guarded.courier = courier
                    self._look_at = 0
            needed = {guarded.courier for guarded in self._guards.values()}
            for server, courier in list(self._couriers.items()):
                if courier not in needed:
                    del self._couriers[server]
                    courier.stop()

    def _send(
        self,
        call: Call,
        answered: Callable[[Any, int], None],
        failed: Callable[[BackendUnavailable, bool], bool],
    ) -> None:
        self._hire(call.key).send(Request(call, answered, failed))

    def _send_aside(self, declaration: Declaration, call: Call, *, extends: bool = True) -> None:
        """Send what nobody waits for, and what is sent anew by itself if it gets lost.

        `extends` says whether a ticket in the answer is believed in from when this was sent.
        """

        def answered(raw: Any, sent: int) -> None:
            self._take(declaration, call, raw, sent if extends else None)

        self._send(call, answered, lambda _, __: False)

    async def _ask(self, call: Call) -> Any:
        """Send something and wait for the answer, as it came.

        Raises:
            BackendUnavailable: there is none.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def answered(raw: Any, _: int) -> None:
            _on(loop, _set_result, future, raw)

        def failed(error: BackendUnavailable, _: bool) -> bool:
            _on(loop, _set_exception, future, error)
            return False

        self._send(call, answered, failed)
        return await future

    # --- the operations ------------------------------------------------------------------------

    def new_id(self) -> str:
        return f"{self._client}.{next(self._counter)}"

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        if not wait:
            return _NotAtOnce()
        loop = asyncio.get_running_loop()
        ticket.id = ticket.id if self._is_ours(ticket.id) else self.new_id()
        now = ticket.arrival = self._system.now()
        ticket.partition = Place(self)  # type: ignore[assignment]
        declaration = ticket.terms.guard
        self._use(declaration).sweep = None
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            self._claims.enter(ticket, now)
            is_first = self._renew_at is None
            if is_first:
                self._renew_at = now + self.lease // _RENEWALS_PER_LEASE
        call = self._rules.enter(ticket)
        courier = self._hire(call.key)
        if is_first:
            courier.wake()

        def answered(raw: Any, sent: int) -> None:
            self._take(declaration, call, raw, sent, ticket)
            if not _on(loop, self._settle, future, ticket):
                self.abandon(ticket)

        def failed(error: BackendUnavailable, _: bool) -> bool:
            error = BackendUnavailable(str(error), guard=declaration.name, key=ticket.key)
            _on(loop, _set_exception, future, error)
            return False

        courier.send_from(loop, Request(call, answered, failed))
        return future

    def _is_ours(self, ticket_id: int | str) -> bool:
        return isinstance(ticket_id, str) and ticket_id.startswith(self._client)

    def _settle(self, future: asyncio.Future[None], ticket: Ticket) -> None:
        """Have the answer heard on the loop, with what was decided."""
        _set_result(future, None)
        if ticket.state not in ("new", "waiting") and not ticket.notify():
            self.abandon(ticket)

    def waits(self, ticket: Ticket) -> None:
        """Nothing needs to be done: who waits is seen to by the courier."""

    def leave(
        self, ticket: Ticket, reason: Reason | None = None, *, finished: bool = True
    ) -> Awaitable[None] | None:
        with self._lock:
            claim = self._claims.leave(ticket.id)
            if claim is None:
                return None
            if ticket.state == "held":
                ticket.state = "released"
            elif reason is None:
                ticket.state = "withdrawn"
            else:
                ticket.state, ticket.reason = "refused", reason
            now = ticket.ended = self._system.now()
        loop = asyncio._get_running_loop()  # noqa: SLF001 - None where none runs
        future: asyncio.Future[None] | None = None if loop is None else loop.create_future()
        call = self._rules.leave(ticket, reason, finished=finished)
        self._hire(call.key).send_from(loop, self._leaving(ticket, call, now, future))
        return future

    def abandon(self, ticket: Ticket) -> None:
        if self._claims.leave(ticket.id) is not None and self._couriers:
            self._send_leave(ticket)

    def _send_leave(self, ticket: Ticket) -> None:
        """Have the courier see to it that a ticket leaves, also from a finaliser."""
        call = self._rules.leave(ticket, finished=False)
        self._hire(call.key).send(self._leaving(ticket, call, self._system.now()))

    def _leaving(
        self, ticket: Ticket, call: Call, now: int, future: asyncio.Future[None] | None = None
    ) -> Request:
        """Make the request to leave; the future is done once the ticket has left, or can't for now."""
        declaration = ticket.terms.guard

        def answered(raw: Any, sent: int) -> None:
            for row in self._take(declaration, call, raw, sent):
                if row.outlook is not None and row.reason:
                    ticket.outlook = row.outlook
            if future is not None:
                _on(future.get_loop(), _set_result, future, None)
            guarded = self._guards.get(declaration.name)  # none if it was closed meanwhile
            if guarded is None:
                return
            guarded.sweep = self._system.now() + round(_AFTER * self.lease)
            if guarded.attended_at is None:
                self._attend_by(guarded, guarded.sweep)

        def failed(_: BackendUnavailable, is_given_up: bool) -> bool:
            if future is not None:
                _on(future.get_loop(), _set_result, future, None)
            is_worth_it = self._system.now() < now + self.lease  # then the lease is over
            if is_given_up and is_worth_it:
                self._undone.append((ticket, call, now))
            return is_worth_it and not is_given_up

        return Request(call, answered, failed)

    def held(self, guard: str) -> list[Ticket]:
        return [
            claim.ticket
            for claim in self._claims.all()
            if claim.ticket.state == "held" and claim.ticket.terms.guard.name == guard
        ]

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        self._use(declaration)
        raw = await self._ask(self._rules.inspect(declaration, key))
        return self._rules.picture(declaration, key, raw)

    async def configure(
        self, declaration: Declaration, key: str | None, *, limit: Setting = KEEP, paused: bool | None = None
    ) -> None:
        call = self._rules.configure(declaration, key, limit=limit, paused=paused)
        await self._ask_and_take(declaration, call)

    async def evict(self, declaration: Declaration, ticket_id: str) -> bool:
        return bool(await self._ask_and_take(declaration, self._rules.evict(declaration, ticket_id)))

    async def guards(self) -> list[Declaration]:
        """List the guards of the namespace that the server knows, by name."""
        loop = asyncio.get_running_loop()
        keys = await loop.run_in_executor(None, find_keys, self._servers, self._rules.guards)
        found = []
        for name in sorted(filter(None, map(self._rules.guard_of, keys))):
            raw = await self._ask(self._rules.inspect(Declaration(name, Rules()), None))
            found.append(Declaration(name, self._rules.declared_in(raw)))
        return found

    async def _ask_and_take(self, declaration: Declaration, call: Call) -> list[Row]:
        self._use(declaration)
        sent = self._system.now()
        return self._take(declaration, call, await self._ask(call), sent)

    def redeclare(self, declaration: Declaration) -> None:
        self._use(declaration).declaration = declaration
        self._send_aside(declaration, self._rules.declare(declaration, force=True))

    async def aclose(self) -> None:
        with self._lock:
            couriers, watch = list(self._couriers.values()), self._watch
            if not couriers or len(self._claims):  # permits stay with their holders
                return
            self._start_anew()
        for courier in couriers:
            courier.stop()
        for courier in couriers:
            await asyncio.wrap_future(courier.ended)
        watch.stop()
        await asyncio.wrap_future(watch.ended)

    # --- what comes back -----------------------------------------------------------------------

    def _write(self, ticket: Ticket, row: Any) -> None:
        """Write what was decided; a ticket that waits keeps the moment at which its client asked."""
        asked = ticket.arrival
        self._rules.write(ticket, row)
        if ticket.state == "waiting":
            ticket.arrival = asked
            cast("Place", ticket.partition).limit = row.outlook and row.outlook.limit

    def _take(
        self, declaration: Declaration, call: Call, raw: Any, sent: int | None, entering: Ticket | None = None
    ) -> list[Row]:
        """Take an answer: what it says of our tickets, what is to be sent, and when to ask again."""
        answer = self._rules.read(call, raw)
        guarded = self._guards.get(declaration.name)
        if guarded is None:  # it was closed meanwhile, as nobody was here
            return answer.rows
        for more in answer.more:
            self._send_aside(declaration, more)
        if answer.standing is not None:
            self._note_standing(declaration, answer.standing)
        if answer.due is not None:
            due = self._system.now() + answer.due - answer.now
            guarded.due = due if guarded.due is None else min(due, guarded.due)
            self._attend_by(guarded, guarded.due)
        self._hear(answer.rows, sent, entering)
        if answer.decided:
            self._hear(answer.decided, None, entering)
        return answer.rows

    def _note_standing(self, declaration: Declaration, standing: Rules) -> None:
        rules = declaration.rules
        if standing.revision != rules.revision:
            return
        guarded = self._guards.get(declaration.name)
        if guarded is not None and not guarded.told:
            guarded.told = True
            _log.warning(
                "guard %r: others declared it as %s, and this process as %s, both with revision %d: theirs "
                "stands; if this one is to stand, give it a higher AsyncGuard(revision=...)",
                declaration.name,
                standing,
                rules,
                rules.revision,
            )

    def _hear(self, rows: Iterable[Row], sent: int | None, entering: Ticket | None = None) -> None:
        for row in rows:
            with self._lock:
                claim = self._claims.find(row.id)
                if claim is None:
                    continue
                verdict = self._claims.hear(row, self._system.now(), sent)
                ticket = claim.ticket
                deadline = self._claims.next_deadline
                if deadline is not None and (self._watched is None or deadline < self._watched):
                    self._watched = deadline
                    self._watch.wake()
            if verdict == "tell":
                if ticket is not entering and not ticket.notify():
                    self.abandon(ticket)
            elif verdict == "renew":
                self._renew(ticket.terms.guard, [claim])
            elif verdict == "enter":
                self._enter_again(claim)
            elif verdict == "lost":
                self._tell_it_is_lost(ticket)

    def _enter_again(self, claim: Claim) -> None:
        """Have a ticket wait again that the server has forgotten, in its old place."""
        ticket = claim.ticket
        since = claim.since * TICKS_PER_MICROSECOND - self._rules.epoch if claim.since else None
        self._send_aside(ticket.terms.guard, self._rules.enter(ticket, since=since), extends=False)

    def _tell_it_is_lost(self, ticket: Ticket) -> None:
        self._send_leave(ticket)
        ticket.notify()

    # --- for the courier and the listener ------------------------------------------------------

    @property
    def expects_news(self) -> bool:
        """Whether any ticket is ours: then it is asked each second whether notices still come."""
        return bool(len(self._claims))

    def connected(self, moment: int) -> None:
        """Hear that a server answers: what time it is there, and that something may have been missed."""
        with self._lock:
            if self._knows_the_time:
                self._renew_at = 0
            else:
                self._knows_the_time = True
                self._rules.epoch = moment * TICKS_PER_MICROSECOND - self._system.now()
                self.clock.epoch = self._rules.epoch

    def passes_on(self, server: Server, request: Request) -> bool:
        """Have another courier send what is for another server, as slots have turned out to be elsewhere."""
        if self._servers.of(request.call.key) is server:
            return False
        self._hire(request.call.key).send(request)
        return True

    def listens(self, *, anew: bool) -> None:
        """Hear that notices come from now on, but what was decided before is to be looked for.

        Where the connection had ended, so may have the server: then holders ask, too.
        """
        if anew:
            self._renew_at = 0
        self._look_at = 0
        if len(self._claims):
            self._wake()

    def _wake(self) -> None:
        for courier in list(self._couriers.values()):
            courier.wake()

    def heard(self, message: bytes) -> None:
        """Hear what other clients' steps decided."""
        self._hear(self._rules.read_message(message), None)

    def out_of_reach(self, server: Server, key: str | None = None) -> None:
        """Hear that a server can't be reached: who waits needn't, and who holds may until its deadline."""
        for claim in self._claims.all():
            ticket = claim.ticket
            base = self._use(ticket.terms.guard).base
            if self._servers.of(base) is not server or base != (key or base):
                continue
            with self._lock:
                if ticket.state != "waiting" or self._claims.leave(ticket.id) is None:
                    continue
                ticket.state, ticket.reason = "refused", "unavailable"
                ticket.outlook = Outlook(None, 0, ticket.terms.guard.rules.limit)
                ticket.ended = self._system.now()
            self._send_leave(ticket)
            ticket.notify()

    def tick(self) -> float | None:
        """Do what time has brought; give the seconds until that is to be done again.

        Whichever courier comes first does it for all, so that none waits for another's server.
        """
        with self._ticking:
            self._follow()
            return self._tick()

    def _tick(self) -> float | None:
        now = self._system.now()
        with self._lock:
            if not len(self._claims):
                self._renew_at = None
        moments = [] if self._renew_at is None else [self._renew_in_time(now)]
        while self._turns and self._turns[0][0] <= now:
            moment, _, guarded = heapq.heappop(self._turns)
            if guarded.attended_at == moment:
                self._attend(now, guarded)
        if self._turns:
            moments.append(self._turns[0][0])
        self._wakes_at = min(moments, default=None)
        return None if self._wakes_at is None else max(0, self._wakes_at - now) / TICKS

    def end_overdue(self) -> float | None:
        """Tell those whose leases end; give the seconds until that is to be done again."""
        now = self._system.now()
        with self._lock:
            lost = self._claims.overdue(now)
            deadline = self._watched = self._claims.next_deadline
        for ticket in lost:
            self._tell_it_is_lost(ticket)
        return None if deadline is None else max(0, deadline - now) / TICKS

    def _renew_in_time(self, now: int) -> int:
        if self._renew_at is None or self._renew_at <= now:
            self._renew_at = now + self.lease // _RENEWALS_PER_LEASE
            self._look_at = now + _LOOK
            self._renew_all()
            self._try_again(now)
        elif self._look_at <= now:
            self._look_at = now + _LOOK
            self._renew_all(_LOOKED_AT)
            self._try_again(now)
        return min(self._renew_at, self._look_at)

    def _try_again(self, now: int) -> None:
        undone, self._undone = self._undone, []
        for ticket, call, since in undone:
            if now < since + self.lease:
                self._hire(call.key).send(self._leaving(ticket, call, since))

    def _renew_all(self, most: int | None = None) -> None:
        """Renew our tickets, or of each guard the oldest of those that wait."""
        by_guard: dict[Declaration, list[Claim]] = {}
        for claim in self._claims.all():
            state = claim.ticket.state
            if state == "waiting" or (state == "held" and most is None):
                claims = by_guard.setdefault(claim.ticket.terms.guard, [])
                if most is None or len(claims) < most:
                    claims.append(claim)
        for declaration, claims in by_guard.items():
            guarded = self._use(declaration)
            if guarded.renewals:  # the last wasn't answered yet: then at once
                guarded.is_late = guarded.is_late or most is None
                continue
            for i in range(0, len(claims), MOST_RENEWED):
                self._renew(declaration, claims[i : i + MOST_RENEWED])

    def _renew(self, declaration: Declaration, claims: list[Claim]) -> None:
        call = self._rules.renew(declaration, [claim.ticket.id for claim in claims])
        guarded = self._use(declaration)

        def count(change: int) -> None:
            with self._lock:
                guarded.renewals += change
                if guarded.is_late and not guarded.renewals:
                    guarded.is_late = False
                    self._renew_at = 0

        def answered(raw: Any, sent: int) -> None:
            count(-1)
            self._take(declaration, call, raw, sent)

        def failed(_: BackendUnavailable, is_given_up: bool) -> bool:
            if not is_given_up and any(
                claim.ticket.state == "held" and self._claims.find(claim.ticket.id) is claim
                for claim in claims
            ):
                return True  # until its deadline
            count(-1)
            return False

        count(1)
        self._send(call, answered, failed)

    def _attend_by(self, guarded: _Guarded, moment: int) -> None:
        """Have a guard's turn come by then."""
        if guarded.attended_at is None or moment < guarded.attended_at:
            guarded.attended_at = moment
            heapq.heappush(self._turns, (moment, next(self._counter), guarded))
            if self._wakes_at is None or moment < self._wakes_at:
                self._wake()

    def _attend(self, now: int, guarded: _Guarded) -> None:
        """Have a guard see to what time has brought, while we wait there, or after we have left."""
        guarded.attended_at = None
        if guarded.due is not None and guarded.due <= now:
            guarded.due = None
            keys = {
                claim.ticket.key
                for claim in self._claims.all()
                if claim.ticket.state == "waiting"
                and claim.ticket.terms.guard.name == guarded.declaration.name
            }
            if keys:
                self._advance(guarded.declaration, list(keys))
        if guarded.sweep is not None and guarded.sweep <= now:
            guarded.sweep = None
            self._advance(guarded.declaration, [None])
        for moment in (guarded.due, guarded.sweep):
            if moment is not None:
                self._attend_by(guarded, moment)

    def _advance(self, declaration: Declaration, keys: list[str | None]) -> None:
        for i in range(0, len(keys), _KEYS_AT_ONCE):
            self._send_aside(declaration, self._rules.advance(declaration, keys[i : i + _KEYS_AT_ONCE]))


@final
class _NotAtOnce:
    """What says that a ticket needs to be waited for; it was not sent."""

    def __await__(self) -> Any:
        raise BackendUnavailable("this backend can't be asked without waiting for it")
        yield


def _on(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> bool:
    """Have something done on a loop, at once where it runs here; False where it is closed."""
    if asyncio._get_running_loop() is loop:  # noqa: SLF001
        callback(*args)
        return True
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True


def _set_result(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


_live: weakref.WeakSet[RedisBackend] = weakref.WeakSet()
_of_parents: list[object] = []
"""Threads' objects with connections that a forked child mustn't close: they are its parent's."""


def _forget_the_parent() -> None:
    for backend in list(_live):
        _of_parents.append((backend._couriers, backend._watch))  # noqa: SLF001
        backend._start_anew()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parent)
