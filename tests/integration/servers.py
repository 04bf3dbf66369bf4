"""Real servers in processes of their own, and requests over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[2]

_UVICORN = ("uvicorn", "--host=127.0.0.1", "--port=0", "--timeout-graceful-shutdown=5")
SERVERS = {
    "h11": [*_UVICORN, "--http=h11", "--loop=asyncio", "--ws=wsproto"],
    "httptools": [*_UVICORN, "--http=httptools", "--loop=uvloop"],
    "granian": [
        "granian",
        "--interface=asgi",
        "--host=127.0.0.1",
        "--port={port}",
        "--workers-kill-timeout=5",
    ],
    "hypercorn": ["hypercorn", "--workers=0", "--bind=127.0.0.1:0", "--graceful-timeout=5"],
}
"""How to run an application on each, but for its name."""
WORKERS = {
    "uvicorn": [*_UVICORN, "--workers=4"],
    "gunicorn": [
        *("gunicorn", "--bind=127.0.0.1:0", "--workers=4", "--worker-class=uvicorn_worker.UvicornWorker"),
        *("--preload", "--graceful-timeout=5", "--no-control-socket"),
    ],
    "granian": [
        *("granian", "--interface=asgi", "--host=127.0.0.1", "--port={port}", "--workers=4"),
        "--workers-kill-timeout=5",
    ],
}
"""How to run an application in four processes on each, but for its name."""

_READY = re.compile(r"(?:[Rr]unning on|Listening at:) http://[\d.]+:(\d+)")
_UNTRUE = re.compile("ERROR:    ASGI callable returned without (?:completing|sending) handshake")
"""What uvicorn says of WebSockets that were denied, or left before that, where it speaks by `websockets`."""
_MISHAPS = re.compile(r"Traceback|Exception in|never retrieved|never awaited|ERROR|Warning|was destroyed")
_SECONDS_TO_START = 30
_SECONDS_TO_STOP = 15


def clean_environ(**settings: str) -> dict[str, str]:
    """Make an environment in which nothing of ours is set but this."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCGUARD_")}
    inherited.pop("WEB_CONCURRENCY", None)
    return {**inherited, **settings}


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def await_start(self) -> None:
        """Wait until it listens, and learn on which port."""
        deadline = time.monotonic() + _SECONDS_TO_START
        while not self._listens():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def _listens(self) -> bool:
        ready = _READY.search(self.log.read_text())
        if ready is None:
            return False
        self.port = int(ready[1])
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except ConnectionRefusedError:  # the one that reloads has the port before its child listens
            return False
        return True

    def mishaps(self, since: int = 0) -> str:
        """Read what was logged since so many characters, if anything in it went wrong."""
        logged = _UNTRUE.sub("", self.log.read_text()[since:])
        return logged if _MISHAPS.search(logged) else ""

    def stop(self) -> None:
        """End the server as a supervisor would, and make sure that nothing of it is left."""
        self.process.terminate()
        try:
            self.process.wait(_SECONDS_TO_STOP)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def await_end(self) -> None:
        """Wait until no process of its session is left; helpers of Python's own end a moment later."""
        self.process.wait(_SECONDS_TO_STOP)
        deadline = time.monotonic() + _SECONDS_TO_STOP
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.02)
            raise AssertionError(f"a process is left of {self.process.args!r}")


class Servers:
    """Starts servers, each with a state directory of its own, and ends those that it started."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._stack = ExitStack()
        self._count = 0

    def start(
        self, *arguments: str, cwd: Path = ROOT, python: str = sys.executable, **settings: str
    ) -> Server:
        """Run `python -m ARGUMENTS` until it listens; `settings` go to its environment."""
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            # There a blocking call is an error, and one in the middle of this would leave a process behind.
            raise AssertionError("start servers in a fixture, not on an event loop")
        self._count += 1
        log = self._logs / f"server-{self._count}.log"
        out = self._stack.enter_context(log.open("wb"))
        process = self._stack.enter_context(
            subprocess.Popen(
                [python, "-m", *arguments],
                cwd=cwd,
                env=clean_environ(**{"XDG_STATE_HOME": str(self._logs / f"state-{self._count}"), **settings}),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        server = Server(process, log)
        self._stack.callback(server.stop)
        server.await_start()
        return server

    def start_served(self, kind: str, *more: str, **settings: str) -> Server:
        """Run the application of these tests on one of the servers."""
        arguments = _on_a_free_port(SERVERS[kind])
        return self.start(*arguments, *more, "integration.served:app", cwd=ROOT / "tests", **settings)

    def start_workers(self, kind: str, **settings: str) -> Server:
        """Run the service on one of the servers, in four processes."""
        arguments = _on_a_free_port(WORKERS[kind])
        return self.start(*arguments, "asyncguard.service.app:app", cwd=ROOT, **settings)

    def close(self) -> None:
        self._stack.close()


def _on_a_free_port(arguments: list[str]) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [argument.format(port=port) for argument in arguments]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: Any
    at: float
    """When it had arrived, on the clock of time.perf_counter."""


class Connection:
    """One kept-alive connection: requests are sent and their answers read in steps of their own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, server: Server, **options: Any) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port, **options))

    async def send(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> None:
        if body is not None:
            headers.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.send_raw(f"{method} {path} HTTP/1.1\r\nHost: test\r\n{head}\r\n".encode() + (body or b""))

    async def send_raw(self, data: bytes) -> None:
        self.begin_to_send(data)
        await self._writer.drain()

    def begin_to_send(self, data: bytes) -> None:
        self._writer.write(data)

    async def read_head(self) -> tuple[int, dict[str, str]]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(": ") for line in head[1:-1]):
            before = headers.get(name.lower())
            headers[name.lower()] = value if before is None else f"{before}, {value}"
        return int(head[0].split()[1]), headers

    async def read_chunk(self) -> bytes:
        """Read one chunk of a response that is sent in chunks; the last is empty."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def read_chunks(self) -> bytes:
        """Read all chunks to the last."""
        body = b""
        while chunk := await self.read_chunk():
            body += chunk
        return body

    async def read(self, *, has_body: bool = True) -> Answer:
        status, headers = await self.read_head()
        body: Any = b""
        if has_body and "content-length" in headers:
            body = await self._reader.readexactly(int(headers["content-length"]))
        elif has_body:
            body = await self.read_chunks()
        if body and headers.get("content-type", "").endswith("json"):
            body = json.loads(body)
        return Answer(status, headers, body, time.perf_counter())

    async def read_to_the_end(self) -> bytes:
        """Read until the server closes the connection."""
        with suppress(ConnectionError):
            return await self._reader.read()
        return b""

    async def get(self, path: str, **headers: str) -> Answer:
        await self.send(path, "GET", None, **headers)
        return await self.read()

    def say_no_more(self) -> None:
        """Close the half of the connection that is ours to write."""
        self._writer.write_eof()

    def abort(self) -> None:
        """Be gone at once, whatever wasn't sent yet."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connections(server: Server, count: int) -> AsyncIterator[list[Connection]]:
    """Open connections that the server has accepted and reads from."""
    opened: list[Connection] = []
    try:
        for _ in range(count):
            opened.append(Connection(*await asyncio.open_connection("127.0.0.1", server.port)))
            await opened[-1].get("/healthz")
        yield opened
    finally:
        for connection in opened:
            await connection.close()


async def send_in_order(senders: list[Connection], control: Connection, path: str) -> None:
    """Send a request on each connection, the next one only when the server has read the one before."""
    for connection in senders:
        await connection.send(path)
        await control.get("/healthz")
