"""Processes that share a file: killed, stopped and forked, and files that can't be used."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, BackendUnavailable, Draining, Rate, WaitTimeout
from asyncguard.backends.lives import Lives
from asyncguard.backends.sqlite_store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLDER = """
import asyncio, sys
from asyncguard import AsyncGuard

async def main():
    async with AsyncGuard(sys.argv[1]).guard("report", max_wait=None) as permit:
        print(permit.token, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


FORKS = """
import asyncio, os, sys
from asyncguard import AsyncGuard

guard = AsyncGuard(sys.argv[1]).guard("report", max_wait=5)
again = AsyncGuard(sys.argv[1].replace("guards.db", "./link.db")).guard("report", max_wait=5)

async def use(guard):
    async with guard:
        return "in"

if sys.argv[2] == "after":
    asyncio.run(use(guard))
if os.fork():
    os.wait()
else:
    try:
        print(asyncio.run(use(again if "link.db" in sys.argv else guard)), flush=True)
    except Exception as error:
        print(error, flush=True)
    os._exit(0)
"""
WORKER = """
import asyncio, os, sys, time
from asyncguard import AsyncGuard

url, log = sys.argv[1:]
file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(what, token):
    os.write(file, f"{what} {token} {time.monotonic_ns()}\\n".encode())

async def work(guard):
    while True:
        async with guard as permit:
            note("start", permit.token)
            await asyncio.sleep(0.0005)
            note("end", permit.token)

async def main():
    guard = AsyncGuard(url).guard("report", max_wait=None, max_waiting=None)
    await asyncio.gather(*(work(guard) for _ in range(4)))

asyncio.run(main())
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/guards.db"


@pytest.fixture
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the permit."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert int(process.stdout.readline()) > 0
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


async def acquire(url: str) -> Any:
    return await AsyncGuard(url).guard("report").acquire(timeout=5)


async def test_the_permit_of_one_that_is_killed_passes_on(holder: subprocess.Popen[str], url: str) -> None:
    ag = AsyncGuard(url)
    waits = asyncio.create_task(ag.guard("report").acquire())
    await asyncio.sleep(0.3)
    assert not waits.done()
    holder.kill()
    killed = time.monotonic()
    permit = await waits
    assert time.monotonic() - killed < 1
    await permit.release()
    await ag.aclose()


async def test_one_that_is_stopped_keeps_its_permit(holder: subprocess.Popen[str], url: str) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report")
    holder.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await guard.acquire()
        assert (await guard.inspect()).in_use == 1
    finally:
        holder.send_signal(signal.SIGCONT)
    await ag.aclose()


async def test_one_that_was_killed_before_anybody_came_holds_nothing(
    holder: subprocess.Popen[str], url: str
) -> None:
    holder.kill()
    await asyncio.to_thread(holder.wait)
    ag = AsyncGuard(url)
    permit = await ag.guard("report").acquire(timeout=5)
    await permit.release()
    await ag.aclose()


@pytest.mark.parametrize("name", ["guards.db", "link.db"])
@pytest.mark.parametrize(("when", "said"), [("before", "in"), ("after", "was forked from one")])
def test_a_process_may_fork_before_it_uses_the_file_and_else_is_told(
    url: str, tmp_path: Path, when: str, said: str, name: str
) -> None:
    (tmp_path / "link.db").symlink_to("guards.db")
    done = subprocess.run(
        [sys.executable, "-c", FORKS, url, when, name], capture_output=True, text=True, check=True, timeout=50
    )
    assert said in done.stdout


def test_under_kills_and_stops_no_two_overlap_and_none_stands_still(url: str, tmp_path: Path) -> None:
    chance = random.Random(7)  # noqa: S311
    count = 0

    def start() -> subprocess.Popen[bytes]:
        nonlocal count
        count += 1
        return subprocess.Popen([sys.executable, "-c", WORKER, url, str(tmp_path / f"log {count}")])

    workers = [start() for _ in range(5)]
    until = time.monotonic() + 8
    try:
        while time.monotonic() < until:
            time.sleep(chance.uniform(0.02, 0.2))
            victim = chance.randrange(len(workers))
            if chance.random() < 0.5:
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = start()
            else:
                workers[victim].send_signal(signal.SIGSTOP)
                time.sleep(chance.uniform(0, 0.1))
                workers[victim].send_signal(signal.SIGCONT)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    lines = [line.split() for path in tmp_path.glob("log *") for line in path.read_text().splitlines()]
    moments = {(what, int(token)): int(at) for what, token, at in lines}
    starts = sorted((token, at) for (what, token), at in moments.items() if what == "start")
    assert len(starts) > 100
    assert len(starts) == sum(line[0] == "start" for line in lines), "no token is given twice"
    for (token, _), (_, following) in itertools.pairwise(starts):
        # One that was killed at work has no end.
        assert moments.get(("end", token), 0) <= following, "it began before the one before it had ended"
        assert moments["start", token] < following, "tokens grow in the order of the grants"


async def test_many_loops_and_asyncguards_of_a_process_share_a_file(url: str) -> None:
    running = 0
    most = 0

    async def work(ag: AsyncGuard) -> None:
        nonlocal running, most
        async with ag.guard("report", max_wait=None):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1

    ags = [AsyncGuard(url) for _ in range(4)]
    threads = [asyncio.to_thread(asyncio.run, work(ag)) for ag in ags for _ in range(3)]
    await asyncio.gather(*threads, *(work(ag) for ag in ags))
    assert most == 1
    for ag in ags:
        await ag.aclose()


# --- files that can't be used ------------------------------------------------------------------


def _corrupt(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def _other_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE ticket (id)")


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_corrupt, "not a database"),
        (_newer, "schema version 2, found 99"),
        (_directory, "isn't a file"),
        (_other_application, "another application"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_and_nothing_runs(
    url: str, tmp_path: Path, spoil: Any, message: str
) -> None:
    spoil(tmp_path / "guards.db")

    async def ask() -> None:
        with pytest.raises(BackendUnavailable, match=message):
            await acquire(url)

    asyncio.run(ask())


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def ask() -> None:
        with pytest.raises(BackendUnavailable, match="file/guards"):
            await acquire(f"sqlite://{tmp_path}/file/guards.db")

    asyncio.run(ask())


def test_a_file_that_is_mended_can_be_used(url: str, tmp_path: Path) -> None:
    _corrupt(tmp_path / "guards.db")

    async def ask() -> None:
        ag = AsyncGuard(url)
        guard = ag.guard("report")
        with pytest.raises(BackendUnavailable):
            await guard.acquire()
        await asyncio.to_thread((tmp_path / "guards.db").unlink)
        await (await guard.acquire()).release()
        await ag.aclose()

    asyncio.run(ask())


def test_namespaces_with_odd_names_are_apart(url: str) -> None:
    async def ask() -> None:
        one, other = AsyncGuard(url, namespace="a"), AsyncGuard(url, namespace="a\nb\0")
        async with one, other, one.guard("b\0\nc"), other.guard("c").permit(timeout=0):
            for ag, name in ((one, "b\0\nc"), (other, "c")):
                backend: Any = ag.open()
                assert [declared.name for declared in await backend.guards()] == [name]

    asyncio.run(ask())


def test_a_holder_that_asks_nothing_is_told_that_the_file_is_gone(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        async with AsyncGuard(url) as ag:
            permit = await ag.guard("report").acquire()
            await asyncio.to_thread((tmp_path / "guards.db").unlink)
            await asyncio.wait_for(permit.lost.wait(), 10)

    asyncio.run(ask())
    assert "so permits taken until now are lost" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_is_gone_is_noticed_and_its_permits_are_lost(
    url: str, tmp_path: Path, is_replaced: bool
) -> None:
    def replace() -> None:
        for path in tmp_path.glob("guards.db*"):
            path.rename(tmp_path / f"old {path.name}")
        if is_replaced:
            _other_file(tmp_path / "guards.db")

    async def ask() -> None:
        ag = AsyncGuard(url)
        guard = ag.guard("report")
        permit = await guard.acquire()
        waits = asyncio.create_task(guard.acquire())
        await asyncio.sleep(0.05)
        await asyncio.to_thread(replace)
        with pytest.raises(BackendUnavailable, match="deleted or replaced"):
            await guard.acquire()
        assert permit.lost
        with pytest.raises(BackendUnavailable):
            await waits
        await (await guard.acquire()).release()
        await ag.aclose()

    asyncio.run(ask())


def _other_file(path: Path) -> None:
    store = Store(path, epoch=0)
    store.close()


@pytest.mark.parametrize("url", ["sqlite:", "sqlite://", "sqlite:///", "sqlite:guards.db", "sqlite:///a?b=c"])
def test_a_url_without_a_path_is_told(url: str) -> None:
    with pytest.raises(ValueError, match="with three slashes"):
        AsyncGuard(url)


@pytest.mark.parametrize("name", ["", "-wal", "-shm"])
async def test_a_holder_that_does_nothing_hears_that_the_file_is_gone(
    url: str, tmp_path: Path, name: str
) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report", on_lost="notify")
    permit = await guard.acquire()
    await asyncio.to_thread((tmp_path / f"guards.db{name}").rename, tmp_path / "gone")
    await asyncio.wait_for(permit.lost.wait(), 10)
    if name:  # others may have begun another log, of which this process would know nothing
        with pytest.raises(BackendUnavailable, match="start this process anew"):
            await guard.acquire()
    await ag.aclose()


async def test_a_link_to_a_file_is_the_file_and_a_second_name_is_refused(
    holder: subprocess.Popen[str], url: str, tmp_path: Path
) -> None:
    assert holder.poll() is None
    await asyncio.to_thread((tmp_path / "link.db").symlink_to, "guards.db")
    ag = AsyncGuard(f"sqlite://{tmp_path}/link.db")
    with pytest.raises(WaitTimeout):
        await ag.guard("report").acquire(timeout=0.1)
    await ag.aclose()
    await asyncio.to_thread((tmp_path / "name.db").hardlink_to, tmp_path / "guards.db")
    with pytest.raises(BackendUnavailable, match="hard links"):
        await acquire(f"sqlite://{tmp_path}/name.db")


def test_a_holder_hears_that_it_was_evicted_when_the_loop_is_gone_that_heard_the_bell(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report", on_lost="notify", max_wait=None)

    async def wait() -> None:
        async with guard:
            waits = asyncio.create_task(guard.acquire())
            await asyncio.sleep(0.05)
        await (await waits).release()

    async def evict() -> None:
        other = AsyncGuard(url)
        theirs = other.guard("report", max_wait=None)
        for holder in (await theirs.inspect()).holders:
            assert await theirs.evict(holder.id)
        await other.aclose()

    async def hold() -> None:
        permit = await guard.acquire()
        await asyncio.sleep(2.5)  # the porter looks no more for those who waited
        await asyncio.to_thread(asyncio.run, evict())
        await asyncio.wait_for(permit.lost.wait(), 10)
        await ag.aclose()

    asyncio.run(wait())
    asyncio.run(hold())
    assert not caplog.records


async def test_one_that_was_taken_for_dead_hears_of_it(url: str, tmp_path: Path) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report", on_lost="notify")
    permit = await guard.acquire()
    await asyncio.to_thread((tmp_path / "guards.db-lives").read_bytes)  # which drops its lock
    command = [sys.executable, "-c", HOLDER, url]
    other = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.DEVNULL)
    try:
        await asyncio.wait_for(permit.lost.wait(), 10)
    finally:
        other.kill()
        await asyncio.to_thread(other.wait)
    await (await guard.acquire()).release()
    await ag.aclose()


def test_who_was_killed_with_its_container_holds_nothing_when_that_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lives"
    store = Store(tmp_path / "guards.db", epoch=1000)
    before = Lives.of(path)
    store.begin("boot", before, 1000, 10**12)
    store.register(7, "host:7", (7, 0), before.hold)
    before.let_go(7)

    fstat = os.fstat

    def on_another_device(file: int) -> os.stat_result:
        seen = fstat(file)
        return os.stat_result((*seen[:2], seen.st_dev + 1, *seen[3:]))

    with monkeypatch.context() as patched:
        patched.setattr("os.fstat", on_another_device)
        patched.setattr("asyncguard.backends.lives._files", {})
        after = Lives.of(path)
    assert after is not before
    store.begin("boot", after, 1000, 10**12)
    assert not after.is_alive(7)
    store.close()


def test_whenever_the_log_is_moved_there_is_something_to_move(tmp_path: Path) -> None:
    store = Store(tmp_path / "guards.db", epoch=1000)
    store.tidy()
    store.tidy()
    with closing(sqlite3.connect(tmp_path / "guards.db")) as other:
        _, written, moved = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    assert (written, moved) == (1, 1), "what was moved the second time"
    store.close()


def test_nobody_does_alone_what_another_thread_does(tmp_path: Path) -> None:
    done: list[str] = []
    lives = Lives.of(tmp_path / "lives")
    lives.alone(lambda: lives.alone(lambda: done.append("inside")))
    lives.alone(lambda: done.append("afterwards"))
    assert done == ["afterwards"]


def test_a_boot_of_the_host_forgets_what_was(tmp_path: Path) -> None:
    lives = Lives.of(tmp_path / "lives")
    store = Store(tmp_path / "guards.db", epoch=1000)
    store.begin("first boot", lives, 1000, 10**12)
    store.register(7, "host:7", (7, 0), lives.hold)
    with pytest.raises(ValueError, match="another host"):
        store.begin("second boot", lives, 900, 5)
    lives.let_go(7)
    store.begin("second boot", lives, 900, 5)
    assert store.clients() == {}
    store.close()


def test_where_nobody_can_tell_who_lives_the_file_is_not_used(
    holder: subprocess.Popen[str], url: str, tmp_path: Path
) -> None:
    assert holder.poll() is None
    (tmp_path / "guards.db-lives").unlink()

    async def ask() -> None:
        with pytest.raises(BackendUnavailable, match="-lives was deleted or replaced"):
            await acquire(url)

    asyncio.run(ask())


# --- what is left behind ------------------------------------------------------------------------


def test_nothing_is_left_behind_but_the_file(url: str, tmp_path: Path) -> None:
    async def work() -> None:
        ag = AsyncGuard(url)
        async with ag, ag.guard("report"):
            pass

    asyncio.run(work())
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["guards.db", "guards.db-bells", "guards.db-lives"]
    assert list((tmp_path / "guards.db-bells").iterdir()) == []


# --- what the attack found ---------------------------------------------------------------------


async def test_a_pace_leaves_nobody_behind(url: str) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report", limit=1000, max_waiting=None, max_wait=None, rate=Rate(2000, per=1))

    async def enter() -> None:
        async with guard:
            pass

    async with asyncio.timeout(20):
        await asyncio.gather(*(enter() for _ in range(200)))
    await ag.aclose()


async def test_a_second_permit_waits_while_the_file_is_busy(url: str, tmp_path: Path) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report", limit=2)
    async with guard:
        other = await asyncio.to_thread(_lock, tmp_path / "guards.db")
        asyncio.get_running_loop().call_later(0.3, other.execute, "ROLLBACK")
        async with guard:
            pass
    assert (await guard.inspect()).in_use == 0
    other.close()
    await ag.aclose()


async def test_where_the_file_cannot_be_opened_all_are_told(url: str, tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "guards.db").mkdir)
    guard = AsyncGuard(url).guard("report", max_wait=None)
    left, stays = (asyncio.create_task(guard.acquire()) for _ in range(2))
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(BackendUnavailable):
        await asyncio.wait_for(stays, 10)


async def test_a_bell_that_was_missed_is_made_up_for(url: str, tmp_path: Path) -> None:
    one, other = AsyncGuard(url), AsyncGuard(url)
    async with other.guard("report"):
        pass
    permit = await one.guard("report").acquire()
    waits = asyncio.create_task(other.guard("report").acquire())
    await asyncio.sleep(0.2)
    await asyncio.to_thread(_silence, tmp_path / "guards.db-bells")
    await permit.release()
    async with asyncio.timeout(10):
        await (await waits).release()
    await one.aclose()
    await other.aclose()


def _silence(bells: Path) -> None:
    for bell in bells.iterdir():
        bell.unlink()


async def test_closing_while_others_enter_leaves_nothing_behind(url: str) -> None:
    ag = AsyncGuard(url)
    guard = ag.guard("report", max_wait=10)
    until = time.monotonic() + 3

    async def work(closes: bool) -> None:
        while time.monotonic() < until:
            with contextlib.suppress(Draining):
                async with guard:
                    pass
            if closes:
                await ag.aclose()

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, work(number == 0)) for number in range(3)))
    other = AsyncGuard(url)
    assert (await other.guard("report", max_wait=10).inspect()).in_use == 0
    await other.aclose()
    await ag.aclose()


async def test_closing_waits_for_a_file_that_is_busy(url: str, tmp_path: Path) -> None:
    ag = AsyncGuard(url)
    async with ag.guard("report"):
        pass
    other = await asyncio.to_thread(_lock, tmp_path / "guards.db")
    asyncio.get_running_loop().call_later(1, other.execute, "ROLLBACK")
    await ag.aclose()
    assert other.execute("SELECT count(*) FROM client").fetchone() == (0,)
    other.close()


def _lock(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection


# --- disks and containers ----------------------------------------------------------------------

FULL = """
import asyncio, resource, signal, sys, warnings
from asyncguard import AsyncGuard, BackendUnavailable

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
guard = AsyncGuard(sys.argv[1]).guard("report", max_wait=10)

def leave_room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def drop(size):
    permit = await guard.acquire()
    leave_room(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del permit

async def attempt(what, size):
    try:
        async with guard:
            print(what, "ran")
            leave_room(size)
    except BackendUnavailable:
        print(what, "unavailable")

async def cancel(what, timeout):
    async with guard:
        waits = asyncio.create_task(guard.acquire(timeout=timeout))
        await asyncio.sleep(0.05)
        leave_room(0)
        if timeout > 1:
            waits.cancel()
        await asyncio.wait([waits])
        print(what, "cancelled" if waits.cancelled() else type(waits.exception()).__name__)
        leave_room(resource.RLIM_INFINITY)

async def work(what):
    try:
        async with guard:
            leave_room(0)
            raise LookupError
    except Exception as error:
        print(what, type(error).__name__)
    leave_room(resource.RLIM_INFINITY)

async def main():
    await attempt("while it fills up:", 0)
    await attempt("while it is full:", 0)
    leave_room(resource.RLIM_INFINITY)
    await attempt("once there is room:", resource.RLIM_INFINITY)
    await cancel("who waits:", 5)
    await work("work:")
    await drop(0)
    await attempt("after one was dropped:", 0)
    leave_room(resource.RLIM_INFINITY)
    await attempt("once there is room:", resource.RLIM_INFINITY)

asyncio.run(main())
"""


def test_on_a_full_disk_work_is_refused_and_what_ended_passes_on_later(url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, url], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.splitlines() == [
        "while it fills up: ran",
        "while it fills up: unavailable",  # to release it failed, and is tried again
        "while it is full: unavailable",
        "once there is room: ran",
        "who waits: cancelled",
        "work: LookupError",
        "after one was dropped: unavailable",
        "once there is room: ran",
    ]


async def test_a_holder_in_another_container_is_believed_in_until_it_dies(url: str) -> None:
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    if await asyncio.to_thread(_fails, [*apart, "true"]):
        pytest.skip("this user can't make a namespace of processes")
    holder = await asyncio.create_subprocess_exec(
        *apart, sys.executable, "-c", HOLDER, url, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline()
    ag = AsyncGuard(url)
    guard = ag.guard("report", max_wait=None)
    waits = asyncio.create_task(guard.acquire())
    done, _ = await asyncio.wait([waits], timeout=2.5)  # by then it was looked at twice
    assert not done
    holder.kill()
    permit = await asyncio.wait_for(waits, 10)
    await permit.release()
    await holder.wait()
    await ag.aclose()


async def test_a_file_that_is_mounted_by_itself_is_refused(url: str, tmp_path: Path) -> None:
    apart = ["unshare", "--mount"]
    if await asyncio.to_thread(_fails, [*apart, "true"]):
        pytest.skip("this user can't mount")
    await (await acquire(url)).release()
    alone = tmp_path / "on its own" / "guards.db"
    await asyncio.to_thread(alone.parent.mkdir)
    await asyncio.to_thread(alone.touch)
    script = 'mount --bind "$0" "$1" && exec "$2" -c "$3" "sqlite://$1"'
    names = [str(tmp_path / "guards.db"), str(alone), sys.executable, HOLDER]
    holder = await asyncio.create_subprocess_exec(
        *apart, "sh", "-c", script, *names, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, said = await asyncio.wait_for(holder.communicate(), 30)
    finally:
        if holder.returncode is None:
            holder.kill()
    assert b"mount its directory" in said


def _fails(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return True
    return subprocess.run(command, capture_output=True, check=False).returncode != 0
