"""The SQLite backend's thread: files that many open at once, failures, and ends that nobody announces."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from asyncguard import AsyncGuard, BackendUnavailable, Guard, Permit, PermitLost
from asyncguard.backends import porter as porters
from asyncguard.backends.sqlite import SqliteBackend

BEGINNER = """
import asyncio, sys, time
from asyncguard import AsyncGuard

async def main():
    async with AsyncGuard(sys.argv[1]) as ag:
        async with ag.guard("report", max_wait=None) as permit:
            print(permit.token)

time.sleep(max(0, float(sys.argv[2]) - time.time()))
asyncio.run(main())
"""

BUSY = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("in", flush=True)
time.sleep(60)
"""

TIDIES = """
import sys, time
from pathlib import Path
from asyncguard.backends.lives import Lives

def tidy():
    print("in", flush=True)
    time.sleep(60)

Lives.of(Path(sys.argv[1])).alone(tidy)
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/guards.db"


def _keep_busy(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


async def _until_one_waits(guard: Guard) -> None:
    while (await guard.inspect()).waiting < 1:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def _release_at_once(permit: Permit) -> None:
    """Release it without a turn of the loop."""
    released = permit.release()
    with contextlib.suppress(StopIteration):
        released.send(None)


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def _left_in(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.execute("SELECT id FROM client"), *Path(f"{path}-bells").iterdir()]


def _porters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "porter" in thread.name]


@pytest.mark.parametrize("attempt", range(3))
def test_many_open_a_new_file_at_once(attempt: int, tmp_path: Path) -> None:
    begin = str(time.time() + 1)
    command = [sys.executable, "-c", BEGINNER, f"sqlite://{tmp_path}/{attempt}.db", begin]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    answers = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert len(set(answers)) == 8


async def test_whoever_is_dropped_is_buried(url: str, tmp_path: Path) -> None:
    before = _porters()
    descriptors = await asyncio.to_thread(_descriptors)
    ag = AsyncGuard(url)
    async with ag.guard("report"):
        pass
    (thread,) = set(_porters()) - set(before)
    del ag
    gc.collect()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
    assert await asyncio.to_thread(_descriptors) <= descriptors + 1, "the file that says who lives stays open"
    assert await asyncio.to_thread(_left_in, tmp_path / "guards.db") == []


async def test_a_failure_of_its_own_does_not_end_it(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = AsyncGuard(url), AsyncGuard(url)
    look_around = SqliteBackend.look_around
    failures: list[object] = []
    failed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(self: SqliteBackend, store: Any) -> None:
        if len(failures) < 3:
            failures.append(store)
            if len(failures) == 3:
                loop.call_soon_threadsafe(failed.set)
            raise RuntimeError("as in a test")
        look_around(self, store)

    monkeypatch.setattr(SqliteBackend, "look_around", fail)
    monkeypatch.setattr(porters, "_LOOK_AROUND", 0.01)
    permit = await one.guard("report").acquire()
    waits = asyncio.create_task(other.guard("report").acquire())
    await failed.wait()
    await permit.release()
    await (await waits).release()
    assert "as in a test" in caplog.text
    await one.aclose()
    await other.aclose()


async def test_an_end_before_its_time_takes_permits_along(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = AsyncGuard(url), AsyncGuard(url)
    guard = one.guard("report")
    entered = asyncio.Event()

    async def work() -> None:
        async with guard:
            entered.set()
            await asyncio.sleep(60)

    working = asyncio.create_task(work())
    await entered.wait()
    waits = asyncio.create_task(other.guard("report").acquire())

    def end(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError("as in a test")

    monkeypatch.setattr(porters.Porter, "_run_once", end)
    backend: Any = one.open()
    backend._porter.look_around()
    with pytest.raises(PermitLost):
        await asyncio.wait_for(working, 10)
    permit = await asyncio.wait_for(waits, 10)
    await permit.release()
    async with guard:  # with a porter of its own again
        pass
    assert "as in a test" in caplog.text
    await one.aclose()
    await other.aclose()


async def test_it_says_who_keeps_the_file_busy(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report")
    async with guard:
        pass
    monkeypatch.setattr(porters, "_LONG", 0.1)
    stopped = await asyncio.to_thread(_keep_busy, tmp_path / "guards.db")
    waits = asyncio.create_task(guard.acquire())
    caplog.set_level(logging.WARNING, "asyncguard")
    while "has been inside a step" not in caplog.text:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert f"process {stopped.pid} (" in caplog.text
    stopped.kill()
    await asyncio.to_thread(stopped.communicate)
    await (await asyncio.wait_for(waits, 10)).release()
    await ag.aclose()


async def test_who_was_granted_as_the_file_was_replaced_hears_of_the_file(url: str, tmp_path: Path) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report")
    permit = await guard.acquire()
    waits = asyncio.create_task(guard.acquire())
    await _until_one_waits(guard)
    backend: Any = ag.open()
    (ticket,) = (ticket for ticket in backend.tickets.values() if ticket.state == "waiting")
    _release_at_once(permit)
    while ticket.state == "waiting":  # and the one that waits doesn't hear of it yet
        os.sched_yield()
    deleted = threading.Thread(target=(tmp_path / "guards.db").unlink)
    deleted.start()
    deleted.join()
    with pytest.raises(ValueError, match="replaced"):
        backend._check_file()
    with pytest.raises(BackendUnavailable):
        await waits
    await ag.aclose()


async def test_a_permit_whose_release_was_interrupted_passes_on(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def work() -> None:
        with guard.blocking(), monkeypatch.context() as patch:
            patch.setattr(SqliteBackend, "_now_or_later", interrupted)
            for permit in list(backend.tickets.values()):
                with pytest.raises(KeyboardInterrupt):
                    backend.leave(permit)

    async with AsyncGuard(url) as ag, AsyncGuard(url) as other:
        guard = ag.guard("report")
        backend: Any = ag.open()
        await asyncio.to_thread(work)
        await (await other.guard("report").acquire(timeout=10)).release()


async def test_who_was_granted_and_not_told_is_told_later(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncGuard(url) as ag, AsyncGuard(url) as other:
        permit = await other.guard("report").acquire()
        guard = ag.guard("report")
        waits = asyncio.create_task(guard.acquire())
        await _until_one_waits(guard)
        with monkeypatch.context() as patch:
            told = asyncio.Event()

            def interrupted(*_: object) -> bool:  # before it has told
                told.set()
                return True

            patch.setattr(Permit, "notify", interrupted)
            await permit.release()
            await asyncio.wait_for(told.wait(), 10)
        await (await asyncio.wait_for(waits, 10)).release()


async def _pass_around(guards: list[Any], rounds: int) -> None:
    async def work(guard: Any) -> None:
        for _ in range(rounds):
            async with guard:
                await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await asyncio.gather(*(work(guard) for guard in guards))


async def test_a_hand_over_takes_no_turn_of_the_porter_where_there_is_one_loop(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = AsyncGuard(url), AsyncGuard(url)
    guards = [one.guard("report", max_wait=20), other.guard("report", max_wait=20)]
    await _pass_around(guards, 2)
    news: list[str] = []
    read_news = SqliteBackend.read_news

    def note(self: SqliteBackend, store: Any) -> None:
        news.append(threading.current_thread().name)
        read_news(self, store)

    monkeypatch.setattr(SqliteBackend, "read_news", note)
    await _pass_around(guards, 50)
    here = threading.current_thread().name
    assert news.count(here) > 0.9 * len(news), news
    await one.aclose()
    await other.aclose()


async def test_bells_that_were_deleted_are_put_up_again(url: str, tmp_path: Path) -> None:
    ags = [AsyncGuard(url), AsyncGuard(url)]
    turns = 0

    async def take_turns(ag: AsyncGuard) -> None:
        nonlocal turns
        while turns < 500:  # at one a second, as without bells, that would take minutes
            async with ag.guard("report", max_wait=None):
                turns += 1
                await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(take_turns(ag)) for ag in ags]
    await asyncio.sleep(0.1)
    await asyncio.to_thread(shutil.rmtree, tmp_path / "guards.db-bells")
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks)
    for ag in ags:
        await ag.aclose()
    assert await asyncio.to_thread(os.listdir, tmp_path / "guards.db-bells") == []


async def test_a_loop_that_is_blocked_keeps_no_news_from_others(url: str) -> None:
    ag, other = AsyncGuard(url), AsyncGuard(url)
    guard = ag.guard("report")
    permit = await other.guard("report").acquire()
    waits = asyncio.create_task(guard.acquire())  # and so this loop hears the bell
    await _until_one_waits(guard)
    waits.cancel()
    await asyncio.wait([waits])
    ran = threading.Event()

    async def wait() -> None:
        async with guard:
            ran.set()

    thread = threading.Thread(target=asyncio.run, args=(wait(),))
    thread.start()
    await _until_one_waits(guard)
    _release_at_once(permit)
    assert ran.wait(0.9), "and no later look was needed"
    thread.join()
    await ag.aclose()
    await other.aclose()


async def test_loops_that_come_and_go_hear_the_bell_one_after_the_other(url: str) -> None:
    ag, other = AsyncGuard(url), AsyncGuard(url)
    guards = [ag.guard("report", max_wait=20), other.guard("report", max_wait=20)]
    for _ in range(5):
        await asyncio.to_thread(asyncio.run, _pass_around(guards, 5))
    await _pass_around(guards, 5)
    await ag.aclose()
    await other.aclose()


async def test_the_log_does_not_grow_with_what_is_done(url: str, tmp_path: Path) -> None:
    one, other = AsyncGuard(url), AsyncGuard(url)
    guards = [one.guard("report", max_wait=20), other.guard("report", max_wait=20)]
    await _pass_around(guards, 1500)
    log = await asyncio.to_thread((tmp_path / "guards.db-wal").stat)
    assert log.st_size < 1_000_000  # without tidying up it has some 15 kB for each turn
    await one.aclose()
    await other.aclose()


async def test_nobody_moves_the_log_while_another_does(url: str, tmp_path: Path) -> None:
    path = tmp_path / "guards.db"

    async def is_moved() -> bool:
        before = await asyncio.to_thread(path.stat)
        await _pass_around([guard], 100)
        return (await asyncio.to_thread(path.stat)).st_mtime_ns != before.st_mtime_ns

    def tidy() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", TIDIES, f"{path}-lives"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    async with AsyncGuard(url) as ag:
        guard = ag.guard("report")
        await _pass_around([guard], 1)
        assert await is_moved()
        with await asyncio.to_thread(tidy) as other:
            was_moved = await is_moved()
            other.kill()
        assert not was_moved
        assert await is_moved()
