"""What a server receives for one exchange: watched for a client that leaves, and kept for the application."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.http.asgi import Message, Receive

MOST_KEPT: Final = 1024 * 1024
"""Bytes of a body that are read ahead while a ticket waits; behind that the client isn't watched."""
_DISCONNECTS: Final = ("http.disconnect", "websocket.disconnect")


@final
class Inbox:
    """Asks the server for one message at a time, and never takes the question back.

    A server may forget a message when whoever asked for it is cancelled. So while the client is
    watched a task of its own asks, and what it gets is kept for the application, in order.
    """

    def __init__(self, receive: Receive, left: Callable[[], None]) -> None:
        self._receive = receive
        self._left = left
        """Called when the client leaves."""
        self.has_left = False
        self._watched = False
        self._kept: deque[Message] = deque()
        self._size = 0
        """Bytes in what is kept."""
        self._question: asyncio.Task[Message] | None = None
        """Ours to the server, still open."""
        self._asked: asyncio.Future[None] | None = None
        """The application's own question is open; done once it isn't."""
        self._error: BaseException | None = None
        """What the server answered ours with instead."""

    async def receive(self) -> Message:
        """Be what the application asks."""
        while not self._kept:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            still_open = self._question or self._asked
            if still_open is None:
                return await self._pass_on()
            await asyncio.wait([still_open])
        message = self._kept.popleft()
        self._size -= _size(message)
        self._ask()
        return message

    async def _pass_on(self) -> Message:
        asked = self._asked = asyncio.get_running_loop().create_future()
        try:
            message = await self._receive()
            self._look_at(message)
        finally:
            self._asked = None
            asked.set_result(None)
            self._ask()
        return message

    def watch(self) -> None:
        """Look out for a client that leaves, from now on."""
        self._watched = True
        self._ask()

    def unwatch(self) -> None:
        """Ask the server for nothing that the application doesn't ask for."""
        self._watched = False

    def close(self) -> None:
        """Take the open question back, now that nobody will want what it brings."""
        self._watched = False
        self._left = _nothing  # what it would tell, it need not keep in memory
        if self._question is not None:
            self._question.cancel()

    def _ask(self) -> None:
        if (
            self._watched
            and self._question is None
            and self._asked is None
            and not self.has_left
            and self._error is None
            and self._size < MOST_KEPT
        ):
            # In a coroutine of our own: what a server's `receive` returns need not be one.
            self._question = asyncio.create_task(self._answer(), name="asyncguard: watch a client")
            self._question.add_done_callback(self._keep)

    async def _answer(self) -> Message:
        return await self._receive()

    def _keep(self, question: asyncio.Task[Message]) -> None:
        self._question = None
        if question.cancelled():
            return
        self._error = question.exception()
        if self._error is None:
            message = question.result()
            self._kept.append(message)
            self._size += _size(message)
            self._look_at(message)
            self._ask()

    def _look_at(self, message: Message) -> None:
        if message["type"] in _DISCONNECTS and not self.has_left:
            self.has_left = True
            self._left()


def _nothing() -> None:
    """Be told that the client has left, when that is no news."""


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")
