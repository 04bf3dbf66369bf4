"""Clients that leave, on real servers over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard.http.inbox import MOST_KEPT

if TYPE_CHECKING:
    from .stage import Stage

LAYERS = ["", "/layered"]
"""With nothing around the guards, and mounted under Starlette's and FastAPI's middleware."""


@pytest.mark.parametrize("prefix", LAYERS)
@pytest.mark.parametrize("path", ["work", "required"])
async def test_who_leaves_leaves_the_queue(stage: Stage, prefix: str, path: str) -> None:
    stage.prefix = prefix
    holder = await stage.hold(path=path)
    leaver = await stage.wait(path, "leaver")
    stayer = await stage.wait(path, "stayer", waiting=2)
    await leaver.close()
    await stage.until(waiting=1)
    await stage.go(2)
    assert (await holder.read()).body == "holder"
    assert (await stayer.read()).body == "stayer"
    assert (await stage.state())["started"] == ["holder", "stayer"]


@pytest.mark.parametrize("prefix", LAYERS)
@pytest.mark.parametrize("path", ["raw", "json"])
async def test_who_sent_a_small_body_leaves_the_queue(stage: Stage, prefix: str, path: str) -> None:
    stage.prefix = prefix
    await stage.hold()
    request: dict[str, Any] = {"method": "POST", "body": b'{"one": 1}', "Content_Type": "application/json"}
    leaver = await stage.wait(path, "leaver", **request)
    stayer = await stage.wait(path, "stayer", waiting=2, **request)
    await leaver.close()
    await stage.until(waiting=1)
    await stage.go(2)
    body = (await stayer.read()).body
    if path == "raw":
        assert body == {"sha256": hashlib.sha256(b'{"one": 1}').hexdigest(), "size": 10}
    else:
        assert body == {"one": 1}
    assert (await stage.state())["started"] == ["holder", "stayer"]


# --- bodies ------------------------------------------------------------------------------------


def sent(body: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}


@pytest.mark.parametrize("prefix", LAYERS)
@pytest.mark.parametrize("size", [MOST_KEPT - 1, MOST_KEPT, 3 * MOST_KEPT])
async def test_bodies_arrive_as_they_were_sent(stage: Stage, prefix: str, size: int) -> None:
    stage.prefix = prefix
    body = random.randbytes(size)
    await stage.hold()
    caller = await stage.caller()
    sending = asyncio.create_task(caller.send(stage.path("raw", "caller"), "POST", body))
    await stage.until(waiting=1)
    await stage.go()
    assert (await caller.read()).body == sent(body)
    await sending


async def test_who_sent_more_than_is_read_ahead_is_not_watched(stage: Stage) -> None:
    await stage.hold()
    large = await stage.caller()
    large.begin_to_send(post(stage.path("unread", "large"), length=8 * MOST_KEPT) + bytes(8 * MOST_KEPT))
    await stage.until(waiting=1)
    small = await stage.wait("unread", "small", waiting=2, method="POST", body=b"small")
    large.abort()
    await small.close()
    await stage.until(waiting=1)
    await stage.go()
    await stage.until(started=["holder", "large"])  # its work runs, though nobody waits for it
    await stage.go()


@pytest.mark.parametrize("prefix", LAYERS)
async def test_a_slow_upload_goes_on_while_it_waits(stage: Stage, prefix: str) -> None:
    stage.prefix = prefix
    body = random.randbytes(70_000)
    pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
    await stage.hold()
    caller = await stage.caller()
    await caller.send_raw(post(stage.path("raw", "caller"), length=len(body)))
    await stage.until(waiting=1)
    for piece in pieces[:4]:
        await caller.send_raw(piece)
        await stage.state()  # for the server to read what was sent
    await stage.go()
    await stage.until(started=["holder", "caller"])
    for piece in pieces[4:]:
        await caller.send_raw(piece)
        await stage.state()
    assert (await caller.read()).body == sent(body)


async def test_who_leaves_in_the_middle_of_an_upload_leaves_the_queue(stage: Stage) -> None:
    await stage.hold()
    caller = await stage.caller()
    await caller.send_raw(post(stage.path("raw", "caller"), length=1000) + bytes(500))
    await stage.until(waiting=1)
    await caller.close()
    await stage.until(waiting=0)
    await stage.go()
    await stage.until(ended=["holder"], started=["holder"])


def post(path: str, *, length: int, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n{more}\r\n".encode()


# --- connections -------------------------------------------------------------------------------


async def test_who_says_no_more_has_left(stage: Stage) -> None:
    """Closing the half that is the client's to write counts as leaving, on every server."""
    await stage.hold()
    caller = await stage.wait("work", "caller")
    caller.say_no_more()
    await stage.until(waiting=0)
    await stage.go()
    print(stage.kind, await caller.read_to_the_end())


async def test_a_connection_is_kept_after_its_request_waited(stage: Stage) -> None:
    await stage.hold()
    caller = await stage.wait("work", "first")
    await stage.go(2)
    assert (await caller.read()).body == "first"
    body = random.randbytes(1000)
    await caller.send(stage.path("raw", "second"), "POST", body)
    assert (await caller.read()).body == sent(body)
    holder = await stage.call("work", "third")
    await stage.until(held=1)
    await caller.send(stage.path("work", "fourth"))
    await stage.until(waiting=1)
    await stage.go(2)
    assert (await holder.read()).body == "third"
    assert (await caller.read()).body == "fourth"


async def test_requests_that_follow_at_once_are_served_in_turn(stage: Stage) -> None:
    await stage.hold()
    caller = await stage.caller()
    requests = [f"GET {stage.path('work', name)} HTTP/1.1\r\nHost: test\r\n\r\n" for name in "abc"]
    await caller.send_raw("".join(requests).encode())
    await stage.until(waiting=1)
    await stage.go(4)
    assert [(await caller.read()).body for _ in "abc"] == ["a", "b", "c"]


async def test_not_all_servers_see_a_client_leave_that_sent_its_next_request(stage: Stage) -> None:
    """All but h11 read nothing from a connection while a request that came with another waits its turn."""
    stage.mishaps.possible.append("the handler is closed")  # uvloop's, as uvicorn answers the second
    await stage.hold()
    caller = await stage.caller()
    requests = [f"GET {stage.path('work', name)} HTTP/1.1\r\nHost: test\r\n\r\n" for name in "ab"]
    await caller.send_raw("".join(requests).encode())
    await stage.until(waiting=1)
    other = await stage.wait("work", "other", waiting=2)
    await caller.close()
    await other.close()
    await stage.until(waiting=0 if stage.kind == "h11" else 1)
    await stage.go(3)


async def test_a_client_that_asks_before_it_sends_is_told_to(stage: Stage) -> None:
    await stage.hold()
    body = random.randbytes(1000)
    caller = await stage.caller()
    await caller.send_raw(post(stage.path("raw", "caller"), length=1000, more="Expect: 100-continue\r\n"))
    await stage.until(waiting=1)
    status, _ = await caller.read_head()
    assert status == 100
    await caller.send_raw(body)
    await stage.go()
    assert (await caller.read()).body == sent(body)


async def test_a_client_may_say_how_long_it_waits(stage: Stage) -> None:
    await stage.hold()
    caller = await stage.caller()
    answer = await caller.get(stage.path("work", "caller"), Prefer="wait=0")
    assert answer.status == 503
    assert answer.headers["preference-applied"] == "wait=0"
    assert answer.headers["vary"] == "Prefer"
    await stage.go()
