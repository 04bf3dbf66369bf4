"""Processes of one parent that each guard only themselves, in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .servers import clean_environ

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKER = """
import asyncio, os, sys, threading
from asyncguard import AsyncGuard
from asyncguard.testing import fresh

url, namespace, how = sys.argv[1:]
ag = AsyncGuard(url or None, namespace=namespace)
guard = ag.guard("work")

async def work():
    async with guard, ag.guard("other"):
        pass

def use():
    if how == "fresh":
        with fresh(ag):
            asyncio.run(work())
    else:
        asyncio.run(work())
    for thread in threading.enumerate():
        if thread.name == "asyncguard: siblings":
            thread.join()

if how == "forks":
    use()
    if os.fork():
        os.wait()
    else:
        use()
        os._exit(0)
else:
    use()
    use()
print("in", flush=True)
sys.stdin.read()
"""


class Worker:
    """A process that has used a guard, and lives until it is ended."""

    def __init__(self, url: str, namespace: str, how: str, directory: Path, settings: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, url, namespace, how],
            env=clean_environ(TMPDIR=str(directory), **settings),
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "in\n"

    def end(self) -> str:
        """End it, and tell what it logged."""
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path)
    yield started
    started.end()


class Workers:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.alive: list[Worker] = []

    def start(self, url: str = "", namespace: str = "shop", how: str = "", **settings: str) -> Worker:
        self.alive.append(Worker(url, namespace, how, self.directory, settings))
        return self.alive[-1]

    def end(self) -> list[str]:
        alive, self.alive = self.alive, []
        return [worker.end() for worker in alive]


def test_exactly_one_of_several_says_so(workers: Workers) -> None:
    for _ in range(4):
        workers.start()
    first, second, *others = workers.end()
    assert "another process of this service is alive" in second
    assert "ASYNCGUARD_URL=sqlite:///path/guards.db" in second
    assert second.count("\n") == 1
    assert [first, *others] == [""] * 3
    assert list(workers.directory.iterdir()) == []


def test_one_alone_has_nothing_to_say(workers: Workers) -> None:
    workers.start()
    assert workers.end() == [""]


def test_one_that_comes_after_another_has_ended_is_alone(workers: Workers) -> None:
    workers.start()
    assert workers.end() == [""]
    killed = workers.start()
    killed.process.kill()
    workers.end()
    workers.start()
    assert workers.end() == [""]


def test_who_says_memory_means_it(workers: Workers) -> None:
    for _ in range(2):
        workers.start("memory:")
        workers.start(ASYNCGUARD_URL="memory:")
    assert workers.end() == [""] * 4


@pytest.mark.parametrize("how", ["fresh", "forks"])
def test_tests_and_forks_are_no_workers(workers: Workers, how: str) -> None:
    for _ in range(1 if how == "forks" else 2):
        workers.start(how=how)
    assert not any(workers.end())


def test_other_applications_are_no_siblings(workers: Workers) -> None:
    workers.start(namespace="shop")
    workers.start(namespace="bank")
    assert workers.end() == ["", ""]


def test_what_a_killed_process_left_is_removed_after_a_while(workers: Workers) -> None:
    killed = workers.start(namespace="killed")
    killed.process.kill()
    killed.process.wait()
    (left,) = workers.directory.iterdir()
    workers.start(namespace="alive")
    (mark,) = set(workers.directory.iterdir()) - {left}
    os.utime(mark, (0, 0))
    assert left.exists()  # it is too new
    os.utime(left, (0, 0))
    workers.start(namespace="other")
    assert not left.exists()
    assert mark.exists()
    workers.start(namespace="alive")
    assert "another process of this service is alive" in workers.end()[-1]


def test_what_cannot_be_locked_is_let_be(workers: Workers) -> None:
    worker = workers.start()
    (mark,) = workers.directory.glob("asyncguard-*")
    workers.end()
    mark.symlink_to(workers.directory / "elsewhere")
    workers.start()
    assert workers.end() == [""]
    assert not (workers.directory / "elsewhere").exists()
    assert worker.process.returncode == 0


def test_workers_of_uvicorn_say_so(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from asyncguard import AsyncGuard\n"
        "from fastapi import FastAPI\n"
        "ag = AsyncGuard()\n"
        "work = ag.guard('work')\n"
        "async def lifespan_use():\n"
        "    async with work:\n"
        "        pass\n"
        "import contextlib\n"
        "@contextlib.asynccontextmanager\n"
        "async def lifespan(app):\n"
        "    await lifespan_use()\n"
        "    yield\n"
        "app = FastAPI(lifespan=lifespan)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--port=0", "--workers=3", "shop:app"],
        env=clean_environ(TMPDIR=str(tmp_path)),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    logged, started = "", 0
    try:
        assert process.stdout is not None
        while started < 3:
            line = process.stdout.readline()
            logged += line
            started += "Application startup complete" in line
    finally:
        process.terminate()
        logged += process.communicate(timeout=20)[0]
    assert logged.count("another process of this service is alive") == 1
