"""What the SQLite backend costs: alone, from process to process, and when a process dies or stands still."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from filelock import FileLock

from asyncguard import AsyncGuard
from benchmarks.table import Row, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.table import Progress

_ALONE = 2000
_SECONDS = 2.0
_PROCESSES = 4
_TASKS = 4
_DEATHS = 7


def measure(progress: Progress) -> list[Row]:
    """Measure all of it in files that are deleted afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        alone = interleaved(
            "sqlite, alone",
            {
                "AsyncGuard": functools.partial(_alone, f"sqlite://{directory}/alone.db"),
                "filelock": functools.partial(_alone_with_filelock, f"{directory}/alone.lock"),
            },
            progress,
        )
        handed: dict[str, Callable[[], float]] = {
            kind: functools.partial(_hand_over, kind, f"{directory}/{kind}")
            for kind in ("AsyncGuard", "filelock", "flock")
        }
        handovers = interleaved("sqlite, from process to process", handed, progress, rounds=3)
        progress.say("sqlite, after kill -9")
        succession = asyncio.run(_succession(f"sqlite://{directory}/succession.db"))
        progress.say("sqlite, while another process stands still")
        lag = asyncio.run(_lag(f"{directory}/lag.db"))
    ours = handovers["AsyncGuard"]
    return [
        Row("sqlite: enter and leave, us", alone),
        Row("  against filelock", ratio=alone["AsyncGuard"] / alone["filelock"], at_most=0.6, aim=0.4),
        Row(f"sqlite: a hand-over, {_PROCESSES} processes with {_TASKS} tasks each, us", handovers),
        Row("  against filelock", ratio=ours / handovers["filelock"], at_most=0.1, aim=0.05),
        Row("  against flock in threads", ratio=ours / handovers["flock"], at_most=1, aim=0.5),
        Row("sqlite: the next runs after kill -9, ms, median", ratio=succession * 1000, at_most=50, aim=10),
        Row(
            "sqlite: lag of the event loop while another stands still, ms", ratio=lag * 1000, at_most=5, aim=1
        ),
    ]


def _alone(url: str) -> float:
    async def run() -> float:
        async with AsyncGuard(url) as ag:
            guard = ag.guard("work")
            async with guard:
                pass
            began = time.perf_counter()
            for _ in range(_ALONE):
                async with guard:
                    pass
            return (time.perf_counter() - began) / _ALONE * 1e6

    return asyncio.run(run())


def _alone_with_filelock(path: str) -> float:
    lock = FileLock(path)
    began = time.perf_counter()
    for _ in range(_ALONE):
        with lock:
            pass
    return (time.perf_counter() - began) / _ALONE * 1e6


def _hand_over(kind: str, path: str) -> float:
    """Have processes pass a lock around for a while: the microseconds from one process to another."""
    begin = time.time() + 1.0
    command = [sys.executable, "-m", "benchmarks.passing", kind, path, str(begin), str(_SECONDS), str(_TASKS)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603
            for _ in range(_PROCESSES)
        ]
        passed = sum(int(process.communicate()[0]) for process in processes)
    return _SECONDS / passed * 1e6


async def _succession(url: str) -> float:
    """Kill holders, and see when the next one runs."""
    delays = []
    async with AsyncGuard(url) as ag:
        for _ in range(_DEATHS):
            holder = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.passing", "holder", url), stdout=subprocess.PIPE
            )
            if holder.stdout is None or not await holder.stdout.readline():
                raise RuntimeError("the holder did not come in")
            waits = asyncio.create_task(ag.guard("work").acquire())
            await asyncio.sleep(0.2)
            holder.kill()
            killed = time.perf_counter()
            permit = await waits
            delays.append(time.perf_counter() - killed)
            await permit.release()
            await holder.wait()
    return statistics.median(delays)


async def _lag(path: str) -> float:
    """Hold the file's lock, as a process does that was stopped, and see how long the event loop stands."""
    longest = 0.0
    async with AsyncGuard(f"sqlite://{path}") as ag:
        guard = ag.guard("work", max_wait=None)
        async with guard:
            pass
        other = await asyncio.to_thread(sqlite3.connect, path, isolation_level=None, check_same_thread=False)
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        waits = [asyncio.create_task(guard.acquire()) for _ in range(3)]
        end = time.perf_counter() + 1
        while (now := time.perf_counter()) < end:
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - now - 0.001)
        await asyncio.to_thread(other.execute, "COMMIT")
        await asyncio.to_thread(other.close)
        for wait in waits:
            await (await wait).release()
    return longest
