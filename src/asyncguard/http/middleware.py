"""Pure ASGI: shows guards the request that they serve, and answers for them."""

from __future__ import annotations

import contextlib
import functools
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Literal, final
from urllib.parse import quote

from asyncguard.http.problems import ANSWERED, Problem, problem
from asyncguard.permit import exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from asyncguard.errors import PermitLost, Refused, WouldBlock
    from asyncguard.permit import Permit

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_TRY_AGAIN_LATER = 1013
"""The code of a WebSocket's close that says so."""
_QUOTABLE = " !#$%&'()*+,/:;<=>?@[]^`{|}"
"""What may stand in a quoted string as it is, besides letters, digits and `_.-~`."""


@final
class ExchangeMiddleware:
    """Give every request an exchange, and every refusal its answer.

    A response gets a `Server-Timing` header that says how long the request queued and worked under
    each guard until then. `Refused`, `WouldBlock` and `PermitLost` become application/problem+json
    where the application has no handler for them and has not begun to answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        # Of two with nothing in between, as `install` may come to, one is enough.
        self.app: ASGIApp = app.app if isinstance(app, ExchangeMiddleware) else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a WebSocket; nothing is done about a lifespan."""
        kind = _EXCHANGES.get(scope["type"])
        if kind is None:
            await self.app(scope, receive, send)
            return
        served = kind(scope, send)
        before = exchange.set(served)
        try:
            await self.app(scope, receive, served.send)
        except ANSWERED as error:
            if not served.can_answer:
                raise
            await served.answer(error)
        finally:
            exchange.reset(before)
            if served.held_back:
                await served.finish()


@final
class HTTPExchange:
    """A request and its response."""

    __slots__ = ("_permits", "_send", "can_answer", "held_back")

    def __init__(self, _: Scope, send: Send) -> None:
        self._send = send
        self._permits: list[Permit] = []
        self.can_answer = True
        """Whether nothing was answered yet."""
        self.held_back: list[Message] = []
        """What the application sent and may not have meant."""

    def granted(self, permit: Permit) -> None:
        """Note a permit, for as long as the response's headers can still tell of it."""
        if self.can_answer:
            self._permits.append(permit)

    async def send(self, message: Message) -> None:
        """Send on what the application sends, and tell what was waited for.

        An application that is mounted in this one answers every error it doesn't know with a 500, and
        raises it on. Such an answer is held back until it is clear whether the error comes here.
        """
        if message["type"] == "http.response.start":
            if message["status"] == HTTPStatus.INTERNAL_SERVER_ERROR and isinstance(
                sys.exception(), ANSWERED
            ):
                self.held_back.append(message)
                return
            message = self._start(message)
        elif self.held_back:
            self.held_back.append(message)
            return
        await self._send(message)

    def _start(self, message: Message) -> Message:
        self.can_answer = False
        if not self._permits:
            return message
        timing = (b"server-timing", server_timing(self._permits).encode())
        self._permits = []
        return {**message, "headers": [*message.get("headers", ()), timing]}

    async def answer(self, error: Refused | WouldBlock | PermitLost) -> None:
        """Answer with the problem."""
        self.held_back = []
        await _respond("http.response", problem(error), self.send)

    async def finish(self) -> None:
        """Send what was held back after all."""
        start, *rest = self.held_back
        self.held_back = []
        await self._send(self._start(start))
        for message in rest:
            await self._send(message)


@final
class WebSocketExchange:
    """A WebSocket from its handshake to its end."""

    __slots__ = ("_can_respond", "_send", "_state", "held_back")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self.held_back: tuple[()] = ()
        self._can_respond = "websocket.http.response" in (scope.get("extensions") or {})
        self._state: Literal["connecting", "open", "closed"] = "connecting"

    def granted(self, permit: Permit) -> None:
        """Take no note: the response that could tell of a permit is the handshake."""

    async def send(self, message: Message) -> None:
        """Send on what the application sends."""
        if message["type"] == "websocket.accept":
            self._state = "open"
        elif message["type"] != "websocket.send":
            self._state = "closed"
        await self._send(message)

    @property
    def can_answer(self) -> bool:
        """Whether it wasn't closed or denied by the application."""
        return self._state != "closed"

    async def answer(self, error: Refused | WouldBlock | PermitLost) -> None:
        """Deny the handshake with the problem, or close; a client that left needs no answer."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._state == "connecting" and self._can_respond:
                await _respond("websocket.http.response", problem(error), self.send)
            else:
                reason = getattr(error, "reason", "")
                await self.send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": reason})

    async def finish(self) -> None:
        """Do nothing: nothing is ever held back."""


_EXCHANGES: Final[dict[str, type[HTTPExchange | WebSocketExchange]]] = {
    "http": HTTPExchange,
    "websocket": WebSocketExchange,
}


async def _respond(kind: str, answer: Problem, send: Send) -> None:
    await send({"type": f"{kind}.start", "status": answer.status, "headers": answer.raw_headers})
    await send({"type": f"{kind}.body", "body": answer.content})


def server_timing(permits: list[Permit]) -> str:
    """Write a Server-Timing value: for each guard, milliseconds queued and worked until now.

    A guard that was taken more than once has one pair of entries with the sums.
    """
    sums: dict[str, tuple[float, float]] = {}
    for permit in permits:
        waited, held = sums.get(permit.guard, (0.0, 0.0))
        sums[permit.guard] = (waited + permit.waited, held + permit.held)
    return ", ".join(
        f'queue;desc="{_quotable(guard)}";dur={waited * 1000:.1f}, work;dur={held * 1000:.1f}'
        for guard, (waited, held) in sums.items()
    )


@functools.lru_cache
def _quotable(name: str) -> str:
    return quote(name, _QUOTABLE)
