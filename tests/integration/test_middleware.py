"""The middleware by itself, under whatever speaks ASGI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import HopelessWait, PermitLost, QueueFull, WouldBlock
from asyncguard.http.middleware import ExchangeMiddleware
from asyncguard.http.problems import problem, retry_after
from asyncguard.http.sources import NoKey

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from asyncguard.http.asgi import ASGIApp, Receive, Scope, Send


async def run(app: ASGIApp, scope: dict[str, Any]) -> list[MutableMapping[str, Any]]:
    """Run an application under the middleware, and return what it sent."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        raise NotImplementedError

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    try:
        await ExchangeMiddleware(app)(scope, receive, send)
    except QueueFull:
        sent.append({"type": "raised"})
    return sent


def app_that_sends(*messages: MutableMapping[str, Any]) -> ASGIApp:
    """Make an application that sends these, and is then refused."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        for message in messages:
            await send(message)
        raise QueueFull(guard="report")

    return app


async def test_a_refusal_after_the_response_started_goes_on() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    assert await run(app_that_sends(start), {"type": "http"}) == [start, {"type": "raised"}]


async def test_a_refusal_is_answered_before() -> None:
    start, body = await run(app_that_sends(), {"type": "http"})
    assert start["type"] == "http.response.start"
    assert start["status"] == 503
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()


@pytest.mark.parametrize("extensions", [{}, {"extensions": None}, {"extensions": {}}])
async def test_a_websocket_is_closed_where_it_cannot_be_denied(extensions: dict[str, Any]) -> None:
    assert await run(app_that_sends(), {"type": "websocket", **extensions}) == [
        {"type": "websocket.close", "code": 1013, "reason": "full"}
    ]


async def test_a_websocket_without_a_key_is_closed_as_one_that_breaks_the_rules() -> None:
    async def app(*_: Any) -> None:
        raise NoKey

    assert await run(app, {"type": "websocket"}) == [
        {"type": "websocket.close", "code": 1008, "reason": "no_key"}
    ]


async def test_a_websocket_is_denied_where_it_can_be() -> None:
    scope = {"type": "websocket", "extensions": {"websocket.http.response": {}}}
    start, body = await run(app_that_sends(), scope)
    assert start["type"] == "websocket.http.response.start"
    assert start["status"] == 503
    assert body["type"] == "websocket.http.response.body"


async def test_a_websocket_that_was_closed_is_left_alone() -> None:
    accept, close = {"type": "websocket.accept"}, {"type": "websocket.close", "code": 1000}
    sent = await run(app_that_sends(accept, close), {"type": "websocket"})
    assert sent == [accept, close, {"type": "raised"}]


async def test_a_lifespan_is_left_alone() -> None:
    assert await run(app_that_sends(), {"type": "lifespan"}) == [{"type": "raised"}]


def test_what_is_known_of_the_wait_is_told() -> None:
    answer = problem(HopelessWait(guard="report", estimated_wait=42.12345))
    assert b'"estimated_wait": 42.123' in answer.content
    assert 43 <= int(dict(answer.headers)["retry-after"]) <= 53


@pytest.mark.parametrize("error", [WouldBlock(), PermitLost()])
def test_what_is_no_refusal_has_no_reason(error: WouldBlock | PermitLost) -> None:
    answer = problem(error)
    assert answer.status == 503
    assert b"reason" not in answer.content
    assert b"guard" not in answer.content.partition(b'"detail"')[0]


@pytest.mark.parametrize(
    ("estimate", "least", "most"), [(None, 1, 3), (0.0, 1, 1), (0.2, 1, 1), (8.0, 8, 10), (1e6, 1e6, 1.25e6)]
)
def test_retry_after_is_never_before_the_estimate(estimate: float | None, least: float, most: float) -> None:
    chosen = {retry_after(estimate) for _ in range(1000)}
    assert least <= min(chosen)
    assert max(chosen) <= most
    assert len(chosen) > 1 or most == 1
