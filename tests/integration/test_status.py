"""`asyncguard status`, from another process than those that it tells of."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard, Guard

from .servers import clean_environ

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = (sys.executable, "-m", "asyncguard", "status")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/guards.db"


def status(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=clean_environ(ASYNCGUARD_URL=url),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


async def until_waiting(guard: Guard, key: str | None, count: int) -> None:
    while (await guard.inspect(key)).waiting < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def scene(url: str, *looks: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Look while one holds and two wait, under a key, and another guard is idle."""
    async with AsyncGuard(url) as ag:
        async with ag.guard("idle", limit=4):
            pass
        guard = ag.guard("report", limit=1)
        async with guard.permit(key="alice", label="nightly"):
            waits = []
            for label in ("first", "\x1b[31msecond"):
                waits.append(asyncio.create_task(guard.acquire(key="alice", label=label)))
                await until_waiting(guard, "alice", len(waits))
            done = [await asyncio.to_thread(status, url, *look) for look in looks]
        for task in waits:
            await (await task).release()
    return done


def test_it_tells_who_holds_and_who_waits_in_order(url: str) -> None:
    (done,) = asyncio.run(scene(url, ()))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [re.sub(r"  +", "  ", line) for line in done.stdout.splitlines()]
    assert lines[0] == "GUARD  KEY  LIMIT  IN USE  WAITING"
    assert lines[1] == "idle  -  4  0  0"
    assert lines[2] == "report  alice  1  1  2"
    assert re.fullmatch(r"  holds  \S+:\d+  nightly  for [\d.]+ s  since [\d:]+", lines[3])
    assert re.fullmatch(r"  1\.  \S+:\d+  first  for [\d.]+ s  since [\d:]+", lines[4])
    assert re.fullmatch(r"  2\.  \S+:\d+  \\x1b\[31msecond  for [\d.]+ s  since [\d:]+", lines[5])


def test_json_has_a_stable_shape(url: str) -> None:
    (done,) = asyncio.run(scene(url, ("report", "--json")))
    looked = json.loads(done.stdout)
    assert looked.keys() == {"namespace", "at", "guards"}
    (report,) = looked["guards"]
    assert {name: report.pop(name) for name in ("guard", "limit", "in_use", "waiting", "paused")} == {
        "guard": "report",
        "limit": 1,
        "in_use": 1,
        "waiting": 2,
        "paused": False,
    }
    common = {"id", "key", "label", "owner", "tenant", "permits", "since"}
    assert [holder.keys() for holder in report.pop("holders")] == [common | {"held", "token"}]
    assert [waiter.keys() for waiter in report["queue"]] == [
        common | {"waited", "position", "estimated_wait"}
    ] * 2
    assert [waiter["label"] for waiter in report.pop("queue")] == ["first", "\x1b[31msecond"]
    assert report.keys() == {"keys", "mean_hold", "granted", "refused"}


def test_an_unknown_guard_is_named_with_those_that_are_known(url: str) -> None:
    (done,) = asyncio.run(scene(url, ("rapport",)))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no guard goes by the name 'rapport'; there are: idle, report" in done.stderr


def test_to_look_makes_no_file_and_declares_no_guard(url: str, tmp_path: Path) -> None:
    done = status(url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nobody has used a guard yet" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert json.loads(status(url, "--json").stdout)["guards"] == []
    assert status(url, "report").returncode == 1


def test_guards_of_other_namespaces_are_not_shown(url: str) -> None:
    async def use() -> None:
        async with AsyncGuard(url, namespace="shop") as ag, ag.guard("till"):
            pass

    asyncio.run(use())
    assert "till" not in status(url).stdout
    assert "till" in status(url, "--namespace", "shop").stdout


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_it_watches_until_it_is_interrupted(url: str, more: list[str]) -> None:
    asyncio.run(scene(url))
    process = subprocess.Popen(
        [*COMMAND, "report", "--watch", *more],
        env=clean_environ(ASYNCGUARD_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        looks = 0
        while looks < 2:
            looks += "report" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, said) == (0, "")
    assert "\x1b" not in out


def test_a_reader_that_has_seen_enough_is_no_error(url: str) -> None:
    asyncio.run(scene(url))
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" --watch | head -n 1; wait', "sh", *COMMAND],
        env=clean_environ(ASYNCGUARD_URL=url),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert (done.stdout.split(), done.stderr) == (["GUARD", "KEY", "LIMIT", "IN", "USE", "WAITING"], "")


@pytest.mark.parametrize(("url", "said"), [("memory:", "ASYNCGUARD_URL: expected sqlite:///path/guards.db")])
def test_memory_cannot_be_looked_at(url: str, said: str) -> None:
    done = status(url)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_file_that_is_none_is_named(url: str, tmp_path: Path) -> None:
    (tmp_path / "guards.db").write_text("not a database" * 100)
    done = status(url)
    assert done.returncode == 1
    assert "can't be used: file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_letters_that_the_output_does_not_know_are_written_out(url: str) -> None:
    async def use() -> None:
        async with AsyncGuard(url) as ag, ag.guard("caf\xe9"):
            pass

    asyncio.run(use())
    done = subprocess.run(
        COMMAND,
        env=clean_environ(ASYNCGUARD_URL=url, PYTHONIOENCODING="ascii"),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "caf\\xe9" in done.stdout


def test_a_full_disk_that_it_is_printed_to_is_named(url: str) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            COMMAND,
            env=clean_environ(ASYNCGUARD_URL=url),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=20,
        )
    assert done.returncode == 1
    assert done.stderr == "asyncguard status: [Errno 28] No space left on device\n"


def test_a_path_that_cannot_be_looked_at_is_named() -> None:
    done = status("sqlite:///tmp/" + "x" * 300)
    assert done.returncode == 1
    assert done.stderr.startswith("asyncguard status: [Errno 36] File name too long")
    assert done.stderr.count("\n") == 1
