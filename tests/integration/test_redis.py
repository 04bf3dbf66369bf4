"""The Redis backend itself: its threads and lanes, and what it leaves on the server."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from valkey_server import connect

from asyncguard import AsyncGuard, BackendUnavailable
from asyncguard.backends.courier import _OFTEN

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


pytestmark = pytest.mark.anyio


@pytest.fixture
def namespace() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with connect(redis_url) as client:
        yield client


def _lanes(ag: AsyncGuard) -> list[Any]:
    backend: Any = ag.open()
    return [
        lane for courier in backend._couriers.values() for lane in courier._lanes.values() if lane is not None
    ]


def _threads() -> int:
    return sum(thread.name.startswith("asyncguard") for thread in threading.enumerate())


async def _clients(server: Any) -> int:
    info = await asyncio.to_thread(server.info, "clients")
    return int(info["connected_clients"])


async def _ask_often(ag: AsyncGuard) -> Any:
    """Use a guard until the loop has a lane of its own."""
    guard = ag.guard("work")
    while not _lanes(ag):
        async with guard:
            pass
        await asyncio.sleep(0)
    return _lanes(ag)[0]


async def test_a_loop_that_asks_often_has_a_lane(redis_url: str, namespace: str, server: Any) -> None:
    async with AsyncGuard(redis_url, namespace=namespace) as ag:
        guard = ag.guard("work")
        for _ in range(_OFTEN // 2 - 1):
            async with guard:
                pass
        assert not _lanes(ag)
        before = await _clients(server)
        lane = await _ask_often(ag)
        assert await _clients(server) == before + 1
        async with guard as permit:
            assert permit.token
        assert lane.is_open


async def test_what_a_lane_could_not_bring_is_asked_for_again(
    redis_url: str, namespace: str, server: Any
) -> None:
    async with AsyncGuard(redis_url, namespace=namespace) as ag:
        lane = await _ask_often(ag)
        address = "{}:{}".format(*lane._socket.getsockname())
        tasks = [asyncio.create_task(_once(ag)) for _ in range(5)]
        await asyncio.to_thread(server.client_kill, address)
        await asyncio.gather(*tasks)
        assert not lane.is_open
        await _ask_often(ag)
        assert (await ag.guard("work").inspect()).in_use == 0


async def _once(ag: AsyncGuard) -> None:
    async with ag.guard("work"):
        await asyncio.sleep(0.001)


async def test_a_lane_on_which_nothing_is_heard_is_given_up(redis_url: str, namespace: str) -> None:
    async with AsyncGuard(f"{redis_url}?lease=2", namespace=namespace) as ag:
        lane = await _ask_often(ag)
        lane.loop.remove_reader(lane._socket)
        async with asyncio.timeout(2), ag.guard("work"):
            pass
        assert not lane.is_open


async def test_a_script_that_the_server_has_forgotten_is_loaded_again(
    redis_url: str, namespace: str, server: Any
) -> None:
    async with AsyncGuard(redis_url, namespace=namespace) as ag:
        await _ask_often(ag)
        await asyncio.to_thread(server.script_flush)
        await asyncio.gather(*(_once(ag) for _ in range(5)))
        assert _lanes(ag)[0].is_open


async def test_keys_that_were_used_once_leave_nothing(redis_url: str, namespace: str, server: Any) -> None:
    async def keys() -> int:
        return len(await asyncio.to_thread(server.keys, f"asyncguard:*{namespace}*"))

    async with AsyncGuard(f"{redis_url}?lease=0.5", namespace=namespace) as ag:
        guard = ag.guard("work")

        async def use(key: int) -> None:
            async with guard.permit(key=key):
                pass

        await asyncio.gather(*(use(key) for key in range(1500)))
        assert await keys() > 1500
        end = time.monotonic() + 10
        while await keys() > 3:  # the guard itself, its refusals, and what it has seen of holds
            assert time.monotonic() < end
            await asyncio.sleep(0.1)


async def test_nothing_is_left_of_one_that_is_closed(redis_url: str, namespace: str, server: Any) -> None:
    before = _threads(), await _clients(server)
    async with AsyncGuard(redis_url, namespace=namespace) as ag:
        await _ask_often(ag)
        assert _threads() > before[0]
    await asyncio.sleep(0.05)  # until the lane's loop has heard of it
    assert (_threads(), await _clients(server)) == before


async def test_nothing_is_left_of_one_that_is_dropped(redis_url: str, namespace: str, server: Any) -> None:
    before = _threads(), await _clients(server)
    ag = AsyncGuard(redis_url, namespace=namespace)
    await _ask_often(ag)
    del ag
    end = time.monotonic() + 5
    while (_threads(), await _clients(server)) != before:
        assert time.monotonic() < end
        gc.collect()
        await asyncio.sleep(0.02)


async def test_loops_that_live_for_one_call_need_no_lane(redis_url: str, namespace: str) -> None:
    ag = AsyncGuard(redis_url, namespace=namespace)

    def call() -> None:
        for _ in range(30):
            asyncio.run(_once(ag))

    await asyncio.to_thread(call)
    assert not _lanes(ag)
    backend: Any = ag.open()
    [courier] = backend._couriers.values()
    assert len(courier._asked) <= 2, "loops that are closed are forgotten"
    await ag.aclose()


async def test_where_nothing_listens_nobody_is_let_in(namespace: str) -> None:
    async with AsyncGuard("redis://127.0.0.1:1/0?timeout=0.3", namespace=namespace) as ag:
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="can't be asked") as caught:
            await ag.guard("work").acquire()
        assert 0.25 < time.monotonic() - began < 2
        assert caught.value.guard == "work"
        with pytest.raises(BackendUnavailable):
            await ag.guard("work").inspect()


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis://localhost/zero", "number of a database"),
        ("redis://localhost?lease=soon", "expected lease to be a number of seconds"),
        ("redis://localhost?lease=0.01", "expected lease"),
        ("redis://localhost?lease=1&timeout=1", "at least 5 times the timeout"),
        ("redis://localhost?patience=1", "unknown option 'patience'"),
        ("redis://user:pass#word@localhost", "no # in it"),
    ],
)
def test_a_url_that_can_not_be_used_says_why(url: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        AsyncGuard(url)


def test_commands_see_the_guards_of_the_server(redis_url: str, namespace: str) -> None:
    environ = {**os.environ, "ASYNCGUARD_URL": redis_url}

    def asyncguard(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "asyncguard", words[0], "--namespace", namespace, *words[1:]]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=30)

    assert "Nobody has used a guard on the server" in asyncguard("status").stdout
    held = asyncguard(
        *("run", "--guard", "backup/é", "--"),
        *(sys.executable, "-m", "asyncguard", "status", "--namespace", namespace, "--json"),
    )
    assert held.returncode == 0, held.stderr
    [seen] = json.loads(held.stdout)["guards"]
    assert (seen["guard"], seen["limit"], seen["in_use"]) == ("backup/é", 1, 1)
    late = asyncguard("run", "--guard", "backup/é", "--limit", "2", "--", "true")
    assert (late.returncode, late.stderr.count("has limit 1")) == (0, 1)
