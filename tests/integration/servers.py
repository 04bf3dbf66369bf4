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

_READY = re.compile(r"Uvicorn running on http://[\d.]+:(\d+)")
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
    """Starts servers, and ends those that it started."""

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
                env=clean_environ(**settings),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        server = Server(process, log)
        self._stack.callback(server.stop)
        server.await_start()
        return server

    def close(self) -> None:
        self._stack.close()


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

    async def send(self, path: str) -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        await self._writer.drain()

    async def read(self) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-1])}
        body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, json.loads(body), time.perf_counter())

    async def get(self, path: str) -> Answer:
        await self.send(path)
        return await self.read()

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
