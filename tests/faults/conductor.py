"""Have processes work under guards, do to them what production does, and put what they noted to the rules.

`make faults` runs it; its options are told by `make faults ARGS=--help`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from worker import LIMITS, Store

from asyncguard import AsyncGuard
from asyncguard.testing.history import Recorder, Report, check, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WORKER: Final = Path(__file__).with_name("worker.py")
_SECONDS_TO_START: Final = 30
_SECONDS_TO_END: Final = 30
_TICK: Final = 0.02


@dataclass(frozen=True, kw_only=True)
class Plan:
    seed: int
    processes: int = 8
    tasks: int = 8
    grants: int = 20_000
    seconds: float = 600
    """After which it ends, however many were granted."""
    kill_every: tuple[float, float] | None = (0.3, 1.0)
    stop_every: tuple[float, float] | None = (0.5, 3.0)
    stop_for: tuple[float, float] = (0.05, 1.0)
    roles: bool = True
    """Whether there are processes that hog the interpreter, that fork, and that set limits and pause."""
    url: str | None = None
    """The backend; None: an SQLite file of the run's own."""


@dataclass(kw_only=True)
class Result:
    report: Report
    seed: int
    seconds: float
    forks: int
    mishaps: list[str]
    """What went wrong besides: processes that ended by themselves, and what they said."""

    @property
    def is_good(self) -> bool:
        return not self.report.violations and not self.mishaps

    def __str__(self) -> str:
        rows = [
            ("seed", f"{self.seed}"),
            ("seconds", f"{self.seconds:.1f}"),
            ("forked children turned away", f"{self.forks:,}"),
        ]
        lines = [f"{name:28}{value:>16}" for name, value in rows]
        return "\n".join([*lines, str(self.report), *self.mishaps])


@final
@dataclass(kw_only=True)
class Process:
    name: str
    popen: subprocess.Popen[bytes]
    roles: tuple[str, ...]
    errors: Path
    pidfd: int | None = None
    """Of the process that works, once that has told its id: the one that was started may have forked it."""
    continues: float | None = None
    """When it is to go on; None unless it is stopped."""

    @property
    def has_ended(self) -> bool:
        return self.popen.poll() is not None

    def send(self, number: int) -> None:
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


@final
@dataclass
class Run:
    plan: Plan
    directory: Path
    say: Callable[[str], object]
    processes: list[Process] = field(default_factory=list)
    """Those that are to work."""
    killed: list[Process] = field(default_factory=list)
    mishaps: list[str] = field(default_factory=list)
    stops: int = 0
    started: int = 0
    grants: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.plan.seed)
        self.url = self.plan.url or f"sqlite://{self.directory}/guards.db"
        self.recorder = Recorder(self.directory / "conductor.log", "conductor")
        self.read: dict[Path, int] = {}
        Store.make(self.directory / "store.db")

    def run(self) -> Result:
        began = time.monotonic()
        try:
            roles = self.roles()
            self.start(*next(roles))  # alone: it makes the file
            self.await_ready(self.processes)
            for each in roles:
                self.start(*each)
            self.await_ready(self.processes)
            self.inflict(began + self.plan.seconds)
            self.end()
        finally:
            self.clean_up()
        seconds = time.monotonic() - began
        self.say(f"judging what {self.started} processes noted in {seconds:.1f} s")
        if self.url.startswith("sqlite"):
            self.mishaps += asyncio.run(what_is_left(self.url))
        records = read(*sorted(self.directory.glob("*.log")))
        report = check(records, limits=LIMITS)
        forks = self.directory / "forks"
        return Result(
            report=report,
            seed=self.plan.seed,
            seconds=seconds,
            forks=len(forks.read_text()) if forks.exists() else 0,
            mishaps=self.mishaps,
        )

    def roles(self) -> Iterator[tuple[str, ...]]:
        """Say what is special about each process."""
        special = [("operates",), ("hogs",), ("forks",), ("forks-first",)] if self.plan.roles else []
        for number in range(self.plan.processes):
            yield special[number] if number < len(special) else ()

    def start(self, *roles: str) -> None:
        self.started += 1
        name = f"p{self.started}"
        errors = self.directory / f"{name}.err"
        command = [sys.executable, str(_WORKER), name, str(self.directory), self.url]
        command += [f"--tasks={self.plan.tasks}", f"--seed={self.plan.seed}/{name}"]
        with errors.open("wb") as file:
            popen = subprocess.Popen(
                [*command, *(f"--{role}" for role in roles)], stderr=file, start_new_session=True
            )
        self.processes.append(Process(name=name, popen=popen, roles=roles, errors=errors))

    def look(self) -> None:
        """See which processes have come to work, which have ended, and how many grants there were."""
        for process in list(self.processes):
            told = self.directory / f"{process.name}.pid"
            if process.pidfd is None and told.exists():
                with contextlib.suppress(ProcessLookupError):
                    process.pidfd = os.pidfd_open(int(told.read_text()))
            if process.has_ended:
                self.processes.remove(process)
                self.note_mishap(process, f"ended by itself, with {process.popen.returncode}")
        for path in self.directory.glob("p*.log"):
            with path.open("rb") as file:
                file.seek(self.read.get(path, 0))
                self.grants += file.read().count(b'{"kind":"granted"')
                self.read[path] = file.tell()

    def await_ready(self, processes: list[Process]) -> None:
        deadline = time.monotonic() + _SECONDS_TO_START
        while any(process.pidfd is None for process in processes) and time.monotonic() < deadline:
            time.sleep(_TICK)
            self.look()

    def inflict(self, deadline: float) -> None:
        plan, now = self.plan, time.monotonic()
        kill_at = now + self.chance.uniform(*plan.kill_every) if plan.kill_every else deadline
        stop_at = now + self.chance.uniform(*plan.stop_every) if plan.stop_every else deadline
        say_at = now
        while self.grants < plan.grants:
            time.sleep(_TICK)
            now = time.monotonic()
            if now > deadline:
                self.mishaps.append(f"only {self.grants:,} of {plan.grants:,} grants in {plan.seconds:g} s")
                return
            self.look()
            if not self.processes:
                return
            for process in self.processes:
                if process.continues is not None and process.continues <= now:
                    self.go_on(process)
            if now > kill_at and plan.kill_every:
                kill_at = now + self.chance.uniform(*plan.kill_every)
                self.kill_one()
            if now > stop_at and plan.stop_every:
                stop_at = now + self.chance.uniform(*plan.stop_every)
                self.stop_one(now)
            if now > say_at:
                say_at = now + 1
                self.say(
                    f"{self.grants:,} of {plan.grants:,} grants, {len(self.killed)} killed, {self.stops} stopped"
                )

    def victims(self) -> list[Process]:
        return [each for each in self.processes if each.pidfd is not None and "operates" not in each.roles]

    def kill_one(self) -> None:
        if victims := self.victims():
            victim = self.chance.choice(victims)
            self.recorder.note("killed", client=victim.name)
            victim.send(signal.SIGKILL)
            self.processes.remove(victim)
            self.killed.append(victim)
            self.start(*victim.roles)

    def stop_one(self, now: float) -> None:
        if victims := [victim for victim in self.victims() if victim.continues is None]:
            victim = self.chance.choice(victims)
            self.recorder.note("stopped", client=victim.name)
            victim.send(signal.SIGSTOP)
            victim.continues = now + self.chance.uniform(*self.plan.stop_for)
            self.stops += 1

    def go_on(self, process: Process) -> None:
        process.send(signal.SIGCONT)
        self.recorder.note("continued", client=process.name)
        process.continues = None

    def end(self) -> None:
        """Have all of them finish what they do, and end."""
        for process in self.processes:
            if process.continues is not None:
                self.go_on(process)
        self.await_ready(self.processes)
        for process in self.processes:
            process.send(signal.SIGTERM)
        deadline = time.monotonic() + _SECONDS_TO_END
        while any(not each.has_ended for each in self.processes) and time.monotonic() < deadline:
            time.sleep(_TICK)
        for process in self.processes:
            if not process.has_ended:
                self.note_mishap(process, f"didn't end within {_SECONDS_TO_END} s")
            elif process.popen.returncode:
                self.note_mishap(process, f"ended with {process.popen.returncode}")

    def clean_up(self) -> None:
        for process in [*self.processes, *self.killed]:
            if process.popen.returncode is None:  # not reaped yet, so the number is still its group's
                os.killpg(process.popen.pid, signal.SIGKILL)  # with what it has forked
                process.popen.wait()
            process.close()
        self.recorder.close()

    def note_mishap(self, process: Process, what: str) -> None:
        process.close()
        said = process.errors.read_text(errors="replace").strip()
        self.mishaps.append(f"{process.name} {what}" + (f":\n{said}" if said else ""))


async def what_is_left(url: str) -> list[str]:
    """Say who holds or waits when all have ended."""
    left = []
    async with AsyncGuard(url) as ag:
        for name, limit in LIMITS.items():
            picture = await ag.guard(name, limit=limit, max_wait=None, max_waiting=None).inspect()
            left += [f"left behind: {each}" for each in (*picture.holders, *picture.queue)]
    return left


def run(plan: Plan, directory: Path, say: Callable[[str], object] = lambda _: None) -> Result:
    """Run a plan in an empty directory."""
    return Run(plan, directory, say).run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of all that is random")
    parser.add_argument("--processes", type=int, default=8, help="that work at a time (8)")
    parser.add_argument("--tasks", type=int, default=8, help="of each process (8)")
    parser.add_argument("--grants", type=int, default=20_000, help="after which it ends (20,000)")
    parser.add_argument("--seconds", type=float, default=600, help="after which it has failed (600)")
    parser.add_argument("--url", help="of the backend, instead of an SQLite file of its own")
    parser.add_argument("--keep", action="store_true", help="keep what was noted, also if no rule was broken")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()
    plan = Plan(
        seed=options.seed,
        processes=options.processes,
        tasks=options.tasks,
        grants=options.grants,
        seconds=options.seconds,
        url=options.url,
    )
    print(f"seed {plan.seed}", file=sys.stderr)
    result = run(
        plan,
        directory,
        lambda what: print(f"[{time.monotonic() - began:6.1f} s] {what}", file=sys.stderr, flush=True),
    )
    print(result)
    if result.is_good and not options.keep:
        shutil.rmtree(directory)
    else:
        print(f"what was noted is in {directory}")
    return 0 if result.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
