"""`GuardMiddleware`: who is let in, decided before anything of a request's body is read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import WebSocketDenialResponse

from asyncguard import AsyncGuard, Guard, current_permit
from asyncguard.http.fastapi import GuardMiddleware, client_ip, header, path_param

from .servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncguard.http.asgi import ASGIApp, Message, Receive, Scope, Send

    from .servers import Server, Servers


@pytest.fixture
def ag() -> AsyncGuard:
    return AsyncGuard()


@pytest.fixture
def guard(ag: AsyncGuard) -> Guard:
    return ag.guard("report", max_waiting=0)


async def answer(_: Scope, __: Receive, send: Send) -> None:
    """Answer with the token of the permit, or 0 where none is held."""
    token = 0
    with contextlib.suppress(LookupError):
        token = current_permit().token
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(token).encode()})


async def call(app: ASGIApp, path: str = "/", method: str = "GET", **scope: Any) -> list[Message]:
    """Call an application that must not read the body."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nothing is to be read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"headers": [], "query_string": b"", "client": None, **scope}
    await app({"type": "http", "method": method, "path": path, **scope}, receive, send)
    return sent


async def is_guarded(app: ASGIApp, path: str = "/", method: str = "GET", **scope: Any) -> bool:
    start, body = await call(app, path, method, **scope)
    assert start["status"] == 200
    return bool(body["body"] != b"0")


async def status_when_full(app: ASGIApp, guard: Guard, *, key: str | None = None, **scope: Any) -> int:
    async with guard.permit(key=key):
        start, body = await asyncio.create_task(call(app, **scope))
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/problem+json"
    assert int(headers[b"retry-after"]) >= 1
    assert json.loads(body["body"])["reason"] == "full"
    status: int = start["status"]
    return status


# --- under plain ASGI --------------------------------------------------------------------------


async def test_it_needs_nothing_else(guard: Guard) -> None:
    app = GuardMiddleware(answer, guard)
    assert await is_guarded(app)
    assert await status_when_full(app, guard) == 503
    start, _ = await call(app)
    assert dict(start["headers"])[b"server-timing"].startswith(b'queue;desc="report"')
    assert (await guard.inspect()).in_use == 0


async def test_options_are_left_alone(guard: Guard) -> None:
    app = GuardMiddleware(answer, guard)
    assert not await is_guarded(app, method="OPTIONS")
    async with guard:
        assert not await asyncio.create_task(is_guarded(app, method="OPTIONS"))


async def test_a_lifespan_is_left_alone(guard: Guard) -> None:
    seen: list[object] = []

    async def app(*call: object) -> None:
        seen.extend(call)

    call: Any = ({"type": "lifespan"}, object(), object())
    async with guard:
        await GuardMiddleware(app, guard)(*call)
    assert seen == [*call]


@pytest.mark.parametrize(
    ("match", "path", "root_path", "expected"),
    [
        (None, "/anything", "", True),
        ("/report", "/report", "", True),
        ("/report", "/report/7", "", True),
        ("/report", "/other/report", "", False),
        ("/report", "/", "", False),
        ("/report", "/api/report", "/api", True),
        ("/report", "/report", "/api", True),  # as behind a proxy that takes the prefix away
        ("/report", "/apireport", "/api", False),
        ("/api", "/api/report", "/api", False),
        ("/api", "/api", "/api", True),
        (lambda scope: scope["method"] == "GET", "/", "", True),
        (lambda scope: scope["method"] == "POST", "/", "", False),
    ],
)
async def test_it_concerns_what_matches(
    guard: Guard, match: Any, path: str, root_path: str, expected: bool
) -> None:
    assert (
        await is_guarded(GuardMiddleware(answer, guard, match=match), path, root_path=root_path) is expected
    )


@pytest.mark.parametrize("match", [7, b"/report", ["/report"]])
def test_what_matches_nothing_is_refused(guard: Guard, match: Any) -> None:
    with pytest.raises(TypeError, match="match: expected the beginning of a path or a function"):
        GuardMiddleware(answer, guard, match=match)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"key": 7}, TypeError),
        ({"hold": "never"}, ValueError),
        ({"permits": 2}, ValueError),
        ({"color": "red"}, TypeError),
    ],
)
def test_what_cannot_be_asked_is_refused(guard: Guard, asked: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        GuardMiddleware(answer, guard, **asked)


async def test_keys_have_queues_of_their_own_and_known_callers_get_429(guard: Guard) -> None:
    app = GuardMiddleware(answer, guard, key=header("x-api-key"))
    alice = {"headers": [(b"x-api-key", b"alice")]}
    assert await status_when_full(app, guard, key="alice", **alice) == 429
    async with guard.permit(key="alice"):
        assert await asyncio.create_task(is_guarded(app))
    by_address = GuardMiddleware(answer, guard, tenant=client_ip())
    assert await status_when_full(by_address, guard, client=("1.2.3.4", 5)) == 429
    by_path = GuardMiddleware(answer, guard, key=lambda scope: scope["path"])
    assert await status_when_full(by_path, guard, key="/", path="/") == 503


async def test_one_in_another_takes_both(ag: AsyncGuard, guard: Guard) -> None:
    other = ag.guard("other", max_waiting=0)
    app = GuardMiddleware(GuardMiddleware(answer, other), guard)
    assert await is_guarded(app)
    for full in (guard, other):
        assert await status_when_full(app, full) == 503
    assert (await guard.inspect()).in_use == (await other.inspect()).in_use == 0


async def test_an_error_passes_through(guard: Guard) -> None:
    async def fail(*_: object) -> None:
        raise ValueError("mistake")

    with pytest.raises(ValueError, match="mistake"):
        await call(GuardMiddleware(fail, guard))
    assert (await guard.inspect()).in_use == 0


@pytest.mark.parametrize(("hold", "used"), [("auto", 1), ("handler", 0), ("body", 1)])
async def test_a_stream_holds_it(guard: Guard, hold: Any, used: int) -> None:
    seen: list[int] = []

    async def stream(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for more in (True, False):
            seen.append((await guard.inspect()).in_use)
            await send({"type": "http.response.body", "body": b"x", "more_body": more})
        seen.append((await guard.inspect()).in_use)

    await call(GuardMiddleware(stream, guard, hold=hold))
    assert seen == [used, used, 0]


# --- under frameworks --------------------------------------------------------------------------


def starlette_app(*middleware: Middleware) -> Starlette:
    async def report(_: Any) -> PlainTextResponse:
        return PlainTextResponse(str(current_permit().token))

    return Starlette(routes=[Route("/report", report), Mount("/inner", routes=[])], middleware=[*middleware])


async def get(app: Any, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


@pytest.mark.parametrize("is_installed", [False, True])
async def test_starlette(ag: AsyncGuard, guard: Guard, is_installed: bool) -> None:
    app = starlette_app(Middleware(GuardMiddleware, guard=guard, match="/report"))
    if is_installed:
        ag.install(app)
    assert (await get(app, "/report")).status_code == 200
    async with guard:
        refusal = await asyncio.create_task(get(app, "/report"))
        assert (await asyncio.create_task(get(app, "/nothing"))).status_code == 404
    assert refusal.status_code == 503
    assert refusal.json()["reason"] == "full"


@pytest.mark.parametrize("is_installed", [False, True])
@pytest.mark.parametrize("comes_first", [False, True])
async def test_fastapi(ag: AsyncGuard, guard: Guard, is_installed: bool, comes_first: bool) -> None:
    app = FastAPI()
    if comes_first:
        app.add_middleware(GuardMiddleware, guard=guard)
    if is_installed:
        ag.install(app, problems="/problems/", expose="capacity")
    if not comes_first:
        app.add_middleware(GuardMiddleware, guard=guard)

    @app.get("/")
    async def report() -> int:
        return current_permit().token

    answered = await get(app, "/")
    assert answered.json() > 0
    assert answered.headers.get_list("server-timing")[0].count("report") == 1
    async with guard:
        refusal = await asyncio.create_task(get(app, "/"))
    assert refusal.status_code == 503
    if is_installed:
        assert refusal.json()["type"] == "/problems/full"
        assert refusal.json()["limit"] == 1


async def test_middleware_that_comes_after_install_may_take_a_guard(ag: AsyncGuard, guard: Guard) -> None:
    app = FastAPI()
    ag.install(app)

    @app.middleware("http")
    async def guarded(request: Any, call_next: Any) -> Any:
        async with guard:
            return await call_next(request)

    async with guard:
        refusal = await asyncio.create_task(get(app, "/"))
    assert refusal.status_code == 503
    assert refusal.json()["reason"] == "full"
    assert (await get(app, "/")).headers["server-timing"].startswith('queue;desc="report"')


async def test_in_an_application_that_is_mounted(guard: Guard) -> None:
    inner, app = FastAPI(), FastAPI()
    inner.add_middleware(GuardMiddleware, guard=guard, match="/report")

    @inner.get("/report")
    async def report() -> int:
        return current_permit().token

    app.mount("/inner", inner)
    assert (await get(app, "/inner/report")).json() > 0


async def test_a_middleware_of_a_route_knows_the_paths_parameters(guard: Guard) -> None:
    async def report(_: Any) -> PlainTextResponse:
        return PlainTextResponse(current_permit().key or "")

    by_account = Middleware(GuardMiddleware, guard=guard, key=path_param("account"))
    app = Starlette(routes=[Route("/{account:int}", report, middleware=[by_account])])
    assert (await get(app, "/007")).text == "7"


def test_a_websocket_holds_it_for_its_session(guard: Guard) -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", "code": 1000})

    client = TestClient(GuardMiddleware(echo, guard))
    with client.websocket_connect("/") as session:
        with pytest.raises(WebSocketDenialResponse) as raised, client.websocket_connect("/"):
            pass
        session.send_text("bye")
    assert raised.value.status_code == 503
    with client.websocket_connect("/") as session:
        session.send_text("bye")


# --- on a real server --------------------------------------------------------------------------

MIB = 1024 * 1024
UPLOAD = 50 * MIB


@pytest.fixture(params=[("alone", "h11"), ("installed", "auto")], ids="-".join)
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    app, http = request.param
    uvicorn = ("uvicorn", "--host=127.0.0.1", "--port=0", f"--http={http}")
    return servers.start(*uvicorn, f"integration.uploads:{app}", cwd=ROOT / "tests")


class Upload:
    """An upload in the middle of it, as no client library would stop there."""

    def __init__(self, server: Server, size: int, path: str = "/upload", **headers: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        fields = {"Host": "test", "Content-Length": str(size), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.socket.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())

    def read_status(self) -> int:
        return int(self.socket.makefile("rb").readline().split()[1])


@contextlib.contextmanager
def held(server: Server, path: str) -> Iterator[Upload]:
    """Have somebody hold the permit, as the rest of the upload doesn't come."""
    upload = Upload(server, 10, path)
    with upload.socket:
        deadline = time.monotonic() + 10
        while state(server)["in_use"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield upload


def state(server: Server) -> dict[str, int]:
    known: dict[str, int] = httpx.get(f"{server.url}/state").json()
    return known


def test_an_upload_is_refused_before_it_is_read(server: Server) -> None:
    with held(server, "/upload") as holder:
        for headers in ({}, {"Expect": "100-continue"}):  # to which "100 Continue" would be the wrong answer
            upload = Upload(server, UPLOAD, **headers)
            with upload.socket:
                assert upload.read_status() == 503
        refused = httpx.post(f"{server.url}/upload", content=bytes(UPLOAD), timeout=20)
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["reason"] == "full"
        assert state(server) == {"read": 0, "in_use": 1}
        holder.socket.sendall(bytes(10))
        assert holder.read_status() == 200
    assert httpx.post(f"{server.url}/upload", content=bytes(MIB)).json() == MIB
    assert state(server)["in_use"] == 0


def test_an_upload_that_waits_is_not_read_but_for_its_beginning(server: Server) -> None:
    with held(server, "/patient"):
        refused = httpx.post(f"{server.url}/patient", content=bytes(UPLOAD), timeout=20)
        assert refused.json()["reason"] == "timeout"
        assert state(server)["read"] < 2 * MIB
