"""What is answered under overload, when clients give up: open arrivals at 1, 2 and 10 times capacity.

Work takes 0.1 s, one at a time, so 10 requests a second is all there is to give. A client gives up after
1 s, and so does one that was refused. Goodput is what was answered in time, by what could have been.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.plot import draw_goodput
from benchmarks.server import serving
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.table import Progress

_WORK = 0.1
_CAPACITY = 1 / _WORK
_PATIENCE = 1.0
_SECONDS = 15
_LOADS = (1, 2, 10)
_FOUR = "AsyncGuard, 4 workers"
_VARIANTS = {
    "asyncio.Lock": b"",
    "Depends(max_concurrency)": b"",
    "AsyncGuard": b"",
    "AsyncGuard, Prefer": b"Prefer: wait=1\r\n",
    _FOUR: b"",
}
PICTURE = Path(__file__).parent / "results" / "overload.svg"
"""Drawn by each run; the README shows a copy, docs/overload.svg."""


@dataclass
class Outcome:
    """What became of the requests of a run."""

    answered: list[float] = field(default_factory=list)
    """When each answer that was in time came, in seconds from the start."""
    refused: list[float] = field(default_factory=list)
    """How many seconds each refusal took."""

    @property
    def goodput(self) -> float:
        return len(self.answered) / (_SECONDS * _CAPACITY)


def measure(progress: Progress) -> list[Row]:
    """Run each variant under each load, and draw the heaviest."""
    rows, heaviest = [], {}
    for load in _LOADS:
        outcomes = {}
        for variant, headers in _VARIANTS.items():
            progress.say(f"overload, {load} x capacity: {variant}")
            with _serving(variant) as port:
                outcomes[variant] = asyncio.run(_run(port, load * _CAPACITY, headers))
        rows += _rows(load, outcomes)
        heaviest = {variant: outcome.answered for variant, outcome in outcomes.items()}
    draw_goodput(heaviest, _SECONDS, _CAPACITY, PICTURE)
    return rows


@contextlib.contextmanager
def _serving(variant: str) -> Iterator[int]:
    if variant != _FOUR:
        with serving(variant, _WORK) as port:
            yield port
        return
    with (
        tempfile.TemporaryDirectory() as directory,
        serving("AsyncGuard", _WORK, workers=4, ASYNCGUARD_URL=f"sqlite://{directory}/guards.db") as port,
    ):
        time.sleep(2)  # until all four are there
        yield port


def _rows(load: int, outcomes: dict[str, Outcome]) -> list[Row]:
    rows = [Row(f"goodput at {load} x capacity", {name: out.goodput for name, out in outcomes.items()})]
    for name in ("AsyncGuard", "AsyncGuard, Prefer", _FOUR):
        outcome = outcomes[name]
        if load > 1:  # at just the capacity chance decides how much of it is asked for
            rows.append(Row(f"  {name}", ratio=outcome.goodput, at_least=0.95, aim=0.99))
        if len(outcome.refused) > _CAPACITY:
            median = statistics.median(outcome.refused) * 1000
            rows.append(Row(f"  {name}: a refusal, ms, median", ratio=median, at_most=20, aim=5))
    return rows


async def _run(port: int, rate: float, headers: bytes) -> Outcome:
    outcome = Outcome()
    start = time.perf_counter()
    clients = []
    for number in range(round(rate * _SECONDS)):
        await asyncio.sleep(start + number / rate - time.perf_counter())
        clients.append(asyncio.create_task(_ask(port, headers, start, outcome)))
    await asyncio.gather(*clients)
    return outcome


async def _ask(port: int, headers: bytes, start: float, outcome: Outcome) -> None:
    """Ask once, and hang up after a while."""
    began = time.perf_counter()
    writer = None
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n" + headers + b"\r\n")
            status = (await reader.readline()).split()[1]
            await reader.read()
        if status == b"200":
            outcome.answered.append(time.perf_counter() - start)
        else:
            outcome.refused.append(time.perf_counter() - began)
    except (TimeoutError, OSError, IndexError):
        pass
    finally:
        if writer is not None:
            writer.transport.abort()
