"""A network that can be made to fail: a proxy between clients and a Redis or Valkey server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_POLL = 0.002
"""Seconds between two looks at whether what was held back may pass."""
_SOON = 10.0


class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.client = client
        self.server: asyncio.StreamWriter | None = None
        self.has_stalled = False
        self.brings_notices = False
        self.is_mute = False
        """Whether a reply was lost on it: then no other may take its place."""

    def close(self) -> None:
        for writer in (self.client, self.server):
            if writer is not None:
                writer.transport.abort()


class MeddlingProxy:
    """Passes on what goes between clients and a server, but for what a test says; from any thread.

    Its attributes are the faults, and can be set at any time; the methods are those that happen once.
    """

    def __init__(self, url: str) -> None:
        self.target = _place(url)
        """Where new connections go to: host and port."""
        self.delay = 0.0
        """Seconds that everything takes, each way."""
        self.is_black_hole = False
        """Whether nothing passes, though connections can be made; what was sent arrives afterwards."""
        self.refuses = False
        """Whether new connections end at once."""
        self.loses_replies = False
        """Whether requests pass, and what the server says is lost, with all that follows it there."""
        self.doubles_requests = False
        """Whether each run of a script is sent again, a moment later, as if the network had done so."""
        self.holds_notices = False
        """Whether what comes on channels is held back, and nothing else."""
        self.seen: list[str] = []
        """The operations that clients have sent: `enter`, `leave`..., and commands that are no scripts."""
        self.url = ""
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="meddling proxy", daemon=True)
        self._has_started = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._has_started.wait(_SOON)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self, *, notices_only: bool = False) -> None:
        """End all connections there are, or those on which notices come."""
        self._on_loop(self._cut, notices_only)

    def stall(self) -> None:
        """Have nothing pass any more on the connections there are now, until it is delivered."""
        self._on_loop(self._set_stalled, True)

    def deliver(self) -> None:
        """Have all arrive that was sent on connections that have stalled, also of clients that have gone."""
        self._on_loop(self._set_stalled, False)

    async def sent(self, operation: str, times: int = 1) -> None:
        """Wait until clients have sent something so often."""
        async with asyncio.timeout(_SOON):
            while self.seen.count(operation) < times:  # noqa: ASYNC110 - another thread's
                await asyncio.sleep(_POLL)

    # --- its thread ----------------------------------------------------------------------------

    def _on_loop(self, do: Callable[..., None], *args: object) -> None:
        done = threading.Event()

        def run() -> None:
            do(*args)
            done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(_SOON)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        self._has_started.set()
        self._loop.run_forever()
        server.close()
        self._cut(notices_only=False)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    def _cut(self, notices_only: bool) -> None:
        for link in list(self._links):
            if link.brings_notices or not notices_only:
                link.close()

    def _set_stalled(self, has_stalled: bool) -> None:
        for link in self._links:
            link.has_stalled = has_stalled

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        link = _Link(client)
        if self.refuses:
            link.close()
            return
        self._links.add(link)
        replies = None
        try:
            await self._may_pass(link)
            from_server, link.server = await asyncio.open_connection(*self.target)
            replies = asyncio.create_task(self._pass_replies(link, from_server))
            await self._pass_requests(link, reader)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            if replies is not None:
                replies.cancel()
            self._links.discard(link)
            link.close()

    async def _may_pass(self, link: _Link) -> None:
        while self.is_black_hole or link.has_stalled:  # noqa: ASYNC110 - set from other threads
            await asyncio.sleep(_POLL)

    async def _pass_requests(self, link: _Link, reader: asyncio.StreamReader) -> None:
        assert link.server is not None
        unread = b""
        while sent := await reader.read(1 << 16):
            unread += sent
            *commands, unread = _commands(unread)
            for command in commands:
                self._note(link, command)
            await asyncio.sleep(self.delay)
            await self._may_pass(link)
            link.server.write(sent)
            await link.server.drain()
            if self.doubles_requests:
                task = asyncio.create_task(
                    self._send_again(b"".join(each for each in commands if _is_script(each)))
                )
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(2 * _POLL)  # for the server to have read what was sent

    async def _pass_replies(self, link: _Link, reader: asyncio.StreamReader) -> None:
        try:
            while said := await reader.read(1 << 16):
                await asyncio.sleep(self.delay)
                await self._may_pass(link)
                while self.holds_notices and link.brings_notices:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(_POLL)
                link.is_mute |= self.loses_replies
                if not link.is_mute:
                    link.client.write(said)
                    await link.client.drain()
        except OSError:
            pass
        finally:
            link.client.close()

    async def _send_again(self, commands: bytes) -> None:
        if commands:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(*self.target)
                try:
                    writer.write(commands)
                    await asyncio.sleep(0.05)
                    await reader.read(1 << 20)
                finally:
                    writer.transport.abort()

    def _note(self, link: _Link, command: bytes) -> None:
        words = command.split(b"\r\n")[2::2]
        name = words[0].decode().upper()
        if name == "EVALSHA":
            self.seen.append(words[4].decode())
            return
        self.seen.append(name)
        if name in ("SUBSCRIBE", "SSUBSCRIBE"):
            link.brings_notices = True


def _is_script(command: bytes) -> bool:
    return b"\r\nEVALSHA\r\n" in command[:40].upper()


def _commands(sent: bytes) -> Iterator[bytes]:
    """Take apart what a client sent: each command that is complete, and then the rest."""
    begin = at = 0
    while sent[begin:] and (line := sent.find(b"\r\n", begin)) >= 0:
        assert sent[begin : begin + 1] == b"*", "an array of strings"
        at = line + 2
        for _ in range(int(sent[begin + 1 : line])):
            line = sent.find(b"\r\n", at)
            if line < 0:
                break
            at = line + 2 + int(sent[at + 1 : line]) + 2
        else:
            if at <= len(sent):
                yield sent[begin:at]
                begin = at
                continue
        break
    yield sent[begin:]


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 6379
