"""How clients of a file tell each other that there are news: each has a socket, by its number."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, final

from asyncguard.backends.system import short_name

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

_NEWS: Final = b"."
"""Not every system tells of a datagram that is empty."""
_HELLO: Final = b"!"


@final
class _Socket(socket.socket):
    """One that may be dropped: its loop may be closed before it comes to close the socket."""

    def __del__(self) -> None:
        self.close()


@final
class Bell:
    """A datagram socket; what is sent says no more than that it rings.

    It is heard on the event loop that its tickets wait on, if there is only one, and else by the porter:
    a loop that doesn't run would leave news unread that concern others.
    """

    def __init__(self, bells: Path, client: int) -> None:
        bells.mkdir(mode=0o700, exist_ok=True)
        self.bells = bells
        self.client = client
        self.take_down(client)
        self._directory = os.open(bells, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._name = short_name(bells, self._directory)
            self._socket = _Socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.bind(self._of(client))
        except OSError:
            os.close(self._directory)
            raise
        self.loop: asyncio.AbstractEventLoop | None = None
        """On which it is heard; None: the porter hears it."""
        self._last: asyncio.AbstractEventLoop | None = None
        """The last that heard it, and has to forget it before the socket is closed."""
        self._is_shared = False

    def _of(self, client: int) -> str:
        return f"{self._name}/{client}"

    def fileno(self) -> int:
        """Tell the descriptor to wait for."""
        return self._socket.fileno()

    def ring(self, client: int) -> None:
        """Tell a client that there are news for it."""
        self._send(client, _NEWS)

    def greet(self, client: int) -> None:
        """Tell a client that another has come, for it to watch."""
        self._send(client, _HELLO)

    def _send(self, client: int, what: bytes) -> None:
        with contextlib.suppress(OSError):  # it rings already, or nobody is there
            self._socket.sendto(what, self._of(client))

    def silence(self) -> bool:
        """Have it ring no more, until it is rung again; tell whether somebody has come."""
        came = False
        try:
            while True:
                came = self._socket.recv(1) == _HELLO or came
        except BlockingIOError:
            return came

    def is_new_to(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether a loop whose tickets wait is yet to be told to `hear_on`."""
        return self.loop is not loop and not self._is_shared

    def hear_on(self, loop: asyncio.AbstractEventLoop, hear: Callable[[], object]) -> None:
        """Have it heard on the running loop, to which it is new, unless there are others."""
        before = self.loop
        if before is None or before.is_closed():
            self.loop = self._last = loop
            loop.add_reader(self._socket, hear)
        else:
            self._is_shared = True
            self.loop = None
            with contextlib.suppress(RuntimeError):  # closed just now
                before.call_soon_threadsafe(before.remove_reader, self._socket)

    @property
    def is_up(self) -> bool:
        """Whether others can ring it: somebody may have deleted it."""
        return (self.bells / str(self.client)).exists()

    def take_down(self, client: int) -> None:
        """Remove the bell of one who is gone."""
        (self.bells / str(client)).unlink(missing_ok=True)

    def close(self) -> None:
        """Be rung no more."""
        self.take_down(self.client)
        self.put_away()

    def put_away(self) -> None:
        """Be heard no more."""
        os.close(self._directory)
        try:
            if self._last is not None:  # or it would wait for a descriptor that is another's by then
                self._last.call_soon_threadsafe(self._close_on, self._last)
                return
        except RuntimeError:  # it is closed, too
            pass
        self._socket.close()

    def _close_on(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._socket)
        self._socket.close()
