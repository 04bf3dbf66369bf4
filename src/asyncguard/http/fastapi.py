"""Guards under a FastAPI or Starlette application."""

import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Unpack, final

from starlette.middleware import Middleware
from starlette.requests import HTTPConnection

from asyncguard.guard import Demand, Guard
from asyncguard.http import Installation
from asyncguard.http.middleware import ExchangeMiddleware, GuardMiddleware
from asyncguard.http.problems import RESPONSES, responses_with
from asyncguard.http.requirement import Requirement
from asyncguard.http.shutdown import draining_on_signals
from asyncguard.http.sources import NoKey, Source, client_ip, header, path_param
from asyncguard.permit import Hold, Permit

if TYPE_CHECKING:
    from asyncguard.http.asgi import ASGIApp, Receive, Scope, Send
    from asyncguard.hub import AsyncGuard

__all__ = [
    "RESPONSES",
    "GuardMiddleware",
    "NoKey",
    "client_ip",
    "header",
    "install",
    "path_param",
    "require",
    "responses_with",
]

_log = logging.getLogger("asyncguard")
_NEEDED = ("build_middleware_stack", "user_middleware", "router.lifespan_context")


def install(ag: "AsyncGuard", app: Any, **settings: Unpack[Installation]) -> None:
    """Serve guards under an application: `AsyncGuard.install` says what that means.

    Raises:
        TypeError: it isn't a FastAPI or Starlette application; a setting is of the wrong type.
        ValueError: a setting is out of bounds.
        RuntimeError: it was installed before, or the application has started.
    """
    if not all(_has(app, name) for name in _NEEDED):
        raise TypeError(f"app: expected a FastAPI or Starlette application, got {app!r}")
    if any(middleware.cls is ExchangeMiddleware for middleware in app.user_middleware):
        raise RuntimeError(
            "install() was called before for this application, by this AsyncGuard or another: make one, and "
            "import it"
        )
    if getattr(app, "middleware_stack", None) is not None:
        raise RuntimeError("the application has started already: call install(app) before it serves")
    ExchangeMiddleware(app, **settings)  # so that what is wrong is said here
    # Twice: inside the application's other middleware, so that it sees a refusal as a response like any
    # other (and CORS can add its headers), and outside, for the guards that are taken in middleware and
    # to see a client leave, which some middleware hides.
    exchange = Middleware(ExchangeMiddleware, **settings)
    app.user_middleware.append(exchange)
    own_build = app.build_middleware_stack

    def build_middleware_stack() -> Any:
        # Late, so that this is outside of middleware too that is added after `install`.
        if app.user_middleware[0] is not exchange:
            app.user_middleware.insert(0, exchange)
        return _MountCheck(app, own_build(), ag)

    app.build_middleware_stack = build_middleware_stack
    own_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        _living.add(ag)
        try:
            async with ag, own_lifespan(app) as state:
                with draining_on_signals(ag):
                    yield state
        finally:
            _living.discard(ag)

    app.router.lifespan_context = lifespan


_living: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
"""Those whose application's lifespan runs."""


@final
class _MountCheck:
    """Tells operators once if the application is mounted in another one, which doesn't run its lifespan.

    It stands around the application's stack of middleware until the first request.
    """

    def __init__(self, app: Any, stack: "ASGIApp", ag: "AsyncGuard") -> None:
        self._app = app
        self._stack = stack
        self._ag = ag
        self._has_checked = False

    def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> Awaitable[None]:
        if not self._has_checked and scope["type"] != "lifespan":
            if self._app.middleware_stack is self:  # and nothing was put around it
                self._app.middleware_stack = self._stack
            self._has_checked = True
            if "app_root_path" in scope and self._ag not in _living:
                _log.warning(
                    "install(app) was called for an application that is mounted at %s, and nobody runs its "
                    "lifespan: who waits is not refused when the server stops; call install() for the "
                    "outermost application, which is enough for all that are mounted in it",
                    scope["root_path"],
                )
        return self._stack(scope, receive, send)


def _has(app: object, path: str) -> bool:
    value = app
    for name in path.split("."):
        value = getattr(value, name, None)
    return value is not None


@final
@dataclass(frozen=True, slots=True)
class _Dependency:
    """What FastAPI calls; two that are equal are one dependency of a request."""

    requirement: Requirement

    # FastAPI reads the annotations here, so they are what they name, and not text.
    async def __call__(self, connection: HTTPConnection) -> AsyncIterator[Permit]:
        async with self.requirement.take(connection.scope) as permit:
            yield permit


def require(
    guard: Guard,
    *,
    key: Source | None = None,
    tenant: Source | None = None,
    hold: Hold = "auto",
    **ask: Unpack[Demand],
) -> Callable[[HTTPConnection], AsyncIterator[Permit]]:
    """Make a dependency of routes, routers or applications that holds a permit for each request.

    `Depends(require(guard, key=path_param("account")))` takes it before the dependencies that are named
    after it, and gives the permit to who asks for it, as in `permit: Annotated[Permit, Depends(...)]`.
    `key` and `tenant` say where in the request those are found: a source such as `header("x-api-key")`,
    `client_ip()` or `path_param("account")`, or a function of the ASGI scope. Where they identify the
    caller, a full queue is answered with 429; a request without a key is answered with 400, and one
    without a tenant shares that of all others. `hold` says until when the permit is held, as with the
    decorator; without `ag.install(app)` that is when the background tasks have ended.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of bounds.
    """
    return _Dependency(Requirement(guard, key, tenant, hold, tuple(sorted(ask.items()))))
