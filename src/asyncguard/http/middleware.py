"""Pure ASGI: shows guards the request that they serve, and answers for them."""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Final, Unpack, final

from asyncguard.checks import check_choice, check_number
from asyncguard.errors import BackendUnavailable, ClientLeft
from asyncguard.http import Expose, OnDisconnect
from asyncguard.http.exchange import NAME, Exchange, Settings
from asyncguard.http.problems import ANSWERED, check_problems, problem
from asyncguard.http.replies import HTTPReply, InnerReply, WebSocketReply
from asyncguard.http.requirement import Requirement

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.guard import Demand, Guard
    from asyncguard.http.asgi import ASGIApp, Receive, Scope, Send
    from asyncguard.http.sources import Source
    from asyncguard.permit import Hold

_KINDS: Final = ("http", "websocket")
_MINUTE: Final = 60.0
_told: Final[dict[str, float]] = {}
"""What was said last of the backend, and when."""
_log = logging.getLogger("asyncguard")


@final
class ExchangeMiddleware:
    """Give every request an exchange, and every refusal its answer.

    While a ticket waits the client is watched, and one that leaves leaves the queue. A response gets a
    `Server-Timing` header that says how long the request queued and worked under each guard until
    then. `Refused`, `WouldBlock` and `PermitLost` become application/problem+json where the
    application has no handler for them and has not begun to answer.

    `asyncguard.http.Installation` says what the settings mean.

    Raises:
        TypeError, ValueError: a setting is of the wrong type or out of bounds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_disconnect: OnDisconnect = "finish",
        send_timeout: float = 30.0,
        expose: Expose = "nothing",
        problems: str = "",
    ) -> None:
        check_choice("on_disconnect", on_disconnect, OnDisconnect)
        check_choice("expose", expose, Expose)
        patience = check_number("send_timeout", send_timeout, above=True)
        self._settings = Settings(on_disconnect == "cancel", patience)
        self._problem = functools.partial(problem, expose=expose, problems=check_problems(problems))
        # Of two with nothing in between, as `install` may come to, one is enough.
        self.app: ASGIApp = app.app if isinstance(app, ExchangeMiddleware) else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket; nothing is done about a lifespan."""
        kind = scope["type"]
        if kind not in _KINDS:
            await self.app(scope, receive, send)
            return
        served = None
        reply: HTTPReply | WebSocketReply
        if NAME in scope:
            reply = InnerReply(scope, send) if kind == "http" else WebSocketReply(scope, send)
        else:
            served = Exchange(scope, receive, send, self._settings)
            reply = served if kind == "http" else WebSocketReply(scope, served.send)
            scope, receive = {**scope}, served.receive  # {**scope, NAME: served} takes twice as long
            scope[NAME] = served
        app = self.app
        try:
            try:
                await app(scope, receive, reply.send)
            except BaseException as error:
                if served is not None:
                    served.end(error)
                raise
            if served is not None:
                served.end(None)
        except ClientLeft:
            await reply.answer_nobody()
        except ANSWERED as error:
            if not reply.can_answer:
                raise
            if isinstance(error, BackendUnavailable):
                _say_why(str(error))
            await reply.answer(self._problem(error))
        finally:
            if reply.held_back is not None:
                await reply.finish()


@final
class GuardMiddleware:
    """Hold a permit for each request, and decide about it before anything of its body is read.

    `match` says which requests: those whose path begins with it (below the prefix at which the
    application is served or mounted), or a function of the ASGI scope; None: all. OPTIONS and lifespans
    are always left alone. `key` and `tenant` are sources such as `header("x-api-key")` and `client_ip()`,
    or functions of the scope. `hold` and what may be asked are as with the decorator.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of bounds.
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: Guard,
        *,
        match: str | Callable[[Scope], bool] | None = None,
        key: Source | None = None,
        tenant: Source | None = None,
        hold: Hold = "auto",
        **ask: Unpack[Demand],
    ) -> None:
        if match is not None and not isinstance(match, str) and not callable(match):
            raise TypeError(
                f"match: expected the beginning of a path or a function of the scope, got {match!r}"
            )
        self.app = app
        self._match = match
        self._requirement = Requirement(guard, key, tenant, hold, tuple(sorted(ask.items())))
        self._alone = ExchangeMiddleware(self._serve)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket; nothing is done about a lifespan."""
        if not self._concerns(scope):
            await self.app(scope, receive, send)
        elif Exchange.of(scope) is None:
            await self._alone(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    def _concerns(self, scope: Scope) -> bool:
        if scope["type"] not in _KINDS or scope.get("method") == "OPTIONS":
            return False
        match = self._match
        if isinstance(match, str):
            return _routed_path(scope).startswith(match)
        return match is None or match(scope)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._requirement.take(scope):
            await self.app(scope, receive, send)


def _routed_path(scope: Scope) -> str:
    """Find the path as routes are written: below the prefix at which the application is served."""
    path: str = scope["path"]
    below = path.removeprefix(scope.get("root_path", ""))
    return below if below.startswith("/") else path


def _say_why(fault: str) -> None:
    """Tell operators what is wrong with the backend, which clients needn't know, once a minute."""
    now = time.monotonic()
    if _told.get(fault, -_MINUTE) + _MINUTE <= now:
        _told.clear()
        _told[fault] = now
        _log.error("guarded requests are answered with 503: %s", fault)
