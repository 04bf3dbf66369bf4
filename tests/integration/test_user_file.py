"""The file that services share where no URL is set."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from asyncguard import AsyncGuard
from asyncguard.backends.user_file import make_user_directory, user_url
from asyncguard.cli import main
from asyncguard.service.settings import Settings

from .servers import Server, Servers, connections, send_in_order

if TYPE_CHECKING:
    from pathlib import Path

WORK = 0.1
UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "0", "app:app")


@pytest.fixture(params=[("asyncguard", "serve", "--port", "0"), UVICORN], ids=["serve", "uvicorn"])
def workers(request: pytest.FixtureRequest, servers: Servers) -> Server:
    return servers.start(*request.param, "--workers", "4", ASYNCGUARD_WORK_SECONDS=str(WORK))


async def overlapping(servers: list[Server], count: int) -> bool:
    """Send requests to all, and tell whether their work overlapped."""
    began = time.perf_counter()

    async def ask(server: Server) -> None:
        async with connections(server, count + 1) as (control, *callers):
            await send_in_order(callers, control, "/test")
            answers = await asyncio.gather(*(caller.read() for caller in callers))
        assert [answer.body for answer in answers if answer.status != 200] == []

    await asyncio.gather(*(ask(server) for server in servers))
    return time.perf_counter() - began < count * len(servers) * WORK


async def test_workers_share_it_with_no_set_up(workers: Server) -> None:
    await asyncio.sleep(1)  # until all of them are there
    assert not await overlapping([workers], 16)


@pytest.fixture
def two(servers: Servers, tmp_path: Path) -> list[Server]:
    return [
        servers.start(*UVICORN, XDG_STATE_HOME=str(tmp_path), ASYNCGUARD_WORK_SECONDS=str(WORK))
        for _ in range(2)
    ]


async def test_two_services_of_a_user_share_it(two: list[Server]) -> None:
    assert not await overlapping(two, 5)


def test_it_is_for_its_user_alone(two: list[Server], tmp_path: Path) -> None:
    assert httpx.get(f"{two[0].url}/test").status_code == 200
    assert (tmp_path / "asyncguard").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "asyncguard" / "guards.db").stat().st_mode & 0o777 == 0o600


def test_it_is_in_the_state_directory() -> None:
    assert user_url({"HOME": "/home/a b"}) == "sqlite:///home/a%20b/.local/state/asyncguard/guards.db"
    assert user_url({"HOME": "/h", "XDG_STATE_HOME": "/s"}) == "sqlite:///s/asyncguard/guards.db"
    assert user_url({"HOME": "/h", "XDG_STATE_HOME": "s"}) == "sqlite:///h/.local/state/asyncguard/guards.db"


def test_a_directory_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_user_directory({"XDG_STATE_HOME": str(tmp_path)})
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ValueError, match="belongs to the user with id .*ASYNCGUARD_URL=sqlite:///"):
        make_user_directory({"XDG_STATE_HOME": str(tmp_path)})


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "asyncguard").mkdir()
    (tmp_path / "asyncguard").chmod(0o770)
    with pytest.raises(ValueError, match="other users may write to it: chmod 700"):
        make_user_directory({"XDG_STATE_HOME": str(tmp_path)})


def test_a_directory_that_cannot_be_made_is_an_error_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("ASYNCGUARD_URL", raising=False)
    assert main(["serve", "--port", "0"]) == 2
    assert "can't be used for the file of guards: it can't be made" in capsys.readouterr().err


@pytest.mark.parametrize("lacks", ["system", "sqlite"])
def test_where_sqlite_lacks_something_that_is_said_and_memory_is_used(
    lacks: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if lacks == "system":
        monkeypatch.setattr(sys, "platform", "win32")
    else:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 39, 9))
    with pytest.raises(ValueError, match="the sqlite backend needs .*use memory:"):
        AsyncGuard("sqlite:///tmp/guards.db")
    assert Settings.from_environ({}).url == "memory:"
    assert "run one worker process only" in caplog.text
    monkeypatch.delenv("ASYNCGUARD_URL", raising=False)
    assert main(["serve", "--workers", "2"]) == 2


@pytest.mark.parametrize("command", ["run --guard a -- true", "status"])
def test_commands_say_what_they_need(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "geteuid")
    monkeypatch.setattr(shutil, "which", lambda name: name)  # which looks elsewhere there
    assert main(command.split()) == 2
    assert "needs the locks and sockets of Linux or macOS, and this is Windows" in capsys.readouterr().err
