"""One of the processes that pass a lock around: `python -m benchmarks.passing KIND PATH ...`."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from filelock import AsyncFileLock

from asyncguard import AsyncGuard


class Baton:
    """Counts how often the lock came here from another process."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(f"{path}.baton", os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, 8)
        self._last = mmap.mmap(descriptor, 8)
        os.close(descriptor)
        self._own = os.getpid().to_bytes(8, "little")
        self.count = 0

    def take(self) -> None:
        if self._last[:] != self._own:
            self._last[:] = self._own
            self.count += 1


async def _guarded(path: str, end: float, tasks: int, baton: Baton) -> None:
    async with AsyncGuard(f"sqlite://{path}") as ag:
        guard = ag.guard("work", max_wait=None)

        async def work() -> None:
            while time.time() < end:
                async with guard:
                    baton.take()

        await asyncio.gather(*(work() for _ in range(tasks)))


async def _filelocked(path: str, end: float, tasks: int, baton: Baton) -> None:
    async def work() -> None:
        lock = AsyncFileLock(path, thread_local=False)
        while time.time() < end:
            async with lock:
                baton.take()
            await asyncio.sleep(0)

    await asyncio.gather(*(work() for _ in range(tasks)))


async def _flocked(path: str, end: float, tasks: int, baton: Baton) -> None:
    """Wait for the system's own lock in threads, as an event loop has to."""
    loop = asyncio.get_running_loop()

    async def work() -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        while time.time() < end:
            await loop.run_in_executor(threads, fcntl.flock, descriptor, fcntl.LOCK_EX)
            baton.take()
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    with ThreadPoolExecutor(tasks) as threads:
        await asyncio.gather(*(work() for _ in range(tasks)))


async def _hold(url: str) -> None:
    async with AsyncGuard(url).guard("work"):
        print("in", flush=True)
        await asyncio.sleep(60)


def main() -> None:
    kind, path, *rest = sys.argv[1:]
    if kind == "holder":
        asyncio.run(_hold(path))
        return
    begin, seconds, tasks = float(rest[0]), float(rest[1]), int(rest[2])
    time.sleep(max(0, begin - time.time()))
    end, baton = begin + seconds, Baton(path)
    if kind == "AsyncGuard":
        asyncio.run(_guarded(path, end, tasks, baton))
    elif kind == "filelock":
        asyncio.run(_filelocked(path, end, tasks, baton))
    else:
        asyncio.run(_flocked(path, end, tasks, baton))
    print(baton.count)


main()
