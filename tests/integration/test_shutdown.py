"""A server that is told to stop while some work and others wait."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from .servers import SERVERS, Connection, Server, Servers
from .stage import Mishaps, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

GRACE = 5
CODES = {"h11": -signal.SIGTERM, "httptools": -signal.SIGTERM, "granian": 0, "hypercorn": 0}
"""How each server's process ends that was told to: uvicorn's by the signal, once it has done its work."""


@pytest.fixture(params=SERVERS)
def stopping(request: pytest.FixtureRequest, servers: Servers) -> Iterator[tuple[str, Server]]:
    server = servers.start_served(request.param)
    yield request.param, server
    server.await_end()
    assert server.process.returncode in (CODES[request.param], 0)
    assert not server.mishaps()


async def test_who_waits_is_refused_and_who_works_goes_on(stopping: tuple[str, Server]) -> None:
    kind, server = stopping
    stage = Stage(kind, server, uuid.uuid4().hex, await Connection.open(server), Mishaps())
    kept = await stage.caller()
    await kept.get("/healthz")
    holder = await stage.hold(path="last")
    waiters = [await stage.wait("work", "waiter", waiting=number) for number in (1, 2, 3)]
    handshake = asyncio.create_task(connect_and_be_refused(stage))
    await stage.until(waiting=4)

    server.process.send_signal(signal.SIGTERM)
    for waiter in waiters:
        answer = await waiter.read()
        assert answer.status == 503
        assert answer.body["reason"] == "draining"
        assert int(answer.headers["retry-after"]) >= 1
    await handshake
    # A connection that is kept is closed, or whoever comes over it is told the same.
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        assert (await kept.get(stage.path("work", "late"))).status == 503
    assert (await holder.read()).body == "holder"
    await stage.callers.aclose()
    await stage.control.close()


@pytest.fixture
def with_workers(servers: Servers) -> Server:
    return servers.start_served("hypercorn", "--workers=1", "--graceful-timeout=1")


async def test_hypercorn_tells_its_worker_processes_nothing(with_workers: Server) -> None:
    """No signal reaches them: who waits is served while the grace lasts, and then cut off."""
    server = with_workers
    stage = Stage("hypercorn", server, uuid.uuid4().hex, await Connection.open(server), Mishaps())
    await stage.hold()
    waiter = await stage.wait("work", "waiter")
    server.process.send_signal(signal.SIGTERM)
    assert b"draining" not in await waiter.read_to_the_end()
    await stage.callers.aclose()
    await stage.control.close()


async def connect_and_be_refused(stage: Stage) -> None:
    with pytest.raises(InvalidStatus) as raised:
        async with connect(f"ws://127.0.0.1:{stage.server.port}{stage.path('before', 'ws')}", proxy=None):
            pass
    assert raised.value.response.status_code == 503
