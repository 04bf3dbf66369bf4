"""Permits: the right to run, as the code that runs sees it."""

# A permit and what it carries are one mechanism.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import warnings
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Protocol, final
from weakref import ref

from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND
from asyncguard.errors import BackendUnavailable, HoldExceeded, PermitLost
from asyncguard.events import Audience
from asyncguard.running import current_task, running_tasks
from asyncguard.ticket import Ticket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from concurrent.futures import Future

    from asyncguard.backends import Backend
    from asyncguard.client import Row
    from asyncguard.clock import Timer
    from asyncguard.errors import GuardError, Reason, Refused
    from asyncguard.events import Kind, Observers
    from asyncguard.ticket import Terms


Hold = Literal["auto", "handler", "body", "background"]
"""Until when the permit of a request is held.

"handler": until the handler has ended. "body": until the last of the response was sent. "background":
until its background tasks have ended too. "auto": as "body" where the response is a stream whose
length nobody knows, else as "handler".
"""


class Exchange(Protocol):
    """One request and its response, as whoever serves it shows it to the guards under it."""

    @property
    def is_open(self) -> bool:
        """Whether the response hasn't ended; what is taken afterwards is no business of the client."""
        ...

    def within(self) -> float | None:
        """Tell the seconds within which the client wants its answer; None: whenever."""
        ...

    def wait_begins(self, permit: Permit) -> None:
        """Hear that a ticket waits, and break off its wait if the client leaves.

        Raises:
            ClientLeft: it has left already.
        """

    def wait_ends(self, permit: Permit) -> None:
        """Hear that it waits no more.

        Raises:
            ClientLeft: the client left just now, so the permit had better pass on.
        """

    def granted(self, permit: Permit) -> None:
        """Hear of a permit that was taken to serve the request."""

    def take_over(self, permit: Permit, hold: Hold, response: object) -> None:
        """Hold the handler's permit for longer, if that is what `hold` means for what it returned."""


def no_task() -> None:
    """Be the reference to the task of a thread: none."""


class Scope:
    """The guarded blocks that a task is in, or that a thread works for."""

    __slots__ = ("innermost", "loop", "task")

    served: Exchange | None = None
    """The exchange that is served here, if any; most serve none, so only others have room for it."""

    def __init__(self, task: asyncio.Task[Any] | None, loop: asyncio.AbstractEventLoop | None) -> None:
        self.task = ref(task) if task is not None else no_task
        """The task, which mustn't live on because of its permits; none: a thread does its work."""
        self.loop = loop
        self.innermost: Permit | None = None
        """The permit of the innermost block; those of the blocks around it follow by `outer`."""

    def __iter__(self) -> Iterator[Permit]:
        permit = self.innermost
        while permit is not None:
            yield permit
            permit = permit.outer

    def remove(self, permit: Permit) -> None:
        """Take out the permit of a block that ends, which is nearly always the innermost."""
        if self.innermost is permit:
            self.innermost = permit.outer
        for inner in self:
            if inner.outer is permit:
                inner.outer = permit.outer


@final
class ServingScope(Scope):
    """That of a task, or a thread, that was started to serve a request."""

    __slots__ = ("served",)


scope_var: ContextVar[Scope | None] = ContextVar("asyncguard.scope", default=None)
"""Set once in a task, and once for a request: to set it for each block would cost more than all the rest."""

# Bound once: to look up a method of an imported name costs as much as these calls.
_scope = scope_var.get
_set_scope = scope_var.set
_task_of = running_tasks.get


def open_scope() -> Scope:
    """Begin the scope of the running task, which serves what the task serves that started it."""
    loop = asyncio.get_running_loop()
    task = _task_of(loop) or current_task(loop)
    around = _scope()
    if around is None or around.served is None:
        scope = Scope(task, loop)
    else:
        scope = ServingScope(task, loop)
        scope.served = around.served
    _set_scope(scope)
    return scope


def scope_here() -> Scope:
    """Find or begin the scope of the running task."""
    scope = _scope()
    if scope is not None:
        task_of_scope = scope.task
        task = task_of_scope()
        if len(running_tasks) == 1 and _task_of(scope.loop, scope) is task:
            return scope
        if task is current_task():
            return scope
    return open_scope()


@final
class ThreadScope(Scope):
    """That of a thread in which no event loop runs, and not of others that run in copies of its context."""

    __slots__ = ("_around", "_thread", "served")

    def __init__(self) -> None:
        super().__init__(None, None)
        around = self._around = scope_var.get()
        self._thread = get_ident()
        self.served = None if around is None else around.served
        scope_var.set(self)

    @property
    def is_here(self) -> bool:
        """Whether this is the thread."""
        return self._thread == get_ident()

    def close(self) -> None:
        """Leave the context as it was, once no block is open: frameworks copy it back into a task's."""
        if self.innermost is None and scope_var.get() is self:
            scope_var.set(self._around)


def open_scope_of_thread(permit: Permit) -> None:
    """Have the calling thread run under a permit that a task took for it."""
    ThreadScope().innermost = permit


def scope_of_thread() -> ThreadScope:
    """Find or begin the scope of the calling thread."""
    scope = scope_var.get()
    return scope if isinstance(scope, ThreadScope) and scope.is_here else ThreadScope()


async def hear_that_it_left(acknowledged: Awaitable[None], exc: BaseException | None) -> None:
    """Wait until the end of a block has arrived; where `exc` ended it, nothing else is raised.

    Raises:
        BackendUnavailable: it will arrive later.
    """
    try:
        await acknowledged
    except BackendUnavailable:
        if exc is None:
            raise


@final
class Loss:
    """Whether a permit was lost: `if permit.lost`, or `await permit.lost.wait()`."""

    __slots__ = ("_futures", "_happened")

    def __init__(self) -> None:
        self._happened = False
        self._futures: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Loss: {'lost' if self._happened else 'not lost'}>"

    def __bool__(self) -> bool:
        return self._happened

    def is_set(self) -> bool:
        """Tell whether the permit was lost; from any thread."""
        return self._happened

    async def wait(self) -> None:
        """Return once the permit is lost."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        try:
            if not self._happened:
                await future
        finally:
            self._futures.remove(future)

    def _happen(self) -> None:
        self._happened = True
        for future in list(self._futures):
            with contextlib.suppress(RuntimeError):  # a closed loop: nobody waits there any more
                future.get_loop().call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_rare = threading.RLock()
"""Held for moments when a permit gets something that few have; nothing is allocated meanwhile."""


def _renew() -> None:
    """Have a lock of its own in a forked child, whose thread is in no block: permits are the parent's."""
    global _rare  # noqa: PLW0603
    _rare = threading.RLock()  # another thread of the parent may have held the old one
    if isinstance(scope_var.get(), ThreadScope):
        scope_var.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@final
class Extra:
    """What few permits have, apart so that the many stay small."""

    __slots__ = (
        "audience",
        "cancelled",
        "cancelling",
        "cancels",
        "error",
        "handle",
        "heir",
        "interruption",
        "loss",
        "real",
        "timer",
    )

    def __init__(self) -> None:
        self.audience: Audience | None = None
        """The observers that hear of it."""
        self.error: PermitLost | None = None
        """How it was lost."""
        self.interruption: GuardError | None = None
        """Why the task of the block was cancelled."""
        self.loss: Loss | None = None
        self.timer: Timer | None = None
        """Rings when the work has run for too long."""
        self.cancels = True
        """Whether the loss cancels the task of the block."""
        self.cancelling = 0
        """How many cancellations the task was under before."""
        self.cancelled = False
        """Whether that has happened."""
        self.heir: Scope | None = None
        """Where the work goes on when the block has ended, if it does: in a response that is sent."""
        self.real: Permit | None = None
        """Of a handle, the permit that the backend knows, so that nobody but its owner keeps the handle."""
        self.handle: ref[Permit] | None = None
        """The handle on a loose permit."""


@final
class Permit(Ticket):
    """The right to run: what a ticket becomes. Its owner is whoever has this object.

    Take one from a guard: `async with guard as permit`, or `await guard.acquire()`. It belongs to no
    task and no thread; one that is dropped unreleased is released, with a `ResourceWarning`.
    """

    __slots__ = ("__weakref__", "backend", "extra", "future", "outer", "row", "scope")

    backend: Backend
    extra: Extra | None
    scope: Scope | None
    """That of the task whose block this is, if it is a block's."""
    outer: Permit | None
    """The permit of the block around this one's."""
    row: Row
    """Where the ticket waits."""
    future: asyncio.Future[Reason | None] | None
    """What it waits on: done when its state was changed, or with a reason to give up."""

    def __repr__(self) -> str:
        known = self._real
        key = "" if known.key is None else f", key {known.key!r}"
        return f"<Permit of guard {self.guard!r}{key}: {known.state}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} can't be copied or pickled: there is only one of it")

    @property
    def _real(self) -> Permit:
        return self.extra.real or self if self.extra is not None else self

    @property
    def _why_lost(self) -> str:
        if getattr(self, "reason", None) == "unavailable":
            return "was lost, as the backend couldn't be asked in time to keep it,"
        return "was taken away"

    @property
    def guard(self) -> str:
        """Name of the guard."""
        return self.terms.guard.name

    @property
    def token(self) -> int:
        """The fencing token: an integer that grows with every grant of the partition."""
        return (self.granted + self.backend.clock.epoch) // TICKS_PER_MICROSECOND

    @property
    def waited(self) -> float:
        """Seconds from entering to the grant."""
        return max(0, self.granted - self.arrival) / TICKS

    @property
    def held(self) -> float:
        """Seconds from the grant until now, or until the permit ended."""
        known = self._real
        end = self.backend.clock.now() if known.state == "held" else known.ended
        return max(0, end - self.granted) / TICKS

    @property
    def lost(self) -> Loss:
        """Whether the permit was taken away: ask it, or wait for it."""
        extra = self._real._extras()
        if extra.loss is None:
            loss = Loss()
            with _rare:
                if extra.loss is None:
                    loss._happened = extra.error is not None
                    extra.loss = loss
        return extra.loss

    async def release(self) -> None:
        """Pass the permit on; again, or once it is lost, nothing happens."""
        acknowledged = self._real.end()
        if acknowledged is not None:
            await acknowledged

    # --- for the guard, the client and the backend ---------------------------------------------

    def notify(self, interrupts: bool = False) -> bool:
        """Hear that the backend changed the state, from any thread; False where nobody hears."""
        future = self.future
        if future is None:
            if self.state == "lost":
                self._lose(PermitLost(f"{self!r} {self._why_lost} after {self.held:.3f} s"))
            return True
        row = self.row
        if interrupts or not (
            # Its loop runs here: `running_tasks` is asked where the other question costs more.
            (len(running_tasks) == 1 and row.loop in running_tasks and get_ident() == row.thread)
            or asyncio._get_running_loop() is row.loop
        ):
            return self.give_up(None)
        if not future.done():
            future.set_result(None)
        return True

    def give_up(self, reason: Reason | None) -> bool:
        """End the wait, from anywhere; False where its loop is closed."""
        try:
            self.row.loop.call_soon_threadsafe(self.resolve, reason)
        except RuntimeError:
            self.tell_later("withdrawn")
            return False
        return True

    def resolve(self, reason: Reason | None) -> None:
        """End the wait, on its loop."""
        future = self.future
        if future is not None and not future.done():
            future.set_result(reason)

    def _extras(self) -> Extra:
        if self.extra is None:
            extra = Extra()
            with _rare:
                if self.extra is None:
                    self.extra = extra
        return self.extra

    def end(self, *, finished: bool = True) -> Awaitable[None] | None:
        """Pass the permit on, if it is still held."""
        if self.state != "held":
            return None
        extra = self.extra
        if extra is not None and extra.timer is not None:
            extra.timer.cancel()
        try:
            return self.backend.leave(self, finished=finished)
        finally:
            self.tell("released")

    def take_away(self) -> None:
        """Have it lost while it is held: it passes on at once, and its work is told."""
        self.backend.leave(self, finished=False)
        self.state = "lost"
        self.notify()

    def gather(self, observers: Observers) -> Audience:
        """Have observers hear of it, from when they are told that it entered."""
        audience = self._extras().audience = Audience(observers)
        return audience

    def tell(self, kind: Kind, refusal: Refused | None = None) -> None:
        """Have its observers hear what happened, if it has any."""
        if self.extra is not None and self.extra.audience is not None:
            self.extra.audience.hear(kind, self, refusal)

    def abandon(self, kind: Kind) -> None:
        """Leave from a finaliser, perhaps."""
        self.backend.abandon(self)
        self.tell_later(kind)

    def tell_later(self, kind: Kind) -> None:
        """Have its observers hear what happened, but not here: it may be a finaliser."""
        if self.extra is not None and self.extra.audience is not None:
            self.extra.audience.hear_later(kind, self)

    def only_notify(self) -> None:
        """Have a loss set `lost`, and leave the work alone."""
        self._extras().cancels = False

    def limit_hold(self, max_hold: float) -> None:
        """Have the permit lost once it was held for so many seconds."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "max_hold needs a running event loop to tell when it is over: take the permit in a coroutine "
                "or by `with guard.blocking()`"
            ) from None
        task = asyncio.current_task()
        extra = self._extras()
        extra.cancelling = task.cancelling() if task is not None else 0
        extra.timer = self.backend.clock.call_later(loop, max_hold, self._overrun, max_hold)

    def _overrun(self, max_hold: float) -> None:
        extra = self._extras()
        error = HoldExceeded(f"the work under {self!r} ran for longer than max_hold={max_hold:g} s")
        if extra.handle is not None:
            self.tell("lost")
            self.end(finished=False)
        self._lose(error)

    def _lose(self, error: PermitLost) -> None:
        extra = self._extras()
        with _rare:
            if extra.error is not None:  # it is lost already, and its work knows why
                return
            extra.error = error
            loss = extra.loss
        if extra.timer is not None:
            extra.timer.cancel()
        self.tell("lost")
        if loss is not None:
            loss._happen()
        if extra.cancels:
            self.interrupt(error)

    def interrupt(self, error: GuardError) -> None:
        """Cancel the task whose block this is, which then ends with the error; the first one counts."""
        scope = self.scope  # once: its block may end meanwhile
        task = scope.task() if scope is not None else None
        if task is None:
            return
        extra = self._extras()
        with _rare:
            if extra.interruption is not None:
                return
            extra.interruption = error
        with contextlib.suppress(RuntimeError):  # a closed loop: nothing runs there any more
            task.get_loop().call_soon_threadsafe(self._cancel, task)

    def break_off(self, error: GuardError) -> None:
        """End the wait with an error, on its loop."""
        future = self.future
        if future is not None and not future.done():
            future.set_exception(error)

    # --- the permit of a block -----------------------------------------------------------------

    def open_block(self, scope: Scope) -> None:
        """Begin a block of the running task, whose scope it is."""
        self.scope = scope
        self.outer = scope.innermost
        scope.innermost = self

    def close_block(
        self, exc: BaseException | None, *, work: Future[Any] | None = None
    ) -> Awaitable[None] | None:
        """End with the block, but not before `work`; say why it was interrupted, if nothing else is."""
        scope, self.scope = self.scope, None
        if scope is not None:
            scope.remove(self)
        extra = self.extra
        if extra is not None and extra.heir is not None:
            heir, extra.heir = extra.heir, None
            if exc is None and extra.interruption is None:
                self.scope = heir
                return None
        acknowledged = None
        if work is not None and not work.done():
            work.add_done_callback(lambda _: self.end(finished=False))
        elif not isinstance(exc, GeneratorExit):
            try:
                acknowledged = self.end(finished=exc is None or isinstance(exc, Exception))
            except BackendUnavailable:  # which sees to it later
                if exc is None:
                    raise
        elif self.state == "held":  # perhaps in a finaliser
            self.abandon("released")
        extra = self.extra
        if extra is not None and extra.interruption is not None and scope is not None:
            task = scope.task()
            ours = extra.cancelled and task is not None and task.uncancel() <= extra.cancelling
            if exc is None or (ours and isinstance(exc, asyncio.CancelledError)):
                raise extra.interruption from exc
        return acknowledged

    def close_quickly(self) -> Awaitable[None] | None:
        """End with the block, which ended by itself; nearly always it is the innermost."""
        scope = self.scope
        if self.extra is not None or scope is None or scope.innermost is not self:
            return self.close_block(None)
        scope.innermost = self.outer
        self.scope = None
        return self.backend.leave(self)

    def say_if_lost(self) -> None:
        """Say that it was lost during a block that nothing could interrupt: a thread's, which has ended.

        Raises:
            PermitLost: it was, and the guard says that losses are errors.
        """
        extra = self.extra
        if extra is not None and extra.error is not None and extra.cancels:
            raise extra.error

    def pass_to(self, scope: Scope) -> None:
        """Have the work go on there when the block has ended."""
        self._extras().heir = scope

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if self.scope is not None:
            self._extras().cancelled = True
            task.cancel()

    # --- the permit of no block ----------------------------------------------------------------

    def handle(self) -> Permit:
        """Make the handle on this permit: the backend keeps the permit, its owner the handle."""
        handle = new_permit(self.id, self.terms, self.key, self.backend)
        handle._extras().real = self
        handle.granted, handle.arrival = self.granted, self.arrival
        self._extras().handle = ref(handle, self._dropped)
        return handle

    def _dropped(self, _: ref[Permit]) -> None:
        if self.state == "held":
            self.abandon("released")
            warnings.warn(
                f"a permit of guard {self.guard!r} was dropped and is released now: call `await "
                "permit.release()`, or use `async with guard`",
                ResourceWarning,
                stacklevel=2,
            )


def new_permit(ticket_id: int | str, terms: Terms, key: str | None, backend: Backend) -> Permit:
    """Make the permit that a ticket may become; see `Ticket` for why there is no constructor."""
    permit = Permit()
    permit.id = ticket_id
    permit.terms = terms
    permit.key = key
    permit.state = "new"
    permit.future = None
    permit.backend = backend
    permit.extra = permit.scope = None
    return permit


def current_permit() -> Permit:
    """Find the permit under which the calling code runs: that of the innermost block around it.

    It is the task's whose block it is, or the thread's that runs a guarded `def` or is in a block of its
    own. What these start in turn may outlive the block, so it has to be given the permit by hand.

    Raises:
        LookupError: no guarded block is around, or it has ended.
    """
    scope = scope_var.get()
    if scope is not None:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs in this thread
            task = None
        is_here = scope.is_here if isinstance(scope, ThreadScope) else scope.task() in (None, task)
        for permit in scope if is_here else ():
            if permit.state == "held":
                return permit
    raise LookupError(
        "no permit is held here: call current_permit() in the task inside `async with guard` or @guard, and "
        "hand the permit to the tasks and threads that it starts"
    )
