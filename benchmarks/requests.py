"""Requests a second of a guarded endpoint, beside the same endpoint unguarded, and one with FastAPI's limit.

Each connection has its own turn: nobody waits, so this is what a guard costs who doesn't need it just now.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from typing import TYPE_CHECKING

from benchmarks.server import serving
from benchmarks.table import Row, interleaved

if TYPE_CHECKING:
    from benchmarks.table import Progress

_REQUESTS = 2500
_REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"


def measure(progress: Progress) -> list[Row]:
    """Measure the three, interleaved."""
    variants = ("unguarded", "AsyncGuard", "Depends(max_concurrency)")
    with contextlib.ExitStack() as stack:
        ports = {variant: stack.enter_context(serving(variant)) for variant in variants}
        for port in ports.values():
            _requests_a_second(port)  # so that all is loaded and specialised
        runs = {variant: functools.partial(_requests_a_second, port) for variant, port in ports.items()}
        figures = interleaved("requests a second", runs, progress)
    ours = figures["AsyncGuard"]
    return [
        Row("requests a second, no contention", figures),
        Row("  against unguarded", ratio=ours / figures["unguarded"], at_least=0.88, aim=0.95),
        Row(
            "  against Depends(max_concurrency)",
            ratio=ours / figures["Depends(max_concurrency)"],
            at_least=1.4,
            aim=1.6,
        ),
    ]


def _requests_a_second(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.perf_counter()
        for _ in range(_REQUESTS):
            client.sendall(_REQUEST)
            answer = client.recv(4096)
            while not answer.endswith(b"}"):
                more = client.recv(4096)
                if not more or not answer.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(f"expected an answer to each request, got {answer + more!r}")
                answer += more
        return _REQUESTS / (time.perf_counter() - start)
