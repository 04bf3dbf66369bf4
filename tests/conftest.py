"""What all tests share: time that jumps, and an AsyncGuard on it that must be idle in the end."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import signal
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from blockbuster import BlockBuster
from jumping import JumpingLoop, LoopClock
from valkey_cluster import Cluster, running_cluster
from valkey_sentinel import Watched, running_sentinels
from valkey_server import running_server

from asyncguard import AsyncGuard
from asyncguard.backends import memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Before anything is imported that would use the user's own.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="asyncguard-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# Children that are forked from this process and end at once would leave their marks behind.
memory.__dict__["look_for_siblings"] = lambda _: None


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": JumpingLoop}


@pytest.fixture(scope="session", autouse=True)
def _signals_as_usual() -> None:
    """Have us, and what tests start, heed signals, also where the tests run under nohup, or behind `&`."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> Iterator[None]:
    """Have a blocking call on an event loop be an error; locks aside, as all are held briefly."""
    blockbuster = BlockBuster()
    blockbuster.activate()
    for lock in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
        blockbuster.functions[lock].deactivate()
    for name, function in blockbuster.functions.items():
        if name.startswith("sqlite3."):
            function.deactivate()  # statements that take some 20 us; what takes longer is a thread's
    blockbuster.functions["os.stat"].can_block_in("backends/sqlite.py", {"_inode_now"})  # of a file in use
    blockbuster.functions["os.write"].can_block_in("history/_files.py", {"note"})  # one line of a file
    for name in ("os.stat", "os.listdir", "io.BufferedReader.read", "io.TextIOWrapper.read"):
        # redis-py looks its own version up for each connection.
        blockbuster.functions[name].can_block_in("redis/utils.py", {"get_lib_version"})
    yield
    blockbuster.deactivate()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Have a server run for all tests that need one, or use the one that ASYNCGUARD_TEST_REDIS_URL names."""
    with running_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[Cluster]:
    """Have a cluster of three masters run for all tests that need one."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_sentinels() -> Iterator[Watched]:
    """Have a master with a replica and three sentinels run for all tests that need them."""
    with running_sentinels() as watched:
        yield watched


@pytest.fixture
async def clock() -> LoopClock:
    return LoopClock(asyncio.get_running_loop())


@pytest.fixture
async def hub(clock: LoopClock) -> AsyncIterator[AsyncGuard]:
    """Make an AsyncGuard whose guards must hold nothing, and have nobody waiting, when the test ends."""
    ag = AsyncGuard(clock=clock)
    yield ag
    for guard in ag._guards.values():
        picture = await guard.inspect()
        assert picture.holders == (), "permits are still held"
        assert picture.queue == (), "tickets still wait"
    await ag.aclose()
