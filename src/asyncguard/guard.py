"""Guards: the rule over some work, and the ways to put work under it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from asyncio import Future
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, final, overload

from asyncguard.admission import KEEP
from asyncguard.blocking import Blocking
from asyncguard.checks import check_number, check_share, check_text, check_whole
from asyncguard.clock import TICKS
from asyncguard.errors import REFUSALS, BackendUnavailable, ClientLeft, Refused, WouldBlock, WouldDeadlock
from asyncguard.keys import as_key
from asyncguard.permit import Permit, hear_that_it_left, new_permit, open_scope, scope_here, scope_var
from asyncguard.running import current_task, running_tasks
from asyncguard.ticket import ALL, EXCLUSIVE, NEW, Declaration, Terms
from asyncguard.wrap import Wrapper

if TYPE_CHECKING:
    import asyncio
    import concurrent.futures
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from asyncguard.admission import Setting
    from asyncguard.backends import Backend
    from asyncguard.client import Row
    from asyncguard.errors import Reason, Status
    from asyncguard.events import Observers
    from asyncguard.hub import AsyncGuard
    from asyncguard.keys import Key
    from asyncguard.permit import Exchange, Hold, Scope
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Order, Outlook, Rate, Rules
    from asyncguard.wrap import KeySource, P, R

OnLost = Literal["cancel", "notify"]

# Bound once: to look up a method of an imported name costs as much as these calls.
_scope = scope_var.get
_task_of = running_tasks.get


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a guard was declared with; `AsyncGuard.guard` says what each option means."""

    name: str
    rules: Rules
    max_wait: float | None
    max_hold: float | None = None
    on_lost: OnLost = "cancel"
    status: Status = 503


class Demand(TypedDict, total=False):
    """What may be asked of a guard once for many calls; every keyword may be left out."""

    timeout: float | None
    """Seconds that the call is prepared to wait, if fewer than the guard's `max_wait`; 0: not at all."""
    permits: int | Literal["all"]
    """How many permits to take, 1 unless said; `ALL`: every one, whatever the limit is or becomes."""
    priority: float
    """A head start in seconds: the ticket is queued as if it had come so much earlier."""
    share: float
    """What the tenant should get in proportion to others, 1 unless said."""
    label: str
    """What the work is called, for people who look at the queue."""


class Ask(Demand, total=False):
    """What a call may ask of a guard; every keyword may be left out."""

    tenant: str
    """On whose behalf, for guards with `order="fair"`."""


class Replacement(TypedDict, total=False):
    """What `Guard.replace` may change: the options of `AsyncGuard.guard`."""

    name: str
    limit: int
    max_waiting: int | None
    max_wait: float | None
    max_hold: float | None
    order: Order
    rate: Rate | None
    max_keys: int
    on_lost: OnLost
    status: Status


@final
class Guard:
    """A named rule over some work: how many run at once, in what order, how many wait, how long.

    Made by `AsyncGuard.guard`. Use it as a block (`async with guard`), as a decorator (`@guard`), or
    by hand (`await guard.acquire()`), from any event loop and thread.

    Blocks of `async with guard` that overlap in one task are taken to end inside out. Where they might
    not, or where a block ends in another task than it began in, use `async with guard.permit()`, each
    of which knows its permit.
    """

    __slots__ = (
        "__weakref__",
        "_cancels",
        "_hub",
        "_max_hold",
        "_observers",
        "_row",
        "_special",
        "_terms",
        "bound_to",
        "options",
    )

    def __init__(self, hub: AsyncGuard, options: Options) -> None:
        self._hub = hub
        self.options = options
        self._cancels = options.on_lost == "cancel"
        self._max_hold = options.max_hold
        self._observers: Observers | None = None
        self._special = False
        """Whether there is more to do than a block without options and observers needs."""
        self._row: Row | None = None
        """Where the last ticket waited."""
        self.bound_to: Backend | None = None
        """The backend, once used and while the process isn't shutting down."""
        self._terms = Terms(Declaration(options.name, options.rules), patience=as_ticks(options.max_wait))
        self.tell(hub.observers)

    def tell(self, observers: Observers) -> None:
        """Have observers hear of its tickets from now on, if there are any."""
        self._observers = observers or None
        self._special = bool(observers) or not self._cancels or self._max_hold is not None

    def __repr__(self) -> str:
        return f"<Guard {self.name!r}, limit {self.limit}>"

    @property
    def name(self) -> str:
        """The name by which its permits and queue are known on every backend."""
        return self.options.name

    @property
    def limit(self) -> int:
        """How many permits each key has, as declared."""
        return self.options.rules.limit

    def replace(self, **changes: Unpack[Replacement]) -> Guard:
        """Make a variant. With a name of its own it is a guard of its own.

        Under the same name it shares permits and queue with this guard, and the rules of those
        (limit, max_waiting, order, rate, max_keys) are the variant's from now on, for both.

        Raises:
            ValueError, TypeError: as `AsyncGuard.guard`.
        """
        return self._hub.replace(self.options, changes)

    @property
    def declaration(self) -> Declaration:
        """The name with the rules, as backends know them."""
        return self._terms.guard

    def submit(self, work: Callable[..., Any], *args: Any) -> concurrent.futures.Future[Any]:
        """Have one of the threads do it that guarded `def`s run in."""
        return self._hub.submit(work, *args)

    # --- the block -----------------------------------------------------------------------------

    async def __aenter__(self) -> Permit:  # noqa: PLR0912
        scope = _scope()
        if scope is None:
            scope = open_scope()
        else:  # as scope_here does it, in place
            task = scope.task
            if not (len(running_tasks) == 1 and _task_of(scope.loop, scope) is task()) and (
                task() is not current_task()
            ):
                scope = open_scope()
        served = scope.served
        if self._special or (served is not None and (not served.is_open or served.within() is not None)):
            permit = await self._enter(self._terms, None, scope)
            permit.terms = self._terms  # by which the block finds it; what the client prefers has been heeded
            self._open_block(permit, scope)
            return permit
        backend = self.bound_to or self._bind()
        permit = Permit()  # as new_permit does it; see `Ticket` for why there is no constructor
        permit.id = 0
        permit.terms = self._terms
        permit.key = None
        permit.state = NEW
        permit.backend = backend
        permit.future = permit.extra = permit.scope = None
        answer = backend.enter(permit)
        if answer is not None or permit.state != "held":
            if served is not None:
                await self._wait(permit, scope, answer, served)
            else:  # as _wait does it, in place
                future = self._expect(permit, scope)
                try:
                    if answer is not None:
                        await self._hear(answer, permit, scope)
                    reason = await future
                except BaseException as error:
                    self._withdraw(permit, error)
                    raise
                permits = permit.row.permits
                if permit.state == "held" and permits and permits[0] is permit:
                    permit.future = None  # as _conclude does it, in place
                    permits.popleft()
                else:
                    await self._conclude(permit, reason)
        permit.scope = scope
        if permit.state != "held":
            raise self._lost_already(permit)
        permit.outer = scope.innermost
        scope.innermost = permit
        if served is not None:
            served.granted(permit)
        return permit

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope = _scope()
        permit = scope.innermost if scope is not None else None
        if scope is None or permit is None or permit.terms is not self._terms or permit.key is not None:
            permit = self._find_block()
        elif exc is None and permit.extra is None:
            scope.innermost = permit.outer
            permit.scope = None
            acknowledged = permit.backend.leave(permit)
            if acknowledged is not None:
                await acknowledged
            return
        acknowledged = permit.close_block(exc)
        if acknowledged is not None:
            await hear_that_it_left(acknowledged, exc)

    def enter(self) -> Permit | Coroutine[Any, Any, Permit]:
        """Begin a block as `__aenter__` does, but without a coroutine where there is nothing to wait for.

        Whoever calls this ends the permit's block by hand.
        """
        scope = scope_here()
        served = scope.served
        if self._special or (served is not None and (not served.is_open or served.within() is not None)):
            return self.__aenter__()
        permit = new_permit(0, self._terms, None, self.bound_to or self._bind())
        answer = permit.backend.enter(permit)
        if answer is not None or permit.state != "held":
            return self._enter_late(permit, scope, answer, served)
        permit.scope = scope
        if permit.state != "held":
            raise self._lost_already(permit)
        permit.outer = scope.innermost
        scope.innermost = permit
        if served is not None:
            served.granted(permit)
        return permit

    async def _enter_late(
        self, permit: Permit, scope: Scope, answer: Awaitable[None] | None, served: Exchange | None
    ) -> Permit:
        await self._wait(permit, scope, answer, served)
        self._open_block(permit, scope)
        if served is not None:
            served.granted(permit)
        return permit

    def _find_block(self) -> Permit:
        """Find the permit of a block that ends out of order, or in another task."""
        for permit in scope_var.get() or ():
            if permit.terms is self._terms and permit.key is None:
                return permit
        blocks = [
            (ticket, scope)
            for ticket in self._hub.open().held(self.name)
            if isinstance(ticket, Permit)
            and ticket.terms is self._terms
            and ticket.key is None
            and (scope := ticket.scope) is not None
        ]
        # One that began in a task that is over can only end in another, and they end inside out.
        left = [block for block, scope in blocks if _is_over(scope.task())]
        if not left and len(blocks) == 1:
            left = [blocks[0][0]]
        if left:
            return max(left, key=lambda block: block.granted)
        raise RuntimeError(
            f"{self!r} can't tell which of {len(blocks)} blocks ends here, as it began in another task: use "
            "`async with guard.permit()`, which knows its permit"
        )

    def permit(self, *, key: Key | None = None, **ask: Unpack[Ask]) -> Entry:
        """Make a block for a key, or with something asked: `async with guard.permit(key=...) as permit`.

        Raises, at the call: ValueError, TypeError: an argument is out of bounds or of the wrong type.
        Raises, on entering: as `acquire`.
        """
        return Entry(self, *self._terms_for(key, ask))

    @property
    def blocking(self) -> Blocking:
        """The guard for code that blocks: threads, scripts, Celery, Django; in one queue with all others.

        `with guard.blocking() as permit` is a block, with a key or something asked where needed:
        `guard.blocking(key="alice", timeout=5)`. `@guard.blocking` and `@guard.blocking(key="account")`
        put a `def` under the guard, which stays a `def`; there `key` names one of its parameters, or
        is called with its arguments.

        A thread can't be cancelled: where its permit is taken away, or held for longer than `max_hold`,
        `permit.lost` is set, and the block raises when it ends.

        Raises, at the call and at decoration:
            TypeError: an argument is of the wrong type; it isn't a plain function that is decorated.
            ValueError: an argument is out of bounds; no parameter goes by the name `key`.

        Raises, on entering: as `acquire`, and
            RuntimeError: an event loop runs in this thread, and would be blocked.

        Raises, at the end of the block:
            PermitLost: the permit was taken away, and the guard wasn't made with `on_lost="notify"`.
        """
        return Blocking(self)

    # --- by hand -------------------------------------------------------------------------------

    def acquire(self, *, key: Key | None = None, **ask: Unpack[Ask]) -> Coroutine[Any, Any, Permit]:
        """Wait for a permit; `await permit.release()` passes it on.

        Prefer a block: it ends by itself. A permit that is dropped unreleased is released then, with
        a `ResourceWarning`.

        Raises:
            ValueError, TypeError: an argument is out of bounds or of the wrong type; at the call.
            QueueFull: as many tickets wait as the guard allows.
            HopelessWait: the wait would be longer than the call is prepared to wait.
            WaitTimeout: it was.
            WouldDeadlock: this task holds the permits that it asks for.
            Refused: another reason; `reason` says which.
        """
        return self._acquire(*self._terms_for(key, ask))

    async def _acquire(self, terms: Terms, key: str | None) -> Permit:
        return (await self._enter(terms, key, scope_here())).handle()

    def acquire_nowait(self, *, key: Key | None = None, **ask: Unpack[Ask]) -> Permit:
        """Take a permit that is free right now, in order.

        Raises:
            ValueError, TypeError: as `acquire`.
            WouldBlock: none is free, or others wait for it.
            Refused: another reason; `reason` says which.
        """
        permit = self._enter_at_once(*self._terms_for(key, ask), self.bound_to or self._bind())
        if permit is None:
            raise WouldBlock(
                f"no permit of {self!r} can be granted right now: `await acquire()` waits for one"
            )
        return permit.handle()

    # --- to look and to act --------------------------------------------------------------------

    async def inspect(self, key: Key | None = None) -> Snapshot:
        """Picture one key, or the guard with all its keys.

        Raises:
            BackendUnavailable: the backend can't be asked.
        """
        return await self._hub.open().inspect(self._terms.guard, None if key is None else as_key(key))

    async def pause(self, key: Key | None = None) -> None:
        """Grant nothing until `resume`, for one key or the whole guard; who holds goes on, who comes waits.

        Raises:
            BackendUnavailable: the backend can't be asked.
        """
        await self._configure(key, paused=True)

    async def resume(self, key: Key | None = None) -> None:
        """Grant again, in the order in which tickets came.

        Raises:
            BackendUnavailable: the backend can't be asked.
        """
        await self._configure(key, paused=False)

    async def set_limit(self, limit: int | None, key: Key | None = None) -> None:
        """Have another limit stand, for one key or the whole guard, until it is cleared with None.

        Lowering it takes no permit away: they drain. A waiting ticket that asks for more than the new
        limit is refused (`TooLarge`).

        Raises:
            TypeError, ValueError: `limit` isn't a whole number of 1 or more.
            BackendUnavailable: the backend can't be asked.
        """
        await self._configure(key, limit=None if limit is None else check_whole("limit", limit, least=1))

    async def evict(self, ticket_id: str) -> bool:
        """Take a ticket out by its id, as `inspect` tells it; False where it isn't there.

        One that waits is refused (`Evicted`); one that holds loses its permit (`PermitLost`).

        Raises:
            BackendUnavailable: the backend can't be asked.
        """
        return await self._hub.open().evict(self._terms.guard, check_text("ticket_id", ticket_id))

    async def _configure(self, key: Key | None, *, limit: Setting = KEEP, paused: bool | None = None) -> None:
        text = None if key is None else as_key(key)
        await self._hub.open().configure(self._terms.guard, text, limit=limit, paused=paused)

    # --- the decorator -------------------------------------------------------------------------

    @overload
    def __call__(self, func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, /, *, key: KeySource | None = None, hold: Hold = "auto", **ask: Unpack[Ask]
    ) -> Wrapper: ...
    def __call__(
        self,
        func: Callable[..., Any] | None = None,
        /,
        *,
        key: KeySource | None = None,
        hold: Hold = "auto",
        **ask: Unpack[Ask],
    ) -> Any:
        """Put a function under the guard: `@guard`, or `@guard(key="account")`.

        What results is a coroutine function with the same signature. A plain `def` runs in a thread,
        and its permit passes on only when that has returned. `key` names one of the function's
        parameters, or is called with its arguments. `hold` says until when the permit of an HTTP
        handler is held: "auto" (until it has returned, or until the last of its stream was sent),
        "handler", "body" or "background".

        Raises, at decoration:
            TypeError: it isn't a function, or is a generator function, whose body runs later.
            ValueError: no parameter goes by the name `key`; an argument is out of bounds.
        """
        self._terms_for(None, ask)
        wrapper = Wrapper(self, key, hold, ask)
        return wrapper if func is None else wrapper(func)

    # --- how a ticket becomes a permit ---------------------------------------------------------

    def _bind(self) -> Backend:
        """Find the backend at the first use, or after the guard was idle through a shutdown."""
        backend = self._hub.bind(self)
        self._terms.come_from(backend.owner, backend.lease)
        return backend

    def forget_owner(self) -> None:
        """Have its tickets be those of whoever it is bound to next: a forked child isn't its parent."""
        self._terms.come_from("", 0)

    def _terms_for(self, key: Key | None, ask: Ask) -> tuple[Terms, str | None]:
        text = None if key is None else as_key(key)
        if not ask:
            return self._terms, text
        usual = self._terms
        if not usual.owner:
            backend = self._hub.open()
            usual.come_from(backend.owner, backend.lease)
        return terms_for(usual, ask), text

    async def _enter(self, terms: Terms, key: str | None, scope: Scope) -> Permit:
        """Become a permit, by the same steps as `__aenter__`."""
        backend = self.bound_to or self._bind()
        served = scope.served
        if served is not None:
            if not served.is_open:
                served = None
            elif (seconds := served.within()) is not None:
                terms = within(terms, seconds)
        permit = new_permit(backend.new_id(), terms, key, backend)
        observers = self._observers
        if observers is None:
            answer = backend.enter(permit)
        else:
            permit.arrival = backend.clock.now()  # until the backend knows better
            audience = permit.gather(observers)
            answer = backend.enter(permit)
            audience.hear_it_entered(permit)
        if answer is not None or permit.state != "held":
            await self._wait(permit, scope, answer, served)
        self._begin(permit, served)
        return permit

    def _enter_at_once(self, terms: Terms, key: str | None, backend: Backend) -> Permit | None:
        """Become a permit that is free right now, in order; None where it would have to wait.

        Raises:
            NotImplementedError: the backend can't answer at once.
            Refused: it was refused.
        """
        permit = new_permit(backend.new_id(), terms, key, backend)
        permit.arrival = backend.clock.now()
        audience = permit.gather(self._observers) if self._observers is not None else None
        try:
            answer = backend.enter(permit, wait=False)
            if answer is None and permit.state not in ("new", "refused"):
                if audience is not None:
                    audience.hear_it_entered(permit)
                scope = _scope()
                self._begin(permit, scope.served if scope is not None else None)
                return permit
        except BaseException:  # a signal handler's, perhaps, which may come at any moment
            backend.leave(permit, finished=False)
            raise
        if answer is not None:
            raise NotImplementedError(
                "this backend can't be asked without waiting for it: use `await guard.acquire(timeout=0)`"
            )
        if permit.state == "new":
            return None
        if audience is not None:
            audience.hear_it_entered(permit)
        raise self._refuse(permit, None)

    async def _wait(
        self, permit: Permit, scope: Scope, answer: Awaitable[None] | None, served: Exchange | None
    ) -> None:
        """Wait for a permit that wasn't granted at once.

        Raises:
            Refused: it was refused.
            WouldDeadlock: the task holds what it waits for.
            ClientLeft: the client that the work is for left meanwhile.
        """
        future = self._expect(permit, scope)
        try:
            if served is not None:
                served.wait_begins(permit)
            if answer is not None:
                await self._hear(answer, permit, scope)
            reason = await future
            if served is not None:
                served.wait_ends(permit)
        except BaseException as error:
            self._withdraw(permit, error)
            if served is not None:
                with contextlib.suppress(ClientLeft):
                    served.wait_ends(permit)
            raise
        await self._conclude(permit, reason)

    def _open_block(self, permit: Permit, scope: Scope) -> None:
        permit.open_block(scope)
        if permit.state != "held":
            raise self._lost_already(permit)

    def _lost_already(self, permit: Permit) -> Refused:
        """See to a permit that was evicted before its block began: its task needn't be told twice."""
        permit.close_block(GeneratorExit())
        return self._refusal(permit, "evicted")

    def _begin(self, permit: Permit, served: Exchange | None) -> None:
        try:
            if not self._cancels:
                permit.only_notify()
            if self._max_hold is not None:
                permit.limit_hold(self._max_hold)
            permit.tell("granted")
            if served is not None:
                served.granted(permit)
        except BaseException:
            permit.end(finished=False)
            raise

    def _expect(self, permit: Permit, scope: Scope) -> Future[Reason | None]:
        """Make what to wait on for a permit that wasn't granted at once.

        Raises:
            Refused: it was refused.
            WouldDeadlock: the task that would wait holds what it waits for.
        """
        if scope.innermost is not None and permit.state != "new":
            deadlock = self._find_deadlock(permit, scope)
            if deadlock is not None:
                permit.backend.leave(permit)
                permit.tell("withdrawn")
                raise deadlock
        if permit.state != "waiting":
            if permit.state == "refused":
                raise self._refuse(permit, None)
            if permit.state == "new":  # the answer is still on its way
                permit.arrival = self._hub.clock.now()
        row = self._row
        if row is None or not row.live or row.loop is not scope.loop or permit.terms is not self._terms:
            row = self._row_for(permit)
        permit.row = row
        future = permit.future = Future(loop=row.loop)
        row.permits.append(permit)
        if row.timer is None and row.impatient:
            row.set_timer()
        if permit.state == "waiting":
            if permit.partition.gated:
                permit.backend.waits(permit)
        elif permit.state != "new":  # another thread was faster, and found nobody to tell
            future.set_result(None)
        if self.bound_to is None and not future.done():  # the same, as all were told to give up
            future.set_result("draining")
        return future

    def _row_for(self, permit: Permit) -> Row:
        """Find the row in which a permit waits; the guard keeps the one that most wait in."""
        terms = permit.terms
        row = self._hub.client().row(terms.patience)
        if terms is self._terms:
            self._row = row
        return row

    async def _conclude(self, permit: Permit, reason: Reason | None) -> None:
        """See what came of a wait.

        Raises:
            Refused: it wasn't a permit.
        """
        permit.row.forget(permit)
        if permit.state == "held":
            return
        left = permit.backend.leave(permit, reason)
        if left is not None:  # the answer says how long others would wait
            try:
                await left
            except BackendUnavailable:
                pass
            except BaseException:
                permit.tell_later("withdrawn")
                raise
        raise self._refuse(permit, reason)

    def _withdraw(self, permit: Permit, error: BaseException) -> None:
        """Leave no trace of a wait that was broken off."""
        permit.row.forget(permit)
        if isinstance(error, GeneratorExit):  # perhaps in a finaliser
            permit.abandon("withdrawn")
        else:
            # The backend sees to it later if it must, and the error is to be told.
            with contextlib.suppress(BackendUnavailable):
                permit.backend.leave(permit, finished=False)
            if isinstance(error, Refused):
                permit.tell("refused", error)
            else:
                permit.tell("withdrawn")

    async def _hear(self, answer: Awaitable[None], permit: Permit, scope: Scope) -> None:
        """Wait for the answer of a backend that takes its time.

        Raises:
            BackendUnavailable: there is none.
            WouldDeadlock: the task holds what it would wait for.
        """
        await answer
        if scope.innermost is not None and permit.state == "waiting":
            deadlock = self._find_deadlock(permit, scope)
            if deadlock is not None:
                raise deadlock

    def _find_deadlock(self, permit: Permit, scope: Scope) -> WouldDeadlock | None:
        for mine in scope:
            if (
                mine.backend.place == permit.backend.place
                and mine.terms.guard.name == self.name
                and mine.key == permit.key
                and mine.state == "held"
                and mine.partition.is_full_for(permit)
            ):
                who = "thread" if scope.loop is None else "task"
                return WouldDeadlock(
                    f"this {who} waits for {self!r} while it holds {mine!r}, so neither can go on: take the "
                    "guard once, around all the work"
                )
        return None

    def _refuse(self, permit: Permit, gave_up: Reason | None) -> Refused:
        refusal = self._refusal(permit, gave_up)
        permit.tell("refused", refusal)
        return refusal

    def _refusal(self, permit: Permit, gave_up: Reason | None) -> Refused:
        reason = gave_up or "evicted"
        if permit.state == "refused":
            reason = permit.reason
        elif permit.state == "lost":
            reason = getattr(permit, "reason", None) or "evicted"
        rules = self.options.rules
        outlook: Outlook | None = getattr(permit, "outlook", None)
        wait = None if outlook is None or outlook.wait is None else outlook.wait / TICKS
        if reason == "too_large":  # what others would wait is no news for who can't be served
            wait = None
        patience = permit.terms.patience
        prepared = "for ever" if patience is None else f"{patience / TICKS:g} s"
        about = {
            "full": f"the queue is full (max_waiting={rules.max_waiting})",
            "hopeless": f"the wait would be longer than the {prepared} that the call is prepared to wait",
            "timeout": f"no permit was granted within the {prepared} that the call was prepared to wait",
            "too_large": f"the ticket asks for {permit.terms.permits} permits, more than the limit is now",
            "paused": "an operator paused it",
            "draining": "this process is shutting down; ask another one",
            "evicted": "an operator took the ticket out of the queue",
            "superseded": "the ticket had left already when it came to enter; enter with a new one",
            "too_many_keys": f"{rules.max_keys} keys are in use (max_keys={rules.max_keys})",
            "unavailable": "the backend can't be asked",
        }[reason]
        then = "" if wait is None else f"; a new ticket would wait about {wait:.1f} s"
        where = "" if permit.key is None else f", key {permit.key!r}"
        refusal = REFUSALS[reason](
            f"guard {self.name!r}{where}: {about}{then}", guard=self.name, key=permit.key, estimated_wait=wait
        )
        if outlook is not None:
            refusal.waiting, refusal.limit = outlook.waiting, outlook.limit
        refusal.status = self.options.status
        return refusal


@final
class Entry:
    """A block of a guard that knows its permit; what `guard.permit()` makes, to be entered once."""

    __slots__ = ("_guard", "_key", "_permit", "_terms", "work")

    def __init__(self, guard: Guard, terms: Terms, key: str | None) -> None:
        self._guard = guard
        self._terms = terms
        self._key = key
        self._permit: Permit | None = None
        self.work: concurrent.futures.Future[Any] | None = None
        """A thread's work, with which the permit ends if the block is left before."""

    async def __aenter__(self) -> Permit:
        if self._permit is not None:
            raise RuntimeError("this block was entered before: call guard.permit() for each")
        scope = scope_here()
        permit = self._permit = await self._guard._enter(self._terms, self._key, scope)  # noqa: SLF001
        self._guard._open_block(permit, scope)  # noqa: SLF001
        return permit

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._permit is None:
            raise RuntimeError("this block was not entered")
        acknowledged = self._permit.close_block(exc, work=self.work)
        if acknowledged is not None:
            await hear_that_it_left(acknowledged, exc)


def _is_over(task: asyncio.Task[Any] | None) -> bool:
    return task is None or task.done()


def as_ticks(seconds: float | None) -> int | None:
    """Convert seconds; None and infinity mean for ever."""
    return None if seconds is None or math.isinf(seconds) else round(seconds * TICKS)


_SEEN: Final = 0.95
"""The part of a client's time that is spent under the guard; the rest is left for the way there and back."""


def within(terms: Terms, seconds: float) -> Terms:
    """Make the terms of a call whose client wants its answer within so many seconds."""
    ticks = round(seconds * _SEEN * TICKS)
    patience = ticks if terms.patience is None else min(ticks, terms.patience)
    return dataclasses.replace(terms, patience=patience, within=ticks)


def terms_for(usual: Terms, ask: Ask) -> Terms:
    """Make the terms of a call that asks for something.

    Raises:
        ValueError, TypeError: it is out of bounds or of the wrong type.
    """
    unknown = ask.keys() - Ask.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"unexpected argument {min(unknown)!r}; expected key, {', '.join(Ask.__annotations__)}, and hold "
            "for requests; options such as max_wait are the guard's: ag.guard(name, ...)"
        )
    patience = usual.patience
    timeout = ask.get("timeout")
    if timeout is not None:
        asked = as_ticks(check_number("timeout", timeout))
        patience = patience if asked is None else asked if patience is None else min(asked, patience)
    permits = ask.get("permits", 1)
    limit = usual.guard.rules.limit
    if permits != ALL and check_whole("permits", permits, least=1) > limit:
        raise ValueError(f"permits: expected at most the guard's limit, {limit}, got {permits}")
    return Terms(
        usual.guard,
        usual.owner,
        EXCLUSIVE if permits == ALL else permits,
        patience,
        round(check_number("priority", ask.get("priority", 0), finite=True) * TICKS),
        check_text("tenant", ask.get("tenant", "")),
        check_share(ask.get("share", 1)),
        check_text("label", ask.get("label", "")),
        usual.lease,
    )
