"""What the attack on the HTTP layer found: each was wrong once."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

from asyncguard import AsyncGuard, ClientLeft, WouldDeadlock, current_permit
from asyncguard.client import Row
from asyncguard.http.exchange import Exchange
from asyncguard.http.fastapi import require
from asyncguard.http.middleware import ExchangeMiddleware, GuardMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
BODY = {"type": "http.response.body", "body": b"hi"}


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/", "headers": [*headers]}


async def silent() -> dict[str, Any]:
    """Be a client that says nothing more."""
    await asyncio.Event().wait()
    raise AssertionError("not reached")


class Sent(list[dict[str, Any]]):
    async def send(self, message: Any) -> None:
        self.append(message)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self[0]["headers"])


def alive(kind: type[object]) -> int:
    gc.collect()
    return sum(type(one) is kind for one in gc.get_objects())


async def answer(_: Any, receive: Any, send: Any) -> None:
    del receive
    await send(dict(START))
    await send(dict(BODY))


async def get(app: Any, path: str = "/", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path, headers=headers)


async def test_what_is_put_around_the_stack_stays(hub: AsyncGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    hub.install(app)
    seen: list[str] = []
    own = app.build_middleware_stack

    def build() -> Any:
        stack = own()

        async def around(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await stack(scope, receive, send)

        return around

    monkeypatch.setattr(app, "build_middleware_stack", build)
    for path in ("/1", "/2", "/3"):
        await get(app, path)
    assert seen == ["/1", "/2", "/3"]


async def test_clients_leave_nothing_behind_by_what_they_prefer() -> None:
    guard = AsyncGuard().guard("report")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with guard:
            await answer(scope, receive, send)

    rows, exchanges = alive(Row), alive(Exchange)
    for number in range(40):
        permit = await guard.acquire()
        prefer = (b"prefer", b"wait=%d" % (10 + number % 2))
        request = asyncio.create_task(ExchangeMiddleware(app)(scope(prefer), silent, Sent().send))
        for _ in range(3):
            await asyncio.sleep(0)
        await permit.release()
        await request
    assert alive(Row) < rows + 20  # the loop forgets timers that were called off when they are many
    assert alive(Exchange) <= exchanges + 1


@pytest.mark.parametrize("as_block", [True, False])
async def test_work_that_outlives_its_response_is_not_tied_to_the_client(
    hub: AsyncGuard, as_block: bool
) -> None:
    guard = hub.guard("report")
    children: list[asyncio.Task[None]] = []
    asked: list[bool] = []
    is_over = False

    async def child() -> None:
        async with guard if as_block else guard.permit():
            await asyncio.sleep(0.01)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        children.append(asyncio.create_task(child()))
        await asyncio.sleep(0.01)
        await answer(scope, receive, send)

    async def receive() -> dict[str, Any]:
        asked.append(is_over)
        if is_over:
            return {"type": "http.disconnect"}
        return await silent()

    permit = await guard.acquire()
    await ExchangeMiddleware(app, on_disconnect="cancel")(scope(), receive, Sent().send)
    is_over = True
    await asyncio.sleep(0.01)
    await permit.release()
    await children[0]
    assert True not in asked
    assert [task.get_name() for task in asyncio.all_tasks() if "watch" in task.get_name()] == []


@pytest.mark.parametrize("hold", ["auto", "handler", "body", "background"])
async def test_headers_that_can_be_read_once_are_kept(hub: AsyncGuard, hold: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        headers = ((name, b"1") for name in (b"x-a", b"set-cookie"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(dict(BODY))

    sent = Sent()
    await GuardMiddleware(app, hub.guard("report"), hold=hold)(scope(), silent, sent.send)
    assert {b"x-a", b"set-cookie", b"server-timing"} == sent.headers.keys()


async def test_a_thread_may_take_a_permit_that_is_free(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    app = FastAPI()
    hub.install(app, on_disconnect="cancel")

    @app.get("/")
    def taken() -> bool:
        permit = guard.acquire_nowait()
        return permit.lost.is_set()

    with pytest.warns(ResourceWarning):
        assert (await get(app)).json() is False


async def test_a_block_that_outlives_its_request_is_still_around(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)

    async def app(*_: Any) -> None:
        await guard.__aenter__()

    async with hub.guard("other"):
        pass
    await ExchangeMiddleware(app)(scope(), silent, Sent().send)
    assert current_permit().guard == "report"
    with pytest.raises(WouldDeadlock):
        await guard.acquire()
    await guard.__aexit__(None, None, None)


async def test_who_does_not_read_on_loses_the_permit_at_once(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    seen: list[int] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        del receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with pytest.raises(TimeoutError, match="did not read on"):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        seen.append((await guard.inspect()).in_use)

    async def send(message: Any) -> None:
        if "body" in message:
            await asyncio.sleep(9)

    # The inner one is served by the outer's exchange.
    await ExchangeMiddleware(GuardMiddleware(app, guard, hold="body"), send_timeout=0.05)(
        scope(), silent, send
    )
    assert seen == [0]


async def test_a_server_s_own_timeout_is_not_reworded(hub: AsyncGuard) -> None:
    async def app(_: Any, receive: Any, send: Any) -> None:
        del receive
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with pytest.raises(TimeoutError, match="Connection timed out"):
            await send(dict(BODY))

    async def send(message: Any) -> None:
        if "body" in message:
            raise TimeoutError(110, "Connection timed out")

    await GuardMiddleware(app, hub.guard("report"), hold="body")(scope(), silent, send)


@pytest.mark.parametrize("first", [True, False])
async def test_a_preference_bounds_what_waits_in_a_stream_too(hub: AsyncGuard, first: bool) -> None:
    one, other = hub.guard("one"), hub.guard("other")
    app = FastAPI()
    hub.install(app)

    @app.get("/")
    async def stream() -> StreamingResponse:
        if first:
            async with one:
                pass

        async def body() -> AsyncIterator[str]:
            try:
                async with other:
                    yield "in"
            except Exception as error:  # noqa: BLE001 - it is what is looked at
                yield type(error).__name__

        return StreamingResponse(body())

    async with other.permit():
        response = await asyncio.create_task(get(app, prefer="wait=1"))
    assert response.text == "WaitTimeout"


async def test_requests_are_no_cycles(hub: AsyncGuard) -> None:
    del hub

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answer(scope, receive, send)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x", "more_body": False}

    before = alive(Exchange)
    gc.disable()
    try:
        for _ in range(20):
            await asyncio.create_task(ExchangeMiddleware(app)(scope(), receive, Sent().send))
        assert sum(type(one) is Exchange for one in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("vary", "is_told"), [(b"referer", True), (b"Accept, prefer", False), (b"*", False), (b"x-prefer", True)]
)
async def test_vary_is_told_unless_it_was(hub: AsyncGuard, vary: bytes, is_told: bool) -> None:
    async def app(_: Any, receive: Any, send: Any) -> None:
        del receive
        async with hub.guard("report"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"vary", vary)]})
        await send(dict(BODY))

    sent = Sent()
    await ExchangeMiddleware(app)(scope((b"prefer", b"wait=5")), silent, sent.send)
    assert ((b"vary", b"Prefer") in sent[0]["headers"]) is is_told


async def test_an_application_may_use_a_message_again(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=0)

    async def app(_: Any, receive: Any, send: Any) -> None:
        del receive
        try:
            guard.acquire_nowait(timeout=0)
            async with guard.permit():
                pytest.fail("not reached")
        except Exception:  # noqa: BLE001 - it is answered by the application
            message = {"type": "http.response.start", "status": 500, "headers": []}
            await send(message)
            message.clear()
            message.update(BODY)
            await send(message)

    async with guard.permit():
        sent = Sent()
        await asyncio.create_task(_quietly(ExchangeMiddleware(app), sent))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def _quietly(app: Any, sent: Sent) -> None:
    try:
        await app(scope(), silent, sent.send)
    except ClientLeft:
        pytest.fail("nobody left")


@pytest.mark.parametrize("guard", [None, "report", AsyncGuard()])
def test_only_a_guard_can_be_required(guard: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a guard, as ag\.guard"):
        Depends(require(guard))
