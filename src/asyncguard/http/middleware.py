"""Pure ASGI: shows guards the request that they serve, and answers for them."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, Unpack, final

from asyncguard.checks import check_choice, check_number
from asyncguard.errors import BackendUnavailable, ClientLeft
from asyncguard.http import Expose, OnDisconnect
from asyncguard.http.exchange import Exchange, Settings
from asyncguard.http.problems import ANSWERED, Problem, check_problems, problem
from asyncguard.http.requirement import Requirement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncguard.guard import Demand, Guard
    from asyncguard.http.asgi import ASGIApp, Message, Receive, Scope, Send
    from asyncguard.http.sources import Source
    from asyncguard.permit import Hold

_TRY_AGAIN_LATER: Final = 1013
"""The code of a WebSocket's close that says so."""
_CLIENT_LEFT: Final = 499
"""The status that servers log where the client didn't wait for the response."""
_MINUTE: Final = 60.0
_told: Final[dict[str, float]] = {}
"""What was said last of the backend, and when."""
_log = logging.getLogger("asyncguard")
_EMPTY: Final = ((b"content-length", b"0"),)
_CAUGHT: Final = (*ANSWERED, ClientLeft)


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
        self._settings = Settings(on_disconnect, check_number("send_timeout", send_timeout, above=True))
        self._problem = functools.partial(problem, expose=expose, problems=check_problems(problems))
        # Of two with nothing in between, as `install` may come to, one is enough.
        self.app: ASGIApp = app.app if isinstance(app, ExchangeMiddleware) else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket; nothing is done about a lifespan."""
        make = _REPLIES.get(scope["type"])
        if make is None:
            await self.app(scope, receive, send)
            return
        served = None
        if Exchange.of(scope) is None:
            served = Exchange(scope, receive, send, self._settings)
            scope, receive, send = served.register(), served.receive, served.send
        reply = make(scope, send)
        try:
            try:
                await self.app(scope, receive, reply.send)
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
        if scope["type"] not in _REPLIES or scope.get("method") == "OPTIONS":
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


@final
class HTTPReply:
    """What one application sends for a request."""

    __slots__ = ("_is_head", "_send", "can_answer", "held_back")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._is_head = scope.get("method") == "HEAD"
        self._send = send
        self.can_answer = True
        """Whether nothing was answered yet."""
        self.held_back: list[Message] | None = None
        """What the application sent and may not have meant."""

    def send(self, message: Message) -> Awaitable[None]:
        """Send on what the application sends.

        An application that is mounted in this one answers every error it doesn't know with a 500, and
        raises it on. Such an answer is held back until it is clear whether the error comes here.
        """
        if message["type"] == "http.response.start":
            if message["status"] == HTTPStatus.INTERNAL_SERVER_ERROR and isinstance(sys.exception(), _CAUGHT):
                self.held_back = [{**message}]
                return _nothing()
            self.can_answer = False
        elif self.held_back is not None:
            self.held_back.append({**message})
            return _nothing()
        return self._send(message)

    async def answer_nobody(self) -> None:
        """Answer for the client that left, as middleware and servers expect an answer."""
        self.held_back = None
        if self.can_answer:
            with contextlib.suppress(OSError, RuntimeError):
                await self.send({"type": "http.response.start", "status": _CLIENT_LEFT, "headers": _EMPTY})
                await self.send({"type": "http.response.body"})

    async def answer(self, answer: Problem) -> None:
        """Answer with the problem."""
        self.held_back = None
        await _respond("http.response", answer, self.send, has_body=not self._is_head)

    async def finish(self) -> None:
        """Send what was held back, if anything was, after all."""
        messages, self.held_back = self.held_back or (), None
        for message in messages:
            self.can_answer = False
            await self._send(message)


@final
class WebSocketReply:
    """What one application sends over a WebSocket, from its handshake to its end."""

    __slots__ = ("_can_respond", "_send", "_state")

    held_back: Final = None
    """Nothing ever is."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._can_respond = "websocket.http.response" in (scope.get("extensions") or {})
        self._state: Literal["connecting", "open", "closed"] = "connecting"

    def send(self, message: Message) -> Awaitable[None]:
        """Send on what the application sends."""
        if message["type"] == "websocket.accept":
            self._state = "open"
        elif message["type"] != "websocket.send":
            self._state = "closed"
        return self._send(message)

    @property
    def can_answer(self) -> bool:
        """Whether it wasn't closed or denied by the application."""
        return self._state != "closed"

    async def answer_nobody(self) -> None:
        """Do nothing: a connection that is gone is closed."""

    async def answer(self, answer: Problem) -> None:
        """Deny the handshake with the problem, or close; a client that left needs no answer."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._state == "connecting" and self._can_respond:
                await _respond("websocket.http.response", answer, self.send)
            else:
                await self.send(
                    {"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": answer.reason}
                )

    async def finish(self) -> None:
        """Do nothing."""


def _say_why(fault: str) -> None:
    """Tell operators what is wrong with the backend, which clients needn't know, once a minute."""
    now = time.monotonic()
    if _told.get(fault, -_MINUTE) + _MINUTE <= now:
        _told.clear()
        _told[fault] = now
        _log.error("guarded requests are answered with 503: %s", fault)


async def _nothing() -> None:
    """Be awaited in place of what is held back."""


_REPLIES: Final[dict[str, type[HTTPReply | WebSocketReply]]] = {
    "http": HTTPReply,
    "websocket": WebSocketReply,
}


async def _respond(kind: str, answer: Problem, send: Send, *, has_body: bool = True) -> None:
    await send({"type": f"{kind}.start", "status": answer.status, "headers": answer.raw_headers})
    await send({"type": f"{kind}.body", "body": answer.content if has_body else b""})
