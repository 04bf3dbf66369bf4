"""What an application sends, and the answer in its place where a guard refused."""

from __future__ import annotations

import contextlib
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, final

from asyncguard.errors import ClientLeft
from asyncguard.http.problems import ANSWERED, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from asyncguard.http.asgi import Message, Scope, Send

_TRY_AGAIN_LATER: Final = 1013
_NOT_AS_IT_HAS_TO_BE: Final = 1008
"""Codes of a WebSocket's close that say so."""
_CLIENT_LEFT: Final = 499
"""The status that servers log where the client didn't wait for the response."""
_EMPTY: Final = ((b"content-length", b"0"),)
SERVER_ERROR: Final = 500
_CAUGHT: Final = (*ANSWERED, ClientLeft)


class HTTPReply:
    """What one application sends for a request.

    An application that is mounted in this one answers every error it doesn't know with a 500, and
    raises it on. Such an answer is held back until it is clear whether the error comes here.
    """

    if not TYPE_CHECKING:
        __slots__ = ()  # who is one has room for these, with what else it is

    _request: Scope
    held_back: list[Message] | None
    """What the application sent and may not have meant."""

    @property
    def can_answer(self) -> bool:
        """Whether nothing was answered yet."""
        raise NotImplementedError

    def send(self, message: Message) -> Awaitable[None]:
        """Send on what the application sends, or hold it back."""
        raise NotImplementedError

    def pass_on(self, message: Message) -> Awaitable[None]:
        """Send it on for certain."""
        raise NotImplementedError

    def hold_back(self, message: Message) -> Awaitable[None]:
        """Keep a message until it is clear whether it is meant."""
        if self.held_back is None:
            self.held_back = []
        self.held_back.append({**message})
        return _nothing()

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
        is_head = self._request.get("method") == "HEAD"
        await _respond("http.response", answer, self.send, has_body=not is_head)

    async def finish(self) -> None:
        """Send what was held back, if anything was, after all."""
        messages, self.held_back = self.held_back or (), None
        for message in messages:
            await self.pass_on(message)


def may_not_be_meant() -> bool:
    """Whether an answer with 500 that is sent now may come of an error that is answered here."""
    return isinstance(sys.exception(), _CAUGHT)


@final
class InnerReply(HTTPReply):
    """That of an application whose exchange is further out."""

    __slots__ = ("_can_answer", "_request", "_send", "held_back")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._request = scope
        self.held_back = None
        self._send = send
        self._can_answer = True

    @property
    def can_answer(self) -> bool:
        """Whether nothing was answered yet."""
        return self._can_answer

    def send(self, message: Message) -> Awaitable[None]:
        """Send on what the application sends, or hold it back."""
        if message["type"] == "http.response.start":
            if message["status"] == SERVER_ERROR and may_not_be_meant():
                return self.hold_back(message)
            self._can_answer = False
        elif self.held_back is not None:
            return self.hold_back(message)
        return self._send(message)

    def pass_on(self, message: Message) -> Awaitable[None]:
        """Send it on for certain."""
        self._can_answer = False
        return self._send(message)


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
                bad = answer.status == HTTPStatus.BAD_REQUEST
                code = _NOT_AS_IT_HAS_TO_BE if bad else _TRY_AGAIN_LATER
                await self.send({"type": "websocket.close", "code": code, "reason": answer.reason})

    async def finish(self) -> None:
        """Do nothing."""


async def _nothing() -> None:
    """Be awaited in place of what is held back."""


async def _respond(kind: str, answer: Problem, send: Send, *, has_body: bool = True) -> None:
    await send({"type": f"{kind}.start", "status": answer.status, "headers": answer.raw_headers})
    await send({"type": f"{kind}.body", "body": answer.content if has_body else b""})
