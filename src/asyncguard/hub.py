"""AsyncGuard: from settings to a backend, and the guards on it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, Unpack, final

from asyncguard.backends import open_backend
from asyncguard.checks import check_choice, check_number, check_rate, check_whole
from asyncguard.client import Client
from asyncguard.clock import SystemClock
from asyncguard.errors import Draining, Status
from asyncguard.events import Observers
from asyncguard.guard import Guard, OnLost, Options, Replacement
from asyncguard.keys import as_name
from asyncguard.sideloop import SideLoop
from asyncguard.ticket import Order, Rate, Rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from concurrent.futures import Future
    from types import TracebackType

    from asyncguard.backends import Backend, Opener
    from asyncguard.clock import Clock
    from asyncguard.events import Observer
    from asyncguard.http import Installation

_MOST_THREADS = 1000
"""Threads for guarded `def`s; guards bound how many are in use, and none is started before it is needed."""


@final
class AsyncGuard:
    """A family of guards on one backend; make one for an application, at module level if you like.

    In memory two of them don't know of each other, even where guards have the same name.

    `url` names the backend (`memory:`); without one it is read from `ASYNCGUARD_URL` at the first use,
    and is this process's memory where that isn't set. `namespace` keeps applications apart that share
    a backend. Of two processes that declare a guard differently, the one with the higher `revision`
    (say, the time of its deploy) is believed. `clock` is for tests.

    `backend` is for a backend that isn't AsyncGuard's own: instead of a URL, a function that is called
    with the clock and the namespace at the first use, and makes an `asyncguard.backends.Backend`.
    Whether it keeps the rules, `asyncguard.testing.conformance` tells.

    Raises:
        TypeError, ValueError: an argument is out of bounds, no backend goes by the URL's scheme, or
            there are both a URL and a backend.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        backend: Opener | None = None,
        namespace: str = "asyncguard",
        revision: int = 0,
        clock: Clock | None = None,
    ) -> None:
        self.namespace = as_name(namespace, "namespace")
        self.revision = check_whole("revision", revision, least=0)
        if clock is not None and not callable(getattr(clock, "call_later", None)):
            raise TypeError(
                f"clock: expected one such as asyncguard.testing.ManualClock(), or None, got {clock!r}"
            )
        self.clock = clock or SystemClock()
        if backend is not None and url is not None:
            raise ValueError(f"backend: expected none beside the URL {url!r}, which names one too")
        if backend is not None and not callable(backend):
            raise TypeError(f"backend: expected a function of clock and namespace, got {backend!r}")
        self._opener = backend
        self._backend: Backend | None = (
            None if url is None else open_backend(url, clock=self.clock, namespace=self.namespace)
        )
        self.clients: dict[asyncio.AbstractEventLoop, Client] = {}
        self._draining = False
        self._executor: ThreadPoolExecutor | None = None
        self._side: SideLoop | None = None
        self._guards: dict[str, Guard] = {}
        """The guard that speaks for each name: the one declared, or the variant that replaced it."""
        self._bound: list[Guard] = []
        self.observers = Observers()
        self._made: weakref.WeakSet[Guard] = weakref.WeakSet()
        """Every guard and variant that is still in use."""
        self._lock = threading.Lock()
        _live.add(self)

    def start_anew(self) -> None:
        """Leave the parent's loops and threads behind in a forked child."""
        self._lock = threading.Lock()
        self._executor = None
        if self._side is not None:
            self._side.leave_behind()
            self._side = None
        self.clients = {}
        self.observers.late.clear()
        self._unbind()
        for guard in self._made:
            guard.forget_owner()

    def __repr__(self) -> str:
        return f"<AsyncGuard {self.namespace!r} with {len(self._guards)} guards>"

    def guard(
        self,
        name: str,
        *,
        limit: int = 1,
        max_waiting: int | None = 100,
        max_wait: float | None = 30.0,
        max_hold: float | None = None,
        order: Order = "fifo",
        rate: Rate | None = None,
        max_keys: int = 100_000,
        on_lost: OnLost = "cancel",
        status: Status = 503,
    ) -> Guard:
        """Declare a guard, or find the one that was declared with the same name and options.

        Args:
            name: by which its permits and queue are known on the backend; 1 to 128 characters.
            limit: how many permits each key has.
            max_waiting: how many tickets of a key may wait; None: any number.
            max_wait: how many seconds a ticket may wait; None: for ever.
            max_hold: after how many seconds the work is cancelled (`HoldExceeded`); None: never.
            order: "fifo": who came first; "lifo": who came last, and a full queue refuses the oldest;
                "fair": tenants in turn, by the permit-seconds that they had per share.
            rate: a pace for grants, such as `Rate(10, per=60, burst=2)`; None: none.
            max_keys: how many keys may be in use at once.
            on_lost: when a permit is taken away, "cancel" the work and raise `PermitLost`, or only
                "notify" it by `permit.lost`.
            status: how HTTP requests are answered that the queue turns away: 503, or 429 for a guard
                whose key or tenant says who the caller is.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: one is out of bounds, or the name was declared with other options.
        """
        options = self._options(
            name, limit, max_waiting, max_wait, max_hold, order, rate, max_keys, on_lost, status
        )
        with self._lock:
            guard = self._guards.get(name)
            if guard is None:
                guard = self._guards[name] = self._make(options)
            elif guard.options != options:
                raise ValueError(
                    f"guard {name!r} was declared with other options: {_difference(guard.options, options)}; "
                    "use one declaration, or guard.replace() for a variant"
                )
        return guard

    @property
    def guards(self) -> Mapping[str, Guard]:
        """The guards declared until now, by name; where one was replaced, its variant."""
        with self._lock:
            return MappingProxyType(dict(self._guards))

    # --- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.open()  # a URL that can't be used is told now
        self._draining = False
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002
        """Be an application's lifespan: `FastAPI(lifespan=ag.lifespan)`, where `install` isn't used."""
        async with self:
            yield

    def drain(self) -> None:
        """Let nobody in from now on: who waits in this process is refused (`Draining`), who works goes on."""
        with self._lock:
            self._draining = True
            self._unbind()
        for client in list(self.clients.values()):
            client.give_up("draining")

    async def aclose(self) -> None:
        """Refuse who waits on this event loop, and give back what is held of the system.

        With the last event loop it also refuses the threads that wait. Permits stay with their holders.
        A guard that is used again opens what it needs again.
        """
        client = self.clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            client.close("draining")
        with self._lock:
            executor = side = None
            aside = None if self._side is None else self._side.loop
            if not any(loop.is_running() for loop in list(self.clients) if loop is not aside):
                executor, self._executor = self._executor, None
                side, self._side = self._side, None
        if executor is not None:
            executor.shutdown(wait=False)
        if side is not None:
            client = self.clients.pop(side.loop, None)
            if client is not None:
                side.loop.call_soon_threadsafe(client.close, "draining")
            side.end()
        if self._backend is not None:
            await self._backend.aclose()
        self._draining = False

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call `observer` with an `Event` whenever something happens to a ticket; what results ends that.

        It hears of the tickets that enter from now on through this AsyncGuard, in this process. It is
        called at once, in the thread where it happened, so it mustn't block; what it raises is logged.

        Raises:
            TypeError: it can't be called, or is a coroutine function.
        """
        if not callable(observer) or inspect.iscoroutinefunction(observer):
            raise TypeError(f"observer: expected a plain function of one Event, got {observer!r}")

        with self._lock:
            observation = self.observers.add(observer)
            self._show_observers()

        def end() -> None:
            with self._lock:
                self.observers.remove(observation)
                self._show_observers()

        return end

    def explain(self) -> str:
        """Say in plain words what guards there are, where their permits live, and what that assumes."""
        lines = [f"namespace {self.namespace!r}, revision {self.revision}", self.open().assumptions]
        lines += [_explain(guard.options) for guard in self._guards.values()]
        return "\n".join(lines)

    def install(self, app: Any, **settings: Unpack[Installation]) -> None:
        """Serve the guards under a FastAPI or Starlette application: one call, before it starts.

        A request whose client leaves while it waits leaves the queue. Refusals become
        application/problem+json with Retry-After, responses get Server-Timing, `Prefer: wait=SECONDS`
        is heeded, and the guards live as long as the application, whose own lifespan is kept. When
        the process is told to stop, who waits is refused.

        Args:
            app: the application.
            settings: what `asyncguard.http.Installation` says; every one may be left out.

        Raises:
            TypeError: it isn't a FastAPI or Starlette application; a setting is of the wrong type.
            ValueError: a setting is out of bounds.
            RuntimeError: it was installed before, or the application has started.
        """
        from asyncguard.http.fastapi import install  # noqa: PLC0415

        install(self, app, **settings)

    # --- for its guards ------------------------------------------------------------------------

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a thread do a guarded `def`'s work: the loop's own threads are few, and look up names."""
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="asyncguard")
            return self._executor.submit(work, *args)

    def side_loop(self, user: object) -> SideLoop:
        """Find the loop on which threads wait that block, which runs until `user` has left it."""
        with self._lock:
            if self._side is None or not self._side.join(user):
                self._side = SideLoop(self)
                self._side.join(user)
            return self._side

    def client(self) -> Client:
        """This AsyncGuard on the running loop."""
        loop = asyncio.get_running_loop()
        client = self.clients.get(loop)
        if client is None:
            for other in [other for other in list(self.clients) if other.is_closed()]:
                self.clients.pop(other, None)
            client = self.clients[loop] = Client(loop, self.clock)
        return client

    def bind(self, guard: Guard) -> Backend:
        """Have a guard use the backend from now on, until it is unbound.

        Raises:
            Draining: this process is shutting down.
        """
        backend = self.open()
        with self._lock:
            if not self._draining:
                guard.bound_to = backend
                self._bound.append(guard)
                return backend
        raise Draining(
            f"guard {guard.name!r}: this process is shutting down; ask another one", guard=guard.name
        )

    def replace(self, options: Options, changes: Replacement) -> Guard:
        """Make the variant of a guard."""
        rules = options.rules
        declared: dict[str, Any] = {
            "name": options.name,
            "limit": rules.limit,
            "max_waiting": rules.max_waiting,
            "max_wait": options.max_wait,
            "max_hold": options.max_hold,
            "order": rules.order,
            "rate": rules.rate,
            "max_keys": rules.max_keys,
            "on_lost": options.on_lost,
            "status": options.status,
        }
        unknown = changes.keys() - declared.keys()
        if unknown:
            raise TypeError(f"unexpected argument {min(unknown)!r}; expected one of {', '.join(declared)}")
        variant = self._options(**{**declared, **changes})
        if variant.name != options.name:
            return self.guard(**{**declared, **changes})
        with self._lock:
            before = self._guards[variant.name].options
            guard = self._guards[variant.name] = self._make(variant)
        if variant.rules != before.rules:
            self.open().redeclare(guard.declaration)
        return guard

    def open(self) -> Backend:
        """Find the backend, and open it at the first use."""
        with self._lock:
            if self._backend is None:
                if self._opener is not None:
                    self._backend = self._opener(self.clock, self.namespace)
                else:
                    self._backend = open_backend(
                        os.environ.get("ASYNCGUARD_URL"), clock=self.clock, namespace=self.namespace
                    )
            return self._backend

    def _show_observers(self) -> None:
        for guard in self._made:
            guard.tell(self.observers)

    def _make(self, options: Options) -> Guard:
        guard = Guard(self, options)
        self._made.add(guard)
        return guard

    def _unbind(self) -> None:
        bound, self._bound = self._bound, []
        for guard in bound:
            guard.bound_to = None

    def _options(
        self,
        name: str,
        limit: int,
        max_waiting: int | None,
        max_wait: float | None,
        max_hold: float | None,
        order: Order,
        rate: Rate | None,
        max_keys: int,
        on_lost: OnLost,
        status: Status,
    ) -> Options:
        check_rate(rate)
        check_choice("order", order, Order)
        check_choice("on_lost", on_lost, OnLost)
        check_choice("status", status, Status)
        return Options(
            name=as_name(name),
            rules=Rules(
                limit=check_whole("limit", limit, least=1),
                max_waiting=None if max_waiting is None else check_whole("max_waiting", max_waiting, least=0),
                order=order,
                rate=rate,
                max_keys=check_whole("max_keys", max_keys, least=1),
                revision=self.revision,
            ),
            max_wait=None if max_wait is None else check_number("max_wait", max_wait),
            max_hold=None if max_hold is None else check_number("max_hold", max_hold, above=True),
            on_lost=on_lost,
            status=status,
        )


def _flat(options: Options) -> dict[str, Any]:
    flat = {**dataclasses.asdict(options), **dataclasses.asdict(options.rules)}
    return {name: value for name, value in flat.items() if name not in ("name", "rules", "revision")}


def _difference(declared: Options, now: Options) -> str:
    before, after = _flat(declared), _flat(now)
    return ", ".join(
        f"{name}={after[name]!r} instead of {before[name]!r}"
        for name in before
        if before[name] != after[name]
    )


def _explain(options: Options) -> str:
    return f"guard {options.name!r}: " + ", ".join(
        f"{name}={value!r}" for name, value in _flat(options).items()
    )


_live: weakref.WeakSet[AsyncGuard] = weakref.WeakSet()


def _leave_the_parent_behind() -> None:
    for hub in list(_live):
        hub.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_parent_behind)
