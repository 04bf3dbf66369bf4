"""The blocking form in processes without an event loop: scripts, pools that fork, and servers' threads."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from asyncguard import AsyncGuard, current_permit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from asyncguard import Guard

STRICT = [sys.executable, "-X", "dev", "-W", "error"]
WORKER = """
import os, sys, time
from asyncguard import AsyncGuard

url, log = sys.argv[1:]
file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
guard = AsyncGuard(url).guard("report", max_wait=None)

for _ in range(50):
    with guard.blocking(label="a script's") as permit:
        for what in ("start", "end"):
            os.write(file, f"{what} {permit.token} {os.getpid()}\\n".encode())
            time.sleep(0.0005)
"""
HOLDER = """
import sys, time
from asyncguard import AsyncGuard

with AsyncGuard(sys.argv[1]).guard("report", max_wait=None).blocking() as permit:
    print(permit.token, flush=True)
    time.sleep(60)
"""
THREADS = """
import sys, threading, time
from asyncguard import AsyncGuard

guard = AsyncGuard(sys.argv[1]).guard("report", max_hold=60)
came = []

@guard.blocking
def work():
    came.append(1)
    time.sleep(0.001)

threads = [threading.Thread(target=work) for _ in range(10)]
for thread in threads:
    thread.start()
if sys.argv[2] == "joined":
    for thread in threads:
        thread.join()
    print(len(came))
"""
POOL = """
import multiprocessing, os, sys, time
from asyncguard import AsyncGuard

guard = AsyncGuard(sys.argv[1]).guard("report", max_wait=None)
log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@guard.blocking
def task(number):
    for what in ("start", "end"):
        os.write(log, f"{what} {number} {os.getpid()}\\n".encode())
        time.sleep(0.001)
    return number

if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(task, range(40), chunksize=1) == list(range(40))
        pool.close()
        pool.join()
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/guards.db"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start scripts, none of which outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(program: str, *args: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*STRICT, "-c", program, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> str:
    """Wait for a script, which must have had nothing to complain about."""
    output, errors = process.communicate(timeout=40)
    assert (process.returncode, errors) == (0, "")
    return output


def check_that_none_overlapped(log: Path, starts: int) -> set[str]:
    """See that each start is followed by its own end; return which processes there were."""
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 2 * starts
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert (first[0], second[0]) == ("start", "end")
        assert first[1:] == second[1:]
    return {line[2] for line in lines}


def test_four_processes_never_overlap(
    start: Callable[..., subprocess.Popen[str]], url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    for process in [start(WORKER, url, log) for _ in range(4)]:
        assert end(process) == ""
    assert len(check_that_none_overlapped(log, 200)) == 4
    tokens = [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("start")]
    assert tokens == sorted(set(tokens))


def test_processes_that_fork_before_the_first_use_never_overlap(
    start: Callable[..., subprocess.Popen[str]], url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    program = tmp_path / "pool.py"
    program.write_text(POOL)
    assert end(start(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')", url, log)) == ""
    assert len(check_that_none_overlapped(log, 40)) > 1


def wait_for_one_that_waits(guard: Guard) -> None:
    while not asyncio.run(guard.inspect()).waiting:
        time.sleep(0.01)


def test_a_script_waits_behind_an_application_and_before_it(
    start: Callable[..., subprocess.Popen[str]], url: str
) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report", max_wait=None)
    with guard.blocking():
        script = start(HOLDER, url)
        wait_for_one_that_waits(guard)
    assert script.stdout is not None
    token = int(script.stdout.readline())

    async def wait() -> None:
        waits = asyncio.create_task(guard.acquire())
        while not (await guard.inspect()).waiting:  # noqa: ASYNC110 - it is the file that says so
            await asyncio.sleep(0.01)
        script.kill()
        permit = await waits
        assert permit.token > token
        await permit.release()
        await ag.aclose()

    asyncio.run(wait())


def test_a_script_that_is_interrupted_while_it_waits_leaves_the_queue(
    start: Callable[..., subprocess.Popen[str]], url: str
) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report")
    with guard.blocking():
        script = start(HOLDER, url)
        wait_for_one_that_waits(guard)
        script.send_signal(signal.SIGINT)
        _, errors = script.communicate(timeout=20)
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert asyncio.run(guard.inspect()).waiting == 0
    asyncio.run(ag.aclose())


@pytest.mark.parametrize("how", ["joined", "left"])
def test_scripts_with_threads_end_in_silence(
    start: Callable[..., subprocess.Popen[str]], url: str, how: str
) -> None:
    for where in ("memory:", url):
        assert end(start(THREADS, where, how)) == ("10\n" if how == "joined" else "")


def test_an_endpoint_that_blocks_tells_how_long_it_queued() -> None:
    ag = AsyncGuard()
    guard = ag.guard("report")
    app = FastAPI()
    ag.install(app)

    @app.get("/report/{account}")
    @guard.blocking(key="account")
    def report(account: int) -> dict[str, Any]:  # noqa: ARG001
        time.sleep(0.01)
        return {"key": current_permit().key}

    with TestClient(app) as client:
        response = client.get("/report/7")
        assert response.json() == {"key": "7"}
        assert response.headers["server-timing"].startswith('queue;desc="report";dur=')
        permit = guard.acquire_nowait(key=7)
        response = client.get("/report/7", headers={"prefer": "wait=0"})
        assert (response.status_code, response.json()["reason"]) == (503, "timeout")
    asyncio.run(permit.release())
