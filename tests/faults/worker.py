"""A process that works under guards and notes what happens, until it is told to end; `conductor.py` starts it."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import random
import signal
import sqlite3
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from asyncguard import AsyncGuard, BackendUnavailable, Guard, PermitLost, Refused
from asyncguard.backends import open_backend
from asyncguard.testing._proxy import Proxy
from asyncguard.testing.history import Recorder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncguard.backends import Backend
    from asyncguard.clock import Clock
    from asyncguard.ticket import Ticket

LIMITS: Final = {"one": 1, "some": 3}
"""The guards, with their limits; that of `some` is changed meanwhile, `one` fences a store."""
ROLES: Final = ("hogs", "forks", "forks-first", "operates")


@final
class Noting(Proxy):
    """A backend that has noted when a ticket is known to be queued, which no application hears of."""

    def __init__(self, behind: Backend, recorder: Recorder) -> None:
        super().__init__(behind)
        self._recorder = recorder

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        answer = super().enter(ticket, wait=wait)
        if isinstance(answer, asyncio.Future):
            answer.add_done_callback(lambda _: self._note(ticket))
        else:
            self._note(ticket)
        return answer

    def _note(self, ticket: Ticket) -> None:
        if ticket.state == "waiting":
            self._recorder.note("queued", ticket.terms.label)


@final
class Store:
    """What the guard `one` fences: a number that only a newer token may write."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=20)

    @classmethod
    def make(cls, path: Path) -> None:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE fence (token INTEGER)")
        connection.execute("INSERT INTO fence VALUES (0)")
        connection.close()

    def write(self, token: int) -> bool:
        return (
            self._connection.execute("UPDATE fence SET token = ? WHERE token <= ?", (token, token)).rowcount
            == 1
        )


@final
class Worker:
    def __init__(
        self, name: str, directory: Path, url: str, seed: str, work: float, clock: Path | None
    ) -> None:
        self.name = name
        self.directory = directory
        self.chance = random.Random(seed)
        self.recorder = Recorder(directory / f"{name}.log", name)
        self.store = Store(directory / "store.db")
        self.work_for = work
        self.is_ending = False
        self.rounds: set[asyncio.Task[None]] = set()
        self.numbers = itertools.count(1)

        def open_noting(system: Clock, namespace: str) -> Backend:
            backend = open_backend(url, clock=system, namespace=namespace)
            if clock is not None:
                set_clock(backend, clock)
            return Noting(backend, self.recorder)

        self.ag = AsyncGuard(backend=open_noting)
        self.one, self.some = (
            self.ag.guard(name, limit=limit, max_wait=None, max_waiting=None)
            for name, limit in LIMITS.items()
        )

    async def run(self, tasks: int, roles: set[str]) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.end)
        told = self.directory / f"{self.name}.starting"
        told.write_text(str(os.getpid()))
        told.rename(self.directory / f"{self.name}.pid")
        if "hogs" in roles:
            threading.Thread(target=self.hog, daemon=True).start()
        async with self.ag, asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(self.work())
            group.create_task(self.cancel_some())
            if "operates" in roles:
                group.create_task(self.operate())
            if "forks" in roles:
                group.create_task(self.fork_now_and_then())

    def end(self) -> None:
        self.is_ending = True

    async def work(self) -> None:
        while not self.is_ending:
            task = asyncio.create_task(self.round())
            self.rounds.add(task)
            await asyncio.wait([task])
            self.rounds.discard(task)
            if not task.cancelled():
                try:
                    task.result()
                except PermitLost:
                    pass
                except BackendUnavailable:
                    await asyncio.sleep(self.chance.uniform(0, 0.05))

    async def round(self) -> None:
        ticket = f"{self.name}/{next(self.numbers)}"
        guard, ask = self.choose()
        was_granted = False
        self.recorder.note("asking", ticket, guard=guard.name, **ask)
        try:
            async with guard.permit(label=ticket, **ask) as permit:
                was_granted = True
                self.recorder.note("granted", ticket, token=permit.token)
                try:
                    await self.do_the_work(ticket, guard, permit.token)
                finally:
                    self.recorder.note("worked", ticket)
        except PermitLost:
            self.recorder.note("lost", ticket)
            raise
        except (asyncio.CancelledError, Refused) as error:
            if not was_granted:
                self.recorder.note("refused" if isinstance(error, Refused) else "withdrawn", ticket)
            else:
                self.recorder.note("released", ticket)
            raise
        self.recorder.note("released", ticket)

    def choose(self) -> tuple[Guard, dict[str, Any]]:
        if self.chance.random() < 0.6:
            return self.one, {}
        ask: dict[str, Any] = {}
        if self.chance.random() < 0.2:
            ask["permits"] = 2
        if self.chance.random() < 0.2:
            ask["priority"] = 0.01
        return self.some, ask

    async def do_the_work(self, ticket: str, guard: Guard, token: int) -> None:
        self.recorder.note("working", ticket)
        if guard is self.one:
            self.write(ticket, token)
        if self.chance.random() < 0.05:
            time.sleep(self.chance.uniform(0, 0.002))  # noqa: ASYNC251 - some block their event loop
        else:
            await asyncio.sleep(self.chance.uniform(0, self.work_for))
        if guard is self.one:
            self.write(ticket, token)

    def write(self, ticket: str, token: int) -> None:
        self.recorder.note("wrote" if self.store.write(token) else "stale", ticket)

    # --- faults from within --------------------------------------------------------------------

    async def cancel_some(self) -> None:
        while not self.is_ending:
            await asyncio.sleep(self.chance.uniform(0, 0.1))
            if self.rounds:
                self.chance.choice(list(self.rounds)).cancel()

    def hog(self) -> None:
        """Keep the interpreter busy in bursts, so that the event loop gets 5 ms at times."""
        while not self.is_ending:
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                sum(range(1000))
            time.sleep(1)

    async def operate(self) -> None:
        while not self.is_ending:
            await asyncio.sleep(self.chance.uniform(0.05, 0.4))
            if self.chance.random() < 0.6:
                limit = self.chance.choice([2, 3, 4, None])
                self.recorder.note("limiting", guard="some", limit=limit)
                await self.insist(self.some.set_limit, limit)
                self.recorder.note("limited", guard="some", limit=limit)
                continue
            guard = self.chance.choice([self.one, self.some])
            self.recorder.note("pausing", guard=guard.name)
            await self.insist(guard.pause)
            self.recorder.note("paused", guard=guard.name)
            await asyncio.sleep(self.chance.uniform(0, 0.1))
            self.recorder.note("resuming", guard=guard.name)
            await self.insist(guard.resume)
            self.recorder.note("resumed", guard=guard.name)

    async def insist(self, act: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Act on a guard, also if the server can't be asked just now."""
        while True:
            try:
                await act(*args)
            except BackendUnavailable:
                await asyncio.sleep(0.05)
            else:
                return

    async def fork_now_and_then(self) -> None:
        """Have children that try to use the file, and live on for a while: also without their parent."""
        while not self.is_ending:
            await asyncio.sleep(self.chance.uniform(0.2, 1))
            child = os.fork()
            if not child:
                self.be_a_child()
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            if code := os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"a forked child used the file, or failed otherwise: it ended with {code}")
            with (self.directory / "forks").open("a") as count:
                count.write(".")

    def be_a_child(self) -> None:
        signal.alarm(20)
        code = 1
        try:
            asyncio.run(self.one.acquire(timeout=5))
        except BackendUnavailable:
            time.sleep(0.3)
            code = 0
        except BaseException:  # noqa: BLE001 - it must end here
            traceback.print_exc()
        finally:
            os._exit(code)


def set_clock(backend: Backend, clock: Path) -> None:
    """Have a Redis server go by this host's clock and what a file says that is wrong with it."""
    file = os.open(clock, os.O_RDONLY)
    backend._rules._now = lambda: time.time_ns() // 1000 + int(os.pread(file, 20, 0))  # type: ignore[attr-defined]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("directory", type=Path)
    parser.add_argument("url")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--work", type=float, default=0.001)
    parser.add_argument("--seed", default="")
    parser.add_argument("--clock", type=Path)
    for role in ROLES:
        parser.add_argument(f"--{role}", action="append_const", const=role, dest="roles", default=[])
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    worker = Worker(options.name, options.directory, options.url, options.seed, options.work, options.clock)
    if "forks-first" in options.roles:
        child = os.fork()
        if child:
            return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    asyncio.run(worker.run(options.tasks, set(options.roles)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
