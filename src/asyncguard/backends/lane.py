"""An event loop's own connection to a Redis or Valkey server: no thread between a request and its answer."""

from __future__ import annotations

import contextlib
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Final, final

from hiredis import Reader, pack_command
from hiredis import ReplyError as Reply  # an answer that is an error

from asyncguard.clock import TICKS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from asyncguard.backends.courier import Request

_NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_MOST: Final = 65_536
"""Bytes that are read at once."""


@final
class Lane:
    """Sends requests in order, and reads their answers, on its loop.

    It knows the good days only. An answer that is an error, and all that is unanswered when the connection
    ends or stands still, goes back by `hand_over`: to the courier, who knows what to do.
    """

    def __init__(
        self,
        connection: Any,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], int],
        timeout: float,
        hand_over: Callable[[Request, Lane], None],
    ) -> None:
        self._connection = connection
        """Of redis-py, which has said who we are; it keeps the socket."""
        self._socket = connection._sock  # noqa: SLF001 - there is no other way to it
        self.loop = loop
        self._now = now
        self._timeout = timeout
        self._hand_over = hand_over
        self._reader = Reader()
        self._unanswered: deque[Request] = deque()
        self._unsent = bytearray()
        self._is_watched = False
        self._is_sending = False
        self.is_open = True
        self._socket.setblocking(False)
        loop.add_reader(self._socket, self._read)

    def send(self, request: Request) -> None:
        """Send something, now if the system takes it."""
        if self._is_sending:  # a finaliser, or a signal's handler, came in between
            self._hand_over(request, self)
            return
        self._is_sending = True
        try:
            self._send(request)
        finally:
            self._is_sending = False

    def _send(self, request: Request) -> None:
        request.sent = self._now()
        self._unanswered.append(request)
        data = pack_command(request.command)
        if not self._is_watched:
            self._is_watched = True
            self.loop.call_later(self._timeout, self._watch)
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._socket.send(data)
        except _NOT_NOW:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._unsent += data[sent:]
            self.loop.add_writer(self._socket, self._write)

    def close(self) -> None:
        """Give the connection up; on its loop, or when that is closed."""
        if not self.is_open:
            return
        self.is_open = False
        if not self.loop.is_closed():
            self.loop.remove_reader(self._socket)
            self.loop.remove_writer(self._socket)
        with contextlib.suppress(OSError):
            self._connection.disconnect()
        while self._unanswered:
            self._hand_over(self._unanswered.popleft(), self)

    def close_from_elsewhere(self) -> None:
        """Give the connection up, from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.close)
        except RuntimeError:  # its loop is closed
            self.close()

    def _write(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except _NOT_NOW:
            return
        except OSError:
            self.close()
            return
        if not self._unsent:
            self.loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_MOST)
            while data:
                self._take(data)
                if not self.is_open:
                    return
                if len(data) < _MOST and not isinstance(self._socket, ssl.SSLSocket):
                    return
                data = self._socket.recv(_MOST)
        except _NOT_NOW:
            return
        except OSError:
            pass
        self.close()

    def _take(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        while (answer := reader.gets()) is not False:
            request = self._unanswered.popleft()
            if not isinstance(answer, Reply):
                request.bring(answer)
                continue
            self._hand_over(request, self)
            if not str(answer).startswith("NOSCRIPT"):  # the courier mends that, and may connect elsewhere
                self.close()
                return

    def _watch(self) -> None:
        """See that the server answers."""
        self._is_watched = False
        if self._unanswered and self.is_open:
            left = self._unanswered[0].sent + round(self._timeout * TICKS) - self._now()
            if left <= 0:
                self.close()
            else:
                self._is_watched = True
                self.loop.call_later(left / TICKS, self._watch)
