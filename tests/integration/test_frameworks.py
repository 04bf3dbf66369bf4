"""Guards under Litestar, which answers every error by itself."""

# Litestar reads the annotations of handlers, also of those in functions.
# ruff: noqa: TC002, TC003

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, Response, get, post
from litestar.middleware import DefineMiddleware
from litestar.response import Stream

from asyncguard import AsyncGuard, current_permit
from asyncguard.http.middleware import ExchangeMiddleware, GuardMiddleware
from asyncguard.http.problems import ANSWERED, problem
from asyncguard.http.sources import client_ip, header, path_param

ag = AsyncGuard()
guard = ag.guard("report", max_waiting=0)
short = ag.guard("short", max_hold=0.01)


@get("/plain")
async def plain() -> str:
    return current_permit().key or ""


@get("/account/{account:int}")
async def account() -> str:
    return current_permit().key or ""


@get("/block")
async def block() -> int:
    async with guard:
        return (await guard.inspect()).in_use


@get("/decorated")
@guard
async def decorated() -> int:
    return (await guard.inspect()).in_use


@get("/long")
async def too_long() -> None:
    async with short:
        await asyncio.Event().wait()


@get("/stream")
@guard
async def stream() -> Stream:
    async def chunks() -> AsyncIterator[str]:
        for _ in range(2):
            yield str((await guard.inspect()).in_use)

    return Stream(chunks())


@post("/upload")
async def upload(request: Request[Any, Any, Any]) -> int:
    return len(await request.body())


def answer(_: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer as other frameworks have it by `install`."""
    answer = problem(error)  # type: ignore[arg-type]
    return Response(answer.content, status_code=answer.status, headers=dict(answer.headers))


def application(*handlers: Any, **options: Any) -> Any:  # its types of ASGI are narrower than any server's
    return Litestar([*handlers], openapi_config=None, logging_config=None, **options)


def guarded(*handlers: Any, **options: Any) -> Any:
    middleware: Any = GuardMiddleware
    return application(*handlers, middleware=[DefineMiddleware(middleware, guard=guard, **options)])


async def ask(app: Any, path: str, method: str = "GET", **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.request(method, path, **options)


async def refused(app: Any, path: str, key: str | None = None, **options: Any) -> httpx.Response:
    async with guard.permit(key=key):
        response = await asyncio.create_task(ask(app, path, **options))
    assert response.headers["content-type"] == "application/problem+json"
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["reason"] == "full"
    assert response.json()["status"] == response.status_code
    return response


@pytest.mark.parametrize(
    "app", [guarded(plain), GuardMiddleware(application(plain), guard)], ids=["inside", "around"]
)
async def test_middleware_guards(app: Any) -> None:
    granted = await ask(app, "/plain")
    assert granted.status_code == 200
    assert granted.headers["server-timing"].startswith('queue;desc="report"')
    assert (await refused(app, "/plain")).status_code == 503
    assert (await guard.inspect()).in_use == 0


async def test_sources_read_its_requests() -> None:
    key = {"x-api-key": "alice"}
    by_header = guarded(plain, key=header("x-api-key"))
    assert (await ask(by_header, "/plain", headers=key)).text == "alice"
    assert (await refused(by_header, "/plain", key="alice", headers=key)).status_code == 429
    assert (await ask(guarded(plain, key=client_ip()), "/plain")).text == "127.0.0.1"
    assert (await ask(guarded(account, key=path_param("account")), "/account/007")).text == "7"


async def test_an_upload_is_refused_unread() -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("nothing is to be read")
        yield b""

    app = guarded(upload)
    assert (await ask(app, "/upload", "POST", content=bytes(9))).json() == 9
    assert (await refused(app, "/upload", method="POST", content=never())).status_code == 503


@pytest.mark.parametrize("path", ["/block", "/decorated"])
@pytest.mark.parametrize("has_exchange", [False, True])
async def test_a_guard_in_a_handler(path: str, has_exchange: bool) -> None:
    app = application(block, decorated, exception_handlers=dict.fromkeys(ANSWERED, answer))
    if has_exchange:
        app = ExchangeMiddleware(app)
    granted = await ask(app, path)
    assert granted.json() == 1
    assert ("server-timing" in granted.headers) is has_exchange
    assert (await refused(app, path)).status_code == 503


async def test_what_is_lost_is_answered() -> None:
    app = application(too_long, exception_handlers=dict.fromkeys(ANSWERED, answer))
    response = await ask(ExchangeMiddleware(app), "/long")
    assert response.status_code == 503
    assert json.loads(response.content)["detail"] == "The work took longer than it may, and was cancelled."


async def test_a_stream_holds_the_permit_of_its_handler() -> None:
    app = ExchangeMiddleware(application(stream))
    assert (await ask(app, "/stream")).text == "11"
    assert (await guard.inspect()).in_use == 0
