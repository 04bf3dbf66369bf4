"""WebSockets under guards, on real servers over real sockets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

if TYPE_CHECKING:
    from .stage import Stage

pytestmark = pytest.mark.parametrize("prefix", ["", "/layered"])


def url(stage: Stage, path: str, name: str) -> str:
    return f"ws://127.0.0.1:{stage.server.port}{stage.path(path, name)}"


async def enter(stage: Stage, path: str, name: str) -> ClientConnection:
    """Have somebody connect whose permit is free."""
    socket = await connect(url(stage, path, name), proxy=None)
    stage.callers.push_async_callback(socket.close)
    assert await socket.recv() == f"{name} is in"
    return socket


@pytest.mark.parametrize("path", ["before", "after"])
async def test_the_permit_spans_the_session(stage: Stage, prefix: str, path: str) -> None:
    stage.prefix = prefix
    socket = await enter(stage, path, "first")
    waiter = await stage.wait("work", "next")
    await socket.send("hello")
    assert await socket.recv() == "hello"
    await socket.close()
    await stage.until(started=["first", "next"], ended=["first"])
    await stage.go()
    assert (await waiter.read()).body == "next"


async def test_who_leaves_once_accepted_leaves_the_queue(stage: Stage, prefix: str) -> None:
    stage.prefix = prefix
    await stage.hold()
    async with connect(url(stage, "after", "leaver"), proxy=None):
        await stage.until(waiting=1)
    await stage.until(waiting=0)
    await stage.go()
    await stage.until(started=["holder"], held=0)


async def test_who_is_cut_off_once_accepted_leaves_the_queue(stage: Stage, prefix: str) -> None:
    stage.prefix = prefix
    await stage.hold()
    async with connect(url(stage, "after", "leaver"), proxy=None) as socket:
        await stage.until(waiting=1)
        socket.transport.abort()
        await stage.until(waiting=0)
    await stage.go()
    await stage.until(started=["holder"], held=0)


async def test_who_leaves_before_it_is_accepted_leaves_the_queue(stage: Stage, prefix: str) -> None:
    """Granian alone doesn't say that a client has left that it wasn't told to accept."""
    stage.prefix = prefix
    await stage.hold()
    caller = await stage.wait("before", "leaver", **HANDSHAKE)
    other = await stage.wait("work", "other", waiting=2)
    await caller.close()
    await other.close()
    stage.mishaps.possible.append("ASGI flow error")  # its own, once it is told to accept after all
    await stage.until(waiting=1 if stage.kind == "granian" else 0)
    await stage.go()
    state = await stage.until(waiting=0, held=0)
    assert stage.kind == "granian" or state["started"] == ["holder"]


HANDSHAKE: dict[str, Any] = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def test_a_refusal_before_it_is_accepted_is_a_response(stage: Stage, prefix: str) -> None:
    stage.prefix = prefix
    await stage.hold()
    with pytest.raises(InvalidStatus) as raised:
        async with connect(url(stage, "before", "refused?patience=0"), proxy=None):
            pass
    assert raised.value.response.status_code == 503
    assert raised.value.response.headers["Content-Type"] == "application/problem+json"
    assert json.loads(raised.value.response.body or b"")["reason"] in ("hopeless", "timeout")
    await stage.go()


async def test_a_refusal_once_accepted_closes_the_connection(stage: Stage, prefix: str) -> None:
    stage.prefix = prefix
    await stage.hold()
    async with connect(url(stage, "after", "refused?patience=0"), proxy=None) as socket:
        with pytest.raises(ConnectionClosed) as raised:
            await socket.recv()
    assert raised.value.rcvd is not None
    assert raised.value.rcvd.code == 1013
    assert raised.value.rcvd.reason in ("hopeless", "timeout")
    await stage.go()


async def test_messages_that_came_while_it_waited_arrive_in_order(stage: Stage, prefix: str) -> None:
    stage.prefix = prefix
    messages = [f"message {number}" for number in range(100)]
    await stage.hold()
    async with connect(url(stage, "after", "caller"), proxy=None) as socket:
        for message in messages:
            await socket.send(message)
        await stage.until(waiting=1)
        await stage.go()
        assert await socket.recv() == "caller is in"
        assert [await socket.recv() for _ in messages] == messages
