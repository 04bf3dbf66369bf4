"""A uvicorn of its own for each variant, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS_TO_START = 20
_SECONDS_TO_STOP = 10


@contextlib.contextmanager
def serving(variant: str, seconds: float = 0.0, workers: int = 1, **environ: str) -> Iterator[int]:
    """Serve a variant whose work takes so many seconds, and say on which port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        f"--port {port} --backlog 4096 --no-access-log --timeout-graceful-shutdown 1 --log-level critical"
    )
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "uvicorn", "benchmarks.served:app", *options.split(), f"--workers={workers}"],
        env={**os.environ, "VARIANT": variant, "SECONDS": str(seconds), **environ},
    )
    try:
        _await_answer(port)
        yield port
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_answer(port: int) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS_TO_START) as client:
                client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                if client.recv(1):
                    return
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
