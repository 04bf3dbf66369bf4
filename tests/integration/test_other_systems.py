"""The SQLite backend where the system is less than Linux is: there is no other here, so Linux is made less."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import re
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, BackendUnavailable
from asyncguard.backends import check_sqlite, porter, system
from asyncguard.backends.user_file import user_url

from .servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHOUT = Path(__file__).with_name("without_linux")
SHARES = WITHOUT.relative_to(ROOT) / "shares.py"
HOLDER = """
import asyncio, os, sys
from asyncguard import AsyncGuard

async def main():
    ag = AsyncGuard(sys.argv[1])
    async with ag.guard("report"):
        print(hasattr(os, "eventfd"), ag.open()._porter.bell._name, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/guards.db"


@pytest.fixture
def less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes that are started have no more than other systems."""
    paths = [str(WITHOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have this process be told nothing by /proc."""
    monkeypatch.setattr(system, "PROC", Path("/there is none"))
    monkeypatch.setattr(system, "SYSCTL", str(WITHOUT / "sysctl"))
    system.boot_id.cache_clear()
    yield
    system.boot_id.cache_clear()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a temporary directory with a short name."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # noqa: S108 - what pytest makes has a long one
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """Have a directory whose name is too long for addresses."""
    return tmp_path / ("x" * 110)


@pytest.fixture
def holder(url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Have another process hold a permit, and tell of itself."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


# --- with what only Linux has switched off, in all processes -----------------------------------


@pytest.mark.usefixtures("less")
def test_what_is_switched_off(holder: tuple[object, str], tmp_path: Path) -> None:
    assert holder[1] == f"False {tmp_path}/guards.db-bells"


@pytest.mark.usefixtures("less")
@pytest.mark.parametrize(
    ("file", "chosen", "count"),
    [
        (SHARES, "not nothing_is_shared", 13),
        ("tests/integration/test_sqlite.py", "under_kills or before_anybody or fork or left_behind", 5),
        ("tests/integration/test_sqlite_porter.py", "many_open or dropped or blocked or come_and_go", 6),
    ],
)
def test_what_is_so_on_linux_is_so_elsewhere(file: str, chosen: str, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file), "-k", chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=55,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed, \d+ deselected", done.stdout, re.MULTILINE)
    assert passed, done.stdout
    assert int(passed[1]) >= count


@pytest.mark.usefixtures("less")
def test_commands_run_under_a_guard(url: str) -> None:
    command = [sys.executable, "-m", "asyncguard", "run", "--guard", "backup", "--", "echo", "ran"]
    environ = {**os.environ, "ASYNCGUARD_URL": url}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


# --- who died ----------------------------------------------------------------------------------


async def test_one_that_was_killed_is_found_however_often_it_rings(
    holder: tuple[subprocess.Popen[str], str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(porter, "watch_process", lambda _: None)
    ag = AsyncGuard(url)
    waits = asyncio.create_task(ag.guard("report").acquire())
    while not (await ag.guard("report").inspect()).waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    holder[0].kill()
    backend: Any = ag.open()
    async with asyncio.timeout(20):
        while not waits.done():
            backend._porter._waker.wake()
            await asyncio.sleep(0.02)
    await (await waits).release()
    await ag.aclose()


@pytest.mark.parametrize("is_locked", [True, False])
def test_it_is_asked_who_lives_as_macos_has_it(is_locked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Flock(ctypes.Structure):
        _fields_ = (
            ("l_start", ctypes.c_int64),
            ("l_len", ctypes.c_int64),
            ("l_pid", ctypes.c_int32),
            ("l_type", ctypes.c_short),
            ("l_whence", ctypes.c_short),
        )

    def answer(descriptor: int, what: int, asked: bytes) -> bytes:
        assert (descriptor, what, len(asked)) == (5, fcntl.F_GETLK, ctypes.sizeof(Flock))
        flock = Flock.from_buffer_copy(asked)
        found = [getattr(flock, name) for name, *_ in flock._fields_]
        assert found == [4711, 1, 0, fcntl.F_WRLCK, os.SEEK_SET]
        if is_locked:
            flock.l_pid = 99
        else:
            flock.l_type = fcntl.F_UNLCK
        return bytes(flock)

    monkeypatch.setattr(system, "PLATFORM", "darwin")
    monkeypatch.setattr(fcntl, "fcntl", answer)
    assert system.is_locked(5, 4711) == is_locked


@pytest.mark.parametrize("proc", ["/proc", "/there is none"])
def test_parents_are_known(proc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "PROC", Path(proc))
    assert system.parent_of(os.getpid()) == os.getppid()
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    with pytest.raises(OSError):  # noqa: PT011 - which of them it is doesn't matter
        system.parent_of(process.pid)


# --- what wakes a thread -----------------------------------------------------------------------


@pytest.mark.parametrize("has_eventfd", [True, False])
def test_a_waker_wakes_until_it_is_cleared_and_not_once_it_is_closed(
    has_eventfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_eventfd:
        monkeypatch.delattr(os, "eventfd")
    waker = system.Waker()

    def wakes() -> bool:
        return bool(select.select([waker], [], [], 0)[0])

    assert not wakes()
    waker.clear()
    for _ in range(20_000):  # more than a pipe holds
        waker.wake()
    for _ in range(100):
        waker.clear()
    assert not wakes()
    waker.wake()
    assert wakes()
    descriptor = waker.fileno()
    assert not os.get_inheritable(descriptor)
    waker.close()
    reads, writes = os.pipe()  # with the same descriptors
    waker.wake()
    assert descriptor in (reads, writes)
    assert select.select([reads], [], [], 0)[0] == []
    os.close(reads)
    os.close(writes)


# --- the host's boots --------------------------------------------------------------------------


@pytest.mark.usefixtures("no_proc")
@pytest.mark.parametrize(("command", "said"), [("/there is none", "No such file"), ("true", "said nothing")])
async def test_where_nothing_tells_of_a_boot_the_file_is_not_used(
    url: str, command: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "SYSCTL", command)
    with pytest.raises(
        BackendUnavailable, match=f"nothing tells one boot of this host from another: .*{said}"
    ):
        await AsyncGuard(url).guard("report").acquire()


@pytest.mark.usefixtures("no_proc")
def test_a_boot_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = system.boot_id()
    monkeypatch.setattr(system, "SYSCTL", "/there is none")
    assert told == system.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_proc")
async def test_a_path_that_is_too_long_is_reached_through_a_link(
    far: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = AsyncGuard(f"sqlite://{far}/guards.db")
    permit = await one.guard("report").acquire()
    (link,) = await asyncio.to_thread(lambda: [*temporary.iterdir()])
    assert link.name.startswith(f"asyncguard-bells-{os.getuid()}-")
    bells = far / "guards.db-bells"
    assert await asyncio.to_thread(link.readlink) == bells
    near = temporary / "near"
    await asyncio.to_thread(near.symlink_to, far)
    monkeypatch.setattr(porter, "_LOOK_AROUND", 60)  # so that only a bell tells in time
    other = AsyncGuard(f"sqlite://{near}/guards.db")
    waits = asyncio.create_task(other.guard("report").acquire())
    while not (await one.guard("report").inspect()).waiting:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await permit.release()
    await (await asyncio.wait_for(waits, 20)).release()
    await other.aclose()
    await one.aclose()
    assert await asyncio.to_thread(lambda: [*bells.iterdir()]) == []


@pytest.mark.usefixtures("no_proc")
async def test_a_link_of_somebody_else_is_not_followed(far: Path, temporary: Path, tmp_path: Path) -> None:
    guard = AsyncGuard(f"sqlite://{far}/guards.db").guard("report")
    await (await guard.acquire()).release()

    def plant() -> None:
        (link,) = temporary.iterdir()
        link.unlink()
        link.symlink_to(tmp_path)

    await asyncio.to_thread(plant)
    with pytest.raises(BackendUnavailable, match="isn't a link of ours to .*: remove it, or set TMPDIR"):
        await AsyncGuard(f"sqlite://{far}/guards.db").guard("report").acquire()


@pytest.mark.usefixtures("no_proc")
async def test_where_no_address_is_short_enough_that_is_told(
    far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("y" * 80)))
    with pytest.raises(BackendUnavailable, match="too long for addresses .* 103 bytes"):
        await AsyncGuard(f"sqlite://{far}/guards.db").guard("report").acquire()


# --- which systems -----------------------------------------------------------------------------


def test_macos_has_a_state_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    check_sqlite()
    assert (
        user_url({"HOME": "/Users/a"})
        == "sqlite:///Users/a/Library/Application%20Support/asyncguard/guards.db"
    )
    assert user_url({"HOME": "/Users/a", "XDG_STATE_HOME": "/s"}) == "sqlite:///s/asyncguard/guards.db"


@pytest.mark.parametrize(("platform", "name"), [("win32", "Windows"), ("freebsd14", "freebsd14")])
def test_others_are_told_at_construction(platform: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(ValueError, match=f"needs .* Linux or macOS, and this is {name}: .* use memory:"):
        AsyncGuard("sqlite:///tmp/guards.db")
    AsyncGuard("memory:")
    AsyncGuard()
