"""`AsyncGuard.install`: what an application's guards look like on HTTP."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from asyncguard import AsyncGuard, Guard, GuardError, Refused, WouldDeadlock, current_permit
from asyncguard.http.fastapi import RESPONSES
from asyncguard.permit import scope_var

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


@pytest.fixture
def ag() -> AsyncGuard:
    return AsyncGuard()


@pytest.fixture
def guard(ag: AsyncGuard) -> Guard:
    return ag.guard("report", max_waiting=0)


def guarded_app(ag: AsyncGuard, guard: Guard) -> FastAPI:
    app = FastAPI()
    ag.install(app)

    @app.get("/")
    @guard
    async def report() -> int:
        return current_permit().token

    return app


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def get(app: Any, path: str = "/", **headers: str) -> httpx.Response:
    async with client_of(app) as client:
        return await client.get(path, headers=headers)


async def refused(app: Any, guard: Guard, path: str = "/", **headers: str) -> httpx.Response:
    """Ask while the only permit is taken and nobody may wait."""
    async with guard:
        return await asyncio.create_task(get(app, path, **headers))


def assert_problem(response: Any) -> None:
    """Check a response of httpx, or what stands for one where a WebSocket was denied."""
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert re.fullmatch("[1-3]", response.headers["retry-after"])
    problem = response.json()
    assert problem["type"] == "about:blank"
    assert problem["title"] == "Service Unavailable"
    assert problem["status"] == 503
    assert problem["detail"]
    assert "max_" not in response.text, "how many may wait is nobody else's business"


# --- refusals ----------------------------------------------------------------------------------


async def test_a_refusal_is_a_problem(ag: AsyncGuard, guard: Guard) -> None:
    response = await refused(guarded_app(ag, guard), guard)
    assert_problem(response)
    problem = response.json()
    assert problem["guard"] == "report"
    assert problem["reason"] == "full"
    assert "estimated_wait" not in problem
    assert "server-timing" not in response.headers


async def test_the_applications_own_handler_wins(ag: AsyncGuard, guard: Guard) -> None:
    app = guarded_app(ag, guard)

    @app.exception_handler(Refused)
    async def answer(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"mine": error.reason}, 418)

    response = await refused(app, guard)
    assert response.status_code == 418
    assert response.json() == {"mine": "full"}


async def test_the_applications_handler_of_the_base_wins(ag: AsyncGuard, guard: Guard) -> None:
    app = guarded_app(ag, guard)

    @app.exception_handler(GuardError)
    async def answer(_: Request, error: GuardError) -> JSONResponse:
        return JSONResponse(type(error).__name__, 418)

    assert (await refused(app, guard)).json() == "QueueFull"


async def test_a_refusal_passes_through_middleware_as_a_response(ag: AsyncGuard, guard: Guard) -> None:
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    ag.install(app)

    @app.get("/")
    @guard
    async def report() -> None: ...

    response = await refused(app, guard, Origin="http://elsewhere")
    assert_problem(response)
    assert response.headers["access-control-allow-origin"] == "*"


async def test_a_guard_in_middleware_refuses_too(ag: AsyncGuard, guard: Guard) -> None:
    app = FastAPI()

    @app.middleware("http")
    async def guarded(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        async with guard:
            return await call_next(request)

    ag.install(app)

    @app.get("/")
    async def report() -> None: ...

    assert_problem(await refused(app, guard))
    assert (await get(app)).headers["server-timing"].startswith('queue;desc="report"')


async def test_a_mounted_application_refuses_too(ag: AsyncGuard, guard: Guard) -> None:
    app, mounted = FastAPI(), FastAPI()
    ag.install(app)

    @mounted.get("/report")
    @guard
    async def report() -> None: ...

    app.mount("/inner", mounted)
    assert_problem(await refused(app, guard, "/inner/report"))
    response = await get(app, "/inner/report")
    assert response.status_code == 200
    assert response.headers["server-timing"].startswith('queue;desc="report"')


async def test_a_mounted_applications_handler_wins(ag: AsyncGuard, guard: Guard) -> None:
    app, mounted = FastAPI(), FastAPI()
    ag.install(app)

    @mounted.exception_handler(Refused)
    async def answer(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"mine": error.reason}, 500)

    @mounted.get("/report")
    @guard
    async def report() -> None: ...

    app.mount("/inner", mounted)
    response = await refused(app, guard, "/inner/report")
    assert response.status_code == 500
    assert response.json() == {"mine": "full"}


async def test_starlette_refuses_too(ag: AsyncGuard, guard: Guard) -> None:
    async def report(_: Request) -> PlainTextResponse:
        async with guard:
            return PlainTextResponse("done")

    app = Starlette(routes=[Route("/", report)])
    ag.install(app)
    assert_problem(await refused(app, guard))
    assert (await get(app)).text == "done"


async def test_a_lost_permit_is_a_problem_without_a_reason(ag: AsyncGuard) -> None:
    app = FastAPI()
    ag.install(app)

    @app.get("/")
    @ag.guard("short", max_hold=0.01)
    async def report() -> None:
        await asyncio.Event().wait()

    response = await get(app)
    assert_problem(response)
    assert response.json().keys() == {"type", "title", "status", "detail"}
    assert 'desc="short"' in response.headers["server-timing"]


async def test_no_free_permit_is_a_problem(ag: AsyncGuard, guard: Guard) -> None:
    app = FastAPI()
    ag.install(app)

    @app.get("/")
    async def report() -> None:
        await guard.acquire_nowait().release()

    assert (await get(app)).status_code == 200
    assert_problem(await refused(app, guard))


async def test_a_mistake_in_the_code_is_none(ag: AsyncGuard) -> None:
    app = FastAPI()
    ag.install(app)
    guard = ag.guard("report")

    @app.get("/")
    @guard
    async def report() -> None:
        async with guard:
            raise AssertionError

    with pytest.raises(WouldDeadlock):
        await get(app)


async def test_responses_describe_what_is_sent(ag: AsyncGuard, guard: Guard) -> None:
    schema = RESPONSES[503]["content"]["application/problem+json"]["schema"]
    problem = (await refused(guarded_app(ag, guard), guard)).json()
    assert problem.keys() <= schema["properties"].keys()
    assert set(schema["required"]) <= problem.keys()
    assert problem["reason"] in schema["properties"]["reason"]["enum"]
    assert set(schema["required"]) <= schema["example"].keys()


# --- timing ------------------------------------------------------------------------------------


async def test_timing_is_appended(ag: AsyncGuard, guard: Guard) -> None:
    app = FastAPI()
    ag.install(app)

    @app.get("/")
    @guard
    async def report(response: Response) -> None:
        response.headers["Server-Timing"] = "db;dur=5.1"

    response = await get(app)
    assert re.fullmatch(
        r'db;dur=5\.1, queue;desc="report";dur=\d+\.\d, work;dur=\d+\.\d', response.headers["server-timing"]
    )


async def test_each_guard_has_its_timing(ag: AsyncGuard, guard: Guard) -> None:
    app = FastAPI()
    ag.install(app)
    other = ag.guard('a "b"\\\r\nc: é;%')

    @app.get("/")
    async def report() -> None:
        for _ in range(3):
            async with guard, other.permit(key="x"):
                pass

    timing = (await get(app)).headers["server-timing"]
    assert re.findall('desc="([^"]*)"', timing) == ["report", "a %22b%22%5C%0D%0Ac: %C3%A9;%"]
    assert timing.count("work;dur=") == 2


async def test_what_comes_after_the_response_is_not_timed(ag: AsyncGuard, guard: Guard) -> None:
    app = FastAPI()
    ag.install(app)
    seen: list[str] = []

    async def later() -> None:
        async with guard:
            seen.append("later")

    @app.get("/")
    async def report(tasks: BackgroundTasks) -> None:
        tasks.add_task(later)

    response = await get(app)
    assert seen == ["later"]
    assert "server-timing" not in response.headers


async def test_no_exchange_is_left_behind(ag: AsyncGuard, guard: Guard) -> None:
    app = guarded_app(ag, guard)
    async with guard.permit(key="around"), client_of(app) as client:
        around = scope_var.get()
        await client.get("/")
        assert scope_var.get() is around
        assert around is not None
        assert around.served is None


# --- the application stays what it was ----------------------------------------------------------


def test_the_lifespan_is_kept_with_its_state(ag: AsyncGuard, guard: Guard) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        async with guard:  # guards work while the application starts
            seen.append("started")
        yield {"color": "blue"}
        async with guard:
            seen.append("stopped")

    app = FastAPI(lifespan=lifespan)
    ag.install(app)

    @app.get("/")
    @guard
    async def report(request: Request) -> str:
        return str(request.state.color)

    with TestClient(app) as client:
        assert client.get("/").json() == "blue"
        assert seen == ["started"]
    assert seen == ["started", "stopped"]


def test_routers_that_come_later_keep_their_lifespans(ag: AsyncGuard) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        seen.append("started")
        yield

    app = FastAPI()
    ag.install(app)
    app.include_router(APIRouter(lifespan=lifespan))
    with TestClient(app):
        assert seen == ["started"]


def test_waiters_are_refused_when_the_application_has_stopped(ag: AsyncGuard) -> None:
    guard = ag.guard("report")

    async def outlive() -> str:
        app = FastAPI()
        ag.install(app)
        async with guard:
            async with app.router.lifespan_context(app):
                waiter = asyncio.create_task(guard.acquire())
                while not (await guard.inspect()).waiting:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            with pytest.raises(Refused) as raised:
                await waiter
        return raised.value.reason

    assert asyncio.run(outlive()) == "draining"


def test_guards_work_with_and_without_a_lifespan_on_many_loops(ag: AsyncGuard, guard: Guard) -> None:
    app = guarded_app(ag, guard)
    tokens: list[int] = []
    for _ in range(3):
        with TestClient(app) as client:
            tokens += [client.get("/").json() for _ in range(3)]
        bare = TestClient(app)
        tokens += [bare.get("/").json() for _ in range(3)]
    assert tokens == sorted(set(tokens))


def test_openapi_stays_the_same(ag: AsyncGuard) -> None:
    guard = ag.guard("report")

    def declare(app: FastAPI, decorate: Callable[[Any], Any]) -> dict[str, Any]:
        @app.get("/report/{account}")
        @decorate
        async def report(account: int, request: Request, verbose: bool = False) -> dict[str, int]:
            """Build a report."""
            raise NotImplementedError

        @app.post("/pages")
        @decorate
        def pages(numbers: list[int]) -> list[int]:
            """Print pages."""
            raise NotImplementedError

        return app.openapi()

    guarded = FastAPI()
    ag.install(guarded)
    assert declare(guarded, guard) == declare(FastAPI(), lambda function: function)
    keyed = declare(FastAPI(), lambda f: guard(key="account")(f) if f.__name__ == "report" else guard(f))
    assert keyed == declare(FastAPI(), lambda function: function)


async def test_an_endpoint_that_is_no_coroutine_function_is_guarded(ag: AsyncGuard) -> None:
    app = FastAPI()
    ag.install(app)
    threads: set[int] = set()
    inside = most = 0

    @app.get("/{number}")
    @ag.guard("report")
    def report(number: int) -> int:
        nonlocal inside, most
        threads.add(threading.get_ident())
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.005)
        inside -= 1
        return number

    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(10)))
    assert [answer.json() for answer in answers] == list(range(10))
    assert most == 1
    assert threading.get_ident() not in threads


async def test_a_key_is_taken_from_the_path(ag: AsyncGuard) -> None:
    app = FastAPI()
    ag.install(app)
    guard = ag.guard("ledger", max_waiting=0)

    @app.get("/{account}")
    @guard(key="account")
    async def ledger(account: int) -> str | None:  # noqa: ARG001
        return current_permit().key

    async with guard.permit(key=7):
        assert_problem(await asyncio.create_task(get(app, "/7")))
        assert (await asyncio.create_task(get(app, "/8"))).json() == "8"


# --- WebSockets --------------------------------------------------------------------------------


def websocket_app(ag: AsyncGuard, guard: Guard) -> FastAPI:
    app = FastAPI()
    ag.install(app)

    @app.websocket("/early")
    async def early(socket: WebSocket) -> None:
        async with guard:
            await socket.accept()
            await socket.send_text("in")
            await socket.close()

    @app.websocket("/late")
    async def late(socket: WebSocket) -> None:
        await socket.accept()
        async with guard:
            await socket.send_text("in")
            await socket.close()

    return app


@pytest.mark.parametrize("path", ["/early", "/late"])
def test_a_websocket_is_served(ag: AsyncGuard, guard: Guard, path: str) -> None:
    client = TestClient(websocket_app(ag, guard))
    with client.websocket_connect(path) as socket:
        assert socket.receive_text() == "in"


def test_a_websocket_is_denied_before_it_is_accepted(ag: AsyncGuard, guard: Guard) -> None:
    client = TestClient(websocket_app(ag, guard))
    taken = guard.acquire_nowait()
    with pytest.raises(WebSocketDenialResponse) as raised, client.websocket_connect("/early"):
        pass
    assert_problem(raised.value)
    asyncio.run(taken.release())


def test_a_websocket_is_closed_after_it_was_accepted(ag: AsyncGuard, guard: Guard) -> None:
    client = TestClient(websocket_app(ag, guard))
    taken = guard.acquire_nowait()
    with client.websocket_connect("/late") as socket, pytest.raises(WebSocketDisconnect) as raised:
        socket.receive_text()
    assert raised.value.code == 1013
    assert raised.value.reason == "full"
    asyncio.run(taken.release())


# --- what can't be installed on ------------------------------------------------------------------


@pytest.mark.parametrize("app", [None, "app:app", object(), JSONResponse])
def test_what_is_no_application_is_refused(ag: AsyncGuard, app: Any) -> None:
    with pytest.raises(TypeError, match="app: expected a FastAPI or Starlette application, got"):
        ag.install(app)


def test_once_is_enough(ag: AsyncGuard) -> None:
    app = FastAPI()
    ag.install(app)
    with pytest.raises(RuntimeError, match="make one, and import it"):
        ag.install(app)


async def test_it_is_too_late_once_the_application_serves(ag: AsyncGuard) -> None:
    app = FastAPI()
    await get(app)
    with pytest.raises(RuntimeError, match="has started already"):
        ag.install(app)


async def test_a_url_that_cannot_be_used_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCGUARD_URL", "sqlte:///tmp/guards.db")
    app = FastAPI()
    AsyncGuard().install(app)
    with pytest.raises(ValueError, match="no backend is known for the scheme 'sqlte'"):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_what_is_wrong_with_a_backend_is_logged_and_not_told_to_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "guards.db").write_bytes(b"no database at all" * 100)
    ag = AsyncGuard(f"sqlite://{tmp_path}/guards.db")
    app = FastAPI()
    ag.install(app)
    app.get("/")(ag.guard("report")(answer))
    with TestClient(app) as client:
        answers = [client.get("/") for _ in range(3)]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["guard"] for answer in answers} == {"report"}
    assert "guards.db" not in answers[0].text
    said = [record.getMessage() for record in caplog.records if record.name == "asyncguard"]
    assert len(said) == 1
    assert said[0].startswith("guarded requests are answered with 503: the file ")
    assert "file is not a database" in said[0]


async def answer() -> str:
    return "done"
