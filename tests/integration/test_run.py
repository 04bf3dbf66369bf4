"""`asyncguard run`: commands under a guard, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard

from .servers import clean_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ASYNCGUARD = (sys.executable, "-m", "asyncguard")
PATIENCE = 15
SLEEPER = "echo in; exec sleep 60"

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return clean_environ(XDG_STATE_HOME=str(tmp_path / "state"))


class Runs:
    """Runs of the command, none of which is left behind."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ
        self.started: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*ASYNCGUARD, "run", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*ASYNCGUARD, "run", *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def hold(self, script: str = SLEEPER) -> subprocess.Popen[str]:
        """Have a script hold guard `a`; it has begun when this returns."""
        process = self.start("--guard", "a", "--", "sh", "-c", script)
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        return process

    def status(self) -> Any:
        done = subprocess.run(
            [*ASYNCGUARD, "status", "--json"],
            env=self.environ,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        return json.loads(done.stdout)["guards"]

    def until(self, is_so: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not is_so(guards := self.status()):
            assert time.monotonic() < deadline, guards
        return guards[0]

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()  # and its child with it
            process.communicate()


@pytest.fixture
def runs(environ: dict[str, str]) -> Iterator[Runs]:
    started = Runs(environ)
    yield started
    started.close()


def waiting(count: int) -> Callable[[Any], bool]:
    return lambda guards: guards[0]["waiting"] == count


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for its end; tell exit code and what it said."""
    _, said = process.communicate(timeout=PATIENCE)
    return process.returncode, said


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("exit 75", 75)],
)
def test_the_exit_code_is_the_commands(runs: Runs, script: str, code: int) -> None:
    done = runs("--guard", "a", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (code, "")


def test_the_command_gets_input_arguments_and_a_token(runs: Runs) -> None:
    script = 'read line; echo "$line $ASYNCGUARD_TOKEN $@"'
    done = subprocess.run(
        [*ASYNCGUARD, "run", "--guard", "a", "--", "sh", "-c", script, "sh", "--limit", "--", "x"],
        env=runs.environ,
        input="hello\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    hello, token, *rest = done.stdout.split()
    assert hello == "hello"
    assert int(token) > 1e15
    assert rest == ["--limit", "--", "x"]


def test_descriptors_of_the_caller_are_passed_on(runs: Runs, tmp_path: Path) -> None:
    script = f'"$@" 3>{tmp_path}/out'
    command = [*ASYNCGUARD, "run", "--guard", "a", "sh", "-c", "echo three >&3"]
    subprocess.run(["/bin/sh", "-c", script, "sh", *command], env=runs.environ, check=True, timeout=PATIENCE)
    assert (tmp_path / "out").read_text() == "three\n"


def test_runs_follow_one_another_in_order(runs: Runs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    holder = runs.hold(f"echo in; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
    for number in range(3):
        runs.start("--guard", "a", "--", "sh", "-c", f"echo {number} >> {log}; sleep 0.05; echo end >> {log}")
        runs.until(waiting(number + 1))
    (tmp_path / "go").touch()
    assert [end_of(process) for process in [holder, *runs.started[1:]]] == [(0, "")] * 4
    assert log.read_text().split() == ["0", "end", "1", "end", "2", "end"]


def test_who_cannot_get_in_is_told_why(runs: Runs) -> None:
    runs.hold()
    for timeout in ("0", "0.1"):
        done = runs("--guard", "a", "--timeout", timeout, "--", "echo", "never")
        assert (done.returncode, done.stdout) == (75, "")
        assert done.stderr.startswith("asyncguard run: can't get in: guard 'a': no permit was granted within")
        assert done.stderr.count("\n") == 1
    assert runs("--guard", "a", "--key", "other", "--timeout", "0", "true").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--guard", "a", "--", "no-such-command"], 127, "no-such-command: there is no such command"),
        (["--guard", "a", "--", "/no/such"], 127, "/no/such: there is no such command"),
        (["--guard", "a", "--", "/etc/passwd"], 126, "/etc/passwd: expected a file that can be executed"),
        (["--guard", "a", "--", "/etc"], 126, "/etc: expected a file that can be executed"),
        (["--guard", "a", "--"], 2, "expected a command after the options"),
        (["--guard", "a", "--limit", "0", "--", "true"], 2, "--limit: expected 1"),
        (["--guard", "a", "--timeout", "-1", "--", "true"], 2, "timeout: expected 0 or more"),
        (["--guard", "a", "--permits", "2", "--", "true"], 2, "permits: expected"),
        (["--guard", "", "--", "true"], 2, "name: expected 1 to 128"),
        (["--guard", "a", "--namespace", "", "--", "true"], 2, "--namespace: expected 1 to 128"),
        (["--", "true"], 2, "--guard"),
    ],
)
def test_mistakes_are_named(runs: Runs, arguments: list[str], code: int, said: str) -> None:
    done = runs(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_is_refused(runs: Runs) -> None:
    runs.environ["ASYNCGUARD_URL"] = "memory:"
    done = runs("--guard", "a", "--", "true")
    assert done.returncode == 2
    assert "ASYNCGUARD_URL: expected sqlite:///path/guards.db" in done.stderr


def test_a_script_without_an_interpreter_is_not_executable(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo in\n")
    (tmp_path / "script").chmod(0o755)
    done = runs("--guard", "a", "--", str(tmp_path / "script"))
    assert done.returncode == 126
    said = f"asyncguard run: {tmp_path}/script: can't be run: Exec format error\n"
    assert done.stderr == said


def test_a_command_may_have_any_name(runs: Runs, tmp_path: Path) -> None:
    script = tmp_path / os.fsdecode(b"odd\xff")
    script.write_text("#!/bin/sh\necho in; exec sleep 60\n")
    script.chmod(0o755)
    process = runs.start("--guard", "a", "--", str(script))
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    assert runs.status()[0]["holders"][0]["label"] == "odd\\xff"


async def test_what_an_application_declares_stands_also_if_a_command_came_first(
    runs: Runs, tmp_path: Path
) -> None:
    runs.environ["ASYNCGUARD_URL"] = f"sqlite://{tmp_path}/guards.db"
    await asyncio.to_thread(runs.hold)
    async with AsyncGuard(runs.environ["ASYNCGUARD_URL"]) as ag, ag.guard("a", limit=2):
        assert (await ag.guard("a", limit=2).inspect()).in_use == 2


def test_the_limit_is_that_of_who_has_the_guard(runs: Runs) -> None:
    assert runs("--guard", "a", "--limit", "2", "--permits", "2", "true").returncode == 0
    assert runs("--guard", "a", "--permits", "2", "true").stderr == ""
    assert runs.status()[0]["limit"] == 2
    runs.hold()
    done = runs("--guard", "a", "--limit", "3", "--permits", "1", "true")
    assert done.returncode == 0
    assert done.stderr == "asyncguard run: guard 'a' has limit 2, as others have it, not 3\n"


def test_a_limit_of_those_who_are_gone_does_not_stand_in_the_way(runs: Runs) -> None:
    assert runs("--guard", "a", "--limit", "2", "true").returncode == 0
    done = runs("--guard", "a", "--limit", "3", "--permits", "3", "true")
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_in_the_guard_of_an_application(runs: Runs, tmp_path: Path) -> None:
    url = runs.environ["ASYNCGUARD_URL"] = f"sqlite://{tmp_path}/guards.db"

    async def work() -> int:
        ag = AsyncGuard(url, revision=7)
        guard = ag.guard("report", limit=2, max_waiting=5, order="lifo")
        async with ag, guard:
            first = await asyncio.to_thread(runs, "--guard", "report", "--timeout", "0", "true")
            async with guard.permit(key=None):
                second = await asyncio.to_thread(runs, "--guard", "report", "--timeout", "0", "true")
        assert (first.stderr, first.returncode) == ("", 0)
        return second.returncode

    assert asyncio.run(work()) == 75


# --- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_passed_on(runs: Runs, name: str) -> None:
    process = runs.hold(f"trap 'exit 9' {name}; echo in; while :; do sleep 0.02; done")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert end_of(process)[0] == 9


def test_what_a_signal_ends_ends_so(runs: Runs) -> None:
    process = runs.hold()
    process.terminate()
    assert end_of(process) == (143, "")
    assert runs("--guard", "a", "--timeout", "0", "true").returncode == 0


def test_one_that_waits_leaves_the_queue(runs: Runs) -> None:
    runs.hold()
    waits = runs.start("--guard", "a", "--", "true")
    runs.until(waiting(1))
    waits.send_signal(signal.SIGINT)
    assert end_of(waits) == (130, "")
    assert runs.status()[0]["waiting"] == 0


def test_what_is_ignored_stays_ignored(runs: Runs) -> None:
    process = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            'trap "" HUP; exec "$@"',
            "sh",
            *ASYNCGUARD,
            *["run", "--guard", "a", "--", "sh", "-c"],
            SLEEPER,
        ],
        env=runs.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    runs.started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (143, "")


def test_the_end_is_heard_of_where_the_caller_blocks_its_signal(runs: Runs) -> None:
    blocks = "import os, signal, sys; signal.pthread_sigmask(0, [signal.SIGCHLD]); os.execv(sys.argv[1], sys.argv[1:])"
    command = [*ASYNCGUARD, "run", "--guard", "a", "--", "sh", "-c", "sleep 0.1; exit 3"]
    done = subprocess.run(
        [sys.executable, "-c", blocks, *command], env=runs.environ, check=False, timeout=PATIENCE
    )
    assert done.returncode == 3


# --- a file that is busy, as another process was stopped inside a step ---------------------------


@pytest.fixture
def busy(runs: Runs, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Keep the file busy from a call until the test's end."""
    assert runs("--guard", "a", "true").returncode == 0
    with contextlib.closing(
        sqlite3.connect(tmp_path / "state/asyncguard/guards.db", isolation_level=None)
    ) as other:
        yield lambda: (other.execute("BEGIN IMMEDIATE"), None)[1]


@pytest.mark.parametrize("timeout", ["0", "0.5"])
def test_it_waits_no_longer_for_a_busy_file(runs: Runs, busy: Callable[[], None], timeout: str) -> None:
    busy()
    done = runs("--guard", "a", "--timeout", timeout, "echo", "never")
    assert (done.returncode, done.stdout) == (75, "")
    assert "guards.db' was busy for all that time" in done.stderr


def test_a_signal_ends_the_wait_for_a_busy_file(runs: Runs, busy: Callable[[], None]) -> None:
    runs.hold()
    waits = runs.start("--guard", "a", "echo", "never")
    runs.until(waiting(1))
    busy()
    waits.send_signal(signal.SIGTERM)
    assert end_of(waits) == (143, "")


def test_it_ends_with_the_command_although_the_file_is_busy(runs: Runs, busy: Callable[[], None]) -> None:
    process = runs.hold()
    busy()
    process.send_signal(signal.SIGTERM)
    assert end_of(process) == (143, "")


# --- permits that are lost ---------------------------------------------------------------------


def evict(runs: Runs, tmp_path: Path) -> None:
    async def act(ticket: str) -> None:
        ag = AsyncGuard(f"sqlite://{tmp_path}/state/asyncguard/guards.db")
        guard = ag.guard("a", max_waiting=None)
        assert await guard.evict(ticket)
        await ag.aclose()

    asyncio.run(act(runs.status()[0]["holders"][0]["id"]))


def test_a_permit_that_is_taken_away_ends_the_whole_group(runs: Runs, tmp_path: Path) -> None:
    process = runs.hold(
        f"(trap 'echo told > {tmp_path}/told; exit' TERM; echo in; while :; do sleep 0.02; done) & wait"
    )
    evict(runs, tmp_path)
    code, said = end_of(process)
    assert code == 75
    assert said.endswith("asyncguard run: the permit was taken away, so the command was ended\n")
    assert (tmp_path / "told").read_text() == "told\n"


def test_a_file_that_is_replaced_ends_the_command(runs: Runs, tmp_path: Path) -> None:
    process = runs.hold()
    (tmp_path / "state/asyncguard/guards.db").unlink()
    code, said = end_of(process)
    assert code == 75
    assert "so permits taken until now are lost" in said
    assert "the permit was taken away, so the command was ended" in said
    assert "Traceback" not in said


def test_one_that_does_not_listen_is_killed(runs: Runs, tmp_path: Path) -> None:
    process = runs.hold("trap '' TERM; echo in; while :; do sleep 0.1; done")
    began = time.monotonic()
    evict(runs, tmp_path)
    assert end_of(process)[0] == 75
    assert time.monotonic() - began > 4.5


def test_the_command_dies_with_it_and_the_permit_passes_on(runs: Runs) -> None:
    process = runs.hold("echo in; exec >&-; exec sleep 60")
    (child,) = children_of(process.pid)
    descriptor = os.pidfd_open(child)
    process.kill()
    assert runs("--guard", "a", "--timeout", "5", "true").returncode == 0
    try:
        assert select.select([descriptor], [], [], PATIENCE)[0]
    finally:
        os.close(descriptor)


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# --- the terminal ------------------------------------------------------------------------------


def at_terminal(
    runs: Runs, script: str, talk: Callable[[Callable[[str], str], Callable[[bytes], None]], None]
) -> int:
    """Run a script at a terminal of its own; `talk` reads up to a word there, and types."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(  # noqa: S606
            sys.executable, [*ASYNCGUARD, *["run", "--guard", "a", "--", "sh", "-c"], script], runs.environ
        )
    read = b""

    def await_word(word: str) -> str:
        nonlocal read
        while word.encode() not in read:
            read += os.read(terminal, 1000)
        return read.decode()

    try:
        talk(await_word, lambda typed: (os.write(terminal, typed), None)[1])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)


def test_the_command_reads_from_the_terminal(runs: Runs) -> None:
    def talk(await_word: Callable[[str], str], write: Callable[[bytes], None]) -> None:
        await_word("ready")
        write(b"hello\n")
        await_word("got hello")

    assert at_terminal(runs, 'echo ready; read line; echo "got $line"; exit 3', talk) == 3


def test_ctrl_c_ends_the_command(runs: Runs) -> None:
    def talk(await_word: Callable[[str], str], write: Callable[[bytes], None]) -> None:
        await_word("ready")
        write(b"\x03")

    assert at_terminal(runs, "echo ready; exec sleep 60", talk) == 130


def test_ctrl_c_ends_a_command_that_has_the_terminal(runs: Runs) -> None:
    def talk(await_word: Callable[[str], str], write: Callable[[bytes], None]) -> None:
        await_word("ready")
        write(b"hello\n")
        await_word("got hello")
        write(b"\x03")

    assert at_terminal(runs, 'echo ready; read line; echo "got $line"; exec sleep 60', talk) == 130


def test_ctrl_z_stops_command_and_run_as_one_job(runs: Runs) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(  # noqa: S606
            "/bin/sh", ["sh", "-m"], {**runs.environ, "PS1": "", "ENV": ""}
        )
    read = b""

    def await_word(word: bytes) -> None:
        nonlocal read
        while word not in read:
            read += os.read(terminal, 1000)
        read = read[read.index(word) + len(word) :]

    try:
        command = " ".join(ASYNCGUARD)
        os.write(
            terminal,
            # What a shell forks may miss a Ctrl-C that comes before it has begun: so `exec`.
            f'{command} run --guard a -- sh -c \'echo re""ady; read x; echo g""ot $x; exec sleep 60\'\n'.encode(),
        )
        await_word(b"ready")
        os.write(terminal, b"\x1a")  # Ctrl-Z
        # The system forgets one that comes just as the terminal changes hands.
        while not select.select([terminal], [], [], 2)[0]:
            os.write(terminal, b"\x1a")
        await_word(b"topped")
        os.write(terminal, b"fg\n")
        os.write(terminal, b"hello\n")
        await_word(b"got hello")
        os.write(terminal, b"\x03")
        os.write(terminal, b"echo c''ode $?\n")
        await_word(b"code 130")
    finally:
        os.write(terminal, b"exit\n")
        os.close(terminal)
        os.waitpid(pid, 0)


LEFT = """
import os, sys, time
if os.fork() == 0:
    os.setpgid(0, 0)  # in the background of the terminal
    if os.fork() == 0:
        os.execv(sys.argv[1], sys.argv[1:])
    os._exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize("trap", ["", "trap 'echo told' HUP;"], ids=["ends", "stays"])
def test_who_wants_the_terminal_when_no_shell_is_left_is_hung_up_once(runs: Runs, trap: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = [*ASYNCGUARD, "run", "--guard", "a", "--", "bash", "-c"]
        script = f"{trap} echo run $PPID.; while :; do read x </dev/tty; done"
        os.execve(sys.executable, [sys.executable, "-c", LEFT, *command, script], runs.environ)  # noqa: S606
    run, read = 0, b""
    try:
        while not (found := re.search(rb"run (\d+)\.", read)):
            read += os.read(terminal, 1000)
        run = int(found[1])
        if trap:
            while b"told" not in read:
                read += os.read(terminal, 1000)
            assert runs.status()[0]["in_use"] == 1
            assert not select.select([terminal], [], [], 0)[0] or b"told" not in os.read(terminal, 1000)
        else:
            runs.until(lambda guards: guards[0]["in_use"] == 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
        if run:
            with contextlib.suppress(ProcessLookupError):
                os.kill(run, signal.SIGKILL)
