"""Have processes work under guards, do to them what production does, and put what they noted to the rules.

`make faults` runs it; its options are told by `make faults ARGS=--help`.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import dataclasses
import itertools
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final

from redis_site import RedisSite
from reliability import milliseconds, page
from valkey_server import SERVER
from worker import LIMITS, Store

from asyncguard import AsyncGuard
from asyncguard.testing.history import Record, Recorder, Report, Violation, check, read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from redis_site import Fault

    from asyncguard.testing.history._report import Rule

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
    """The backend; None: one of the run's own."""
    name: str = ""
    backend: Literal["sqlite", "redis"] = "sqlite"
    work: float = 0.001
    """Seconds that work takes at most."""
    lease: float = 2.0
    """Of a backend that has leases, in seconds."""
    faults: tuple[Fault, ...] = ()
    """What is done to the server and the network, one of these at a time."""
    fault_every: tuple[float, float] = (0.2, 1.0)
    at_least: float = 0.0
    """Seconds that it lasts, however many are granted before."""
    expected: frozenset[Rule] = frozenset()
    """The rules that may be broken, as what they rest on is taken away on purpose."""
    overlaps: bool = False
    """Whether work must have overlapped, or the run proves nothing."""

    @property
    def has_leases(self) -> bool:
        return self.backend == "redis"


@dataclass(kw_only=True)
class Result:
    report: Report
    seed: int
    seconds: float
    forks: int
    mishaps: list[str]
    """What went wrong besides: processes that ended by themselves, and what they said."""
    name: str = ""
    done: Counter[Fault] = field(default_factory=Counter)
    """What was done to the server and the network, and how often."""
    expected: tuple[Violation, ...] = ()
    """Rules that were broken as what they rest on was taken away; they aren't in the report."""
    handovers: list[float] = field(default_factory=list)
    """Seconds from the end of work to the grant of the next that was queued by then, in order of size."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of each fault to the next grant, in order of size."""

    @property
    def is_good(self) -> bool:
        return not self.report.violations and not self.mishaps

    def broken(self, rule: Rule) -> int:
        return sum(violation.rule == rule for violation in self.expected)

    def __str__(self) -> str:
        rows = [
            ("run", self.name),
            ("seed", f"{self.seed}"),
            ("seconds", f"{self.seconds:.1f}"),
            ("forked children turned away", f"{self.forks:,}"),
            *((f"fault: {fault}", f"{count:,}") for fault, count in sorted(self.done.items())),
            (
                "handed over, p50, p99",
                f"{milliseconds(self.handovers, 0.5)}, {milliseconds(self.handovers, 0.99)} ms",
            ),
            (
                "grant after a fault, p50, max",
                f"{milliseconds(self.recoveries, 0.5)}, {milliseconds(self.recoveries, 1)} ms",
            ),
            *(
                (f"broken as expected: {rule}", f"{count:,}")
                for rule, count in sorted(Counter(each.rule for each in self.expected).items())
            ),
        ]
        lines = [f"{name:32}{value:>16}" for name, value in rows]
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
        self.site: RedisSite | None = None
        if self.plan.backend == "redis" and not self.plan.url:
            replica = "promote" in self.plan.faults
            self.site = RedisSite(self.directory, self.plan.lease, self.chance, replica=replica)
        self.url = self.plan.url or f"sqlite://{self.directory}/guards.db"
        self.recorder = Recorder(self.directory / "conductor.log", "conductor")
        self.read: dict[Path, int] = {}
        Store.make(self.directory / "store.db")

    def run(self) -> Result:
        began = time.monotonic()
        try:
            if self.site is not None:
                self.site.start()
                self.url = self.site.url
            roles = self.roles()
            self.start(*next(roles))  # alone: it makes the file
            self.await_ready(self.processes)
            for each in roles:
                self.start(*each)
            self.await_ready(self.processes)
            self.inflict(began + self.plan.seconds)
            self.end()
            seconds = time.monotonic() - began
            if self.url.startswith("sqlite"):
                self.mishaps += asyncio.run(what_is_left(self.url))
            elif self.site is not None and not self.site.counts["clock"]:
                self.mishaps += asyncio.run(what_is_left(self.site.url_past_the_proxy, self.plan.lease + 1))
        finally:
            self.clean_up()
        self.say(f"judging what {self.started} processes noted in {seconds:.1f} s")
        return self.judge(seconds)

    def judge(self, seconds: float) -> Result:
        plan, site = self.plan, self.site
        records = read(*sorted(self.directory.glob("*.log")))
        if plan.has_leases:
            longest = 2 * plan.lease + 2  # a lease, what an outage may take, and a restart
            report = check(records, limits=LIMITS, leases=True, idle=longest)
        else:
            report = check(records, limits=LIMITS)
        if plan.overlaps and not report.overlaps_under_stop:
            self.mishaps.append(
                "no work overlapped though processes were stopped for long: it proves nothing"
            )
        expected = tuple(each for each in report.violations if each.rule in plan.expected)
        others = tuple(each for each in report.violations if each.rule not in plan.expected)
        forks = self.directory / "forks"
        return Result(
            report=dataclasses.replace(report, violations=others),
            expected=expected,
            name=plan.name or plan.backend,
            done=Counter() if site is None else site.counts,
            handovers=handovers(records),
            recoveries=recoveries(records, [] if site is None else [at for _, at in site.done]),
            seed=self.plan.seed,
            seconds=seconds,
            forks=len(forks.read_text()) if forks.exists() else 0,
            mishaps=self.mishaps,
        )

    def roles(self) -> Iterator[tuple[str, ...]]:
        """Say what is special about each process."""
        special: list[tuple[str, ...]] = (
            [("operates",), ("hogs",), ("forks-first",), ("forks",)] if self.plan.roles else []
        )
        if self.plan.has_leases:
            del special[3:]  # a forked child is a client there, and not turned away
        if "limit" in self.plan.expected:
            special[:1] = [()]  # what an operator had set would be lost
        for number in range(self.plan.processes):
            yield special[number] if number < len(special) else ()

    def start(self, *roles: str) -> None:
        self.started += 1
        name = f"p{self.started}"
        errors = self.directory / f"{name}.err"
        command = [sys.executable, str(_WORKER), name, str(self.directory), self.url]
        command += [f"--tasks={self.plan.tasks}", f"--seed={self.plan.seed}/{name}"]
        command.append(f"--work={self.plan.work}")
        if self.site is not None and "clock" in self.plan.faults:
            command.append(f"--clock={self.site.clock}")
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
        until = now + plan.at_least
        kill_at = now + self.chance.uniform(*plan.kill_every) if plan.kill_every else deadline
        stop_at = now + self.chance.uniform(*plan.stop_every) if plan.stop_every else deadline
        fault_at = now + self.chance.uniform(*plan.fault_every) if self.site and plan.faults else deadline
        say_at = now
        while self.grants < plan.grants or now < until:
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
            if self.site is not None:
                self.site.see_to_endings(now)
                if now > fault_at:
                    self.site.inflict(self.chance.choice(plan.faults))
                    fault_at = time.monotonic() + self.chance.uniform(*plan.fault_every)
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
        if self.site is not None:
            self.site.heal()
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
            elif b"ERROR" in process.errors.read_bytes():
                self.note_mishap(process, "logged an error")

    def clean_up(self) -> None:
        for process in [*self.processes, *self.killed]:
            if process.popen.returncode is None:  # not reaped yet, so the number is still its group's
                os.killpg(process.popen.pid, signal.SIGKILL)  # with what it has forked
                process.popen.wait()
            process.close()
        self.recorder.close()
        if self.site is not None:
            self.site.close()

    def note_mishap(self, process: Process, what: str) -> None:
        process.close()
        said = process.errors.read_text(errors="replace").strip()
        self.mishaps.append(f"{process.name} {what}" + (f":\n{said}" if said else ""))


async def what_is_left(url: str, within: float = 0.0) -> list[str]:
    """Say who holds or waits when all have ended, and so many seconds have passed."""
    end = time.monotonic() + within
    async with AsyncGuard(url) as ag:
        guards = [
            ag.guard(name, limit=limit, max_wait=None, max_waiting=None) for name, limit in LIMITS.items()
        ]
        while True:
            pictures = [await guard.inspect() for guard in guards]
            left = [each for picture in pictures for each in (*picture.holders, *picture.queue)]
            if not left or time.monotonic() > end:
                return [f"left behind: {each}" for each in left]
            await asyncio.sleep(0.1)


def handovers(records: Iterable[Record]) -> list[float]:
    """Measure from the end of work to the grant of the next, where that was queued by then."""
    worked: dict[str, int] = {}
    queued: dict[str, int] = {}
    grants: list[tuple[int, int, str]] = []
    for record in records:
        ticket = str(record.ticket)
        if record.kind == "asking" and record.guard == "one":
            worked[ticket] = queued[ticket] = 0
        elif ticket in worked and record.kind == "queued":
            queued[ticket] = record.at
        elif ticket in worked and record.kind == "worked":
            worked[ticket] = record.at
        elif ticket in worked and record.kind == "granted":
            grants.append((record.token or 0, record.at, ticket))
    grants.sort()
    return sorted(
        (at - worked[before]) / 1e9
        for (_, _, before), (_, at, ticket) in itertools.pairwise(grants)
        if 0 < queued[ticket] < worked[before] < at
    )


def recoveries(records: Iterable[Record], ends: list[int]) -> list[float]:
    """Measure from the end of each fault to the next grant."""
    grants = sorted(record.at for record in records if record.kind == "granted")
    nexts = [(end, bisect.bisect(grants, end)) for end in ends]
    return sorted((grants[at] - end) / 1e9 for end, at in nexts if at < len(grants))


STALE = (1.2, 2.0)
"""Seconds for which a process is stopped that is to lose its permits, with a lease of one."""
NETWORK: Final[tuple[Fault, ...]] = ("cut", "notices", "outage", "replies", "doubles")
FORGETS: Final[frozenset[Rule]] = frozenset({"limit", "overlap", "order", "idle"})
"""What may be broken where a server has forgotten who holds and waits; tokens grow, and the fence holds."""


def plans(backend: Literal["sqlite", "redis"], **options: Any) -> list[Plan]:
    """List the runs of a backend: on Redis one for each thing that guards rest on, which is taken away."""
    if backend == "sqlite":
        return [Plan(**options)]
    grants = options.pop("grants", 20_000)
    options |= {"backend": "redis", "roles": True, "at_least": grants / 1000}
    few = {**options, "grants": grants // 10, "work": 0.02, "kill_every": (4.0, 8.0), "stop_every": None}
    options |= {"kill_every": (3.0, 6.0), "fault_every": (0.5, 1.5)}
    small = {"processes": 4, "tasks": 4, "lease": 1.0}
    return [
        Plan(name="what is assumed holds", faults=(*NETWORK, "restart"), grants=grants * 6 // 10, **options),
        Plan(
            name="stopped past the lease",
            # Work is long beside what it takes to hand it over, so that whoever is stopped is likely to hold.
            **{
                **few,
                **small,
                "grants": grants // 40,
                "work": 0.2,
                "stop_every": (0.1, 0.5),
                "stop_for": STALE,
            },
            overlaps=True,
        ),
        Plan(name="the data is lost", faults=("wipe",), fault_every=(1.0, 2.0), expected=FORGETS, **few),
        Plan(
            name="a lagging replica is promoted",
            faults=("promote",),
            fault_every=(1.0, 2.0),
            expected=FORGETS,
            **few,
        ),
        Plan(
            name="the clock is an hour wrong",
            faults=("clock",),
            fault_every=(1.0, 2.0),
            expected=FORGETS,
            **few,
        ),
    ]


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
    parser.add_argument("--backend", choices=("sqlite", "redis"), default="sqlite", help="(sqlite)")
    parser.add_argument("--lease", type=float, default=2.0, help="on Redis, in seconds (2)")
    parser.add_argument("--url", help="of the backend, instead of one of its own")
    parser.add_argument("--page", type=Path, help="to write what came of it to, as docs/reliability.md is")
    parser.add_argument("--keep", action="store_true", help="keep what was noted, also if no rule was broken")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr)
    results = [
        _run_and_print(plan, keep=options.keep)
        for plan in plans(
            options.backend,
            seed=options.seed,
            processes=options.processes,
            tasks=options.tasks,
            grants=options.grants,
            seconds=options.seconds,
            url=options.url,
            lease=options.lease,
        )
    ]
    if options.page is not None:
        text = page(
            results,
            command=f'make faults ARGS="--backend {options.backend} --seed {options.seed}"',
            processes=options.processes,
            tasks=options.tasks,
            versions=_versions(options.backend),
        )
        options.page.write_text(text)
    return 0 if all(result.is_good for result in results) else 1


def _versions(backend: str) -> str:
    if backend == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    said = subprocess.check_output([SERVER, "--version"], text=True)
    return " ".join(said.split()[:3]).replace(" v=", " ").replace(" server", "")


def _run_and_print(plan: Plan, *, keep: bool) -> Result:
    directory = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()
    result = run(
        plan,
        directory,
        lambda what: print(f"[{time.monotonic() - began:6.1f} s] {what}", file=sys.stderr, flush=True),
    )
    print(result, end="\n\n", flush=True)
    if result.is_good and not keep:
        shutil.rmtree(directory)
    else:
        print(f"what was noted is in {directory}")
    return result


if __name__ == "__main__":
    sys.exit(main())
