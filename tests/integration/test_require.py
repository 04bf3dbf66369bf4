"""`require`: a guard as a dependency of routes, routers and applications."""

# FastAPI reads the annotations of endpoints and dependencies.
# ruff: noqa: TC003

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Path,
    Request,
    Response,
    WebSocket,
)
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse

from asyncguard import AsyncGuard, Guard, Permit, QueueFull, Refused, WouldDeadlock, current_permit
from asyncguard.http.fastapi import NoKey, header, path_param, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.http.asgi import Message

ag = AsyncGuard()
report = ag.guard("report", max_waiting=0)
"""At module level, as annotations of endpoints are looked up there."""
Held = Annotated[Permit, Depends(require(report))]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for guard in ag.guards.values():
        picture = asyncio.run(guard.inspect())
        assert (picture.in_use, picture.waiting) == (0, 0)


def installed(**settings: Any) -> FastAPI:
    app = FastAPI(**settings)
    ag.install(app)
    return app


async def ask(app: FastAPI, path: str = "/", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path, headers=headers)


async def refused(app: FastAPI, path: str = "/", guard: Guard = report, **headers: str) -> httpx.Response:
    async with guard:
        return await asyncio.create_task(ask(app, path, **headers))


async def in_use() -> int:
    return (await report.inspect()).in_use


# --- where it stands ---------------------------------------------------------------------------


def on_a_parameter() -> FastAPI:
    app = installed()

    @app.get("/")
    async def work(permit: Held) -> int:
        assert permit.token == current_permit().token
        return await in_use()

    return app


def on_a_route() -> FastAPI:
    app = installed()

    @app.get("/", dependencies=[Depends(require(report))])
    async def work() -> int:
        return await in_use()

    return app


def on_a_def() -> FastAPI:
    app = installed()

    @app.get("/")
    def work(permit: Held) -> int:
        with pytest.raises(LookupError, match="hand the permit to"):
            current_permit()  # the block is the task's, and this is a thread
        return int(permit.held >= 0)

    return app


def on_a_router() -> FastAPI:
    app, router = installed(), APIRouter(dependencies=[Depends(require(report))])

    @router.get("/")
    async def work() -> int:
        return await in_use()

    app.include_router(router)
    return app


def where_it_is_included() -> FastAPI:
    app, router, inner = installed(), APIRouter(), APIRouter()

    @inner.get("/")
    async def work() -> int:
        return await in_use()

    router.include_router(inner)
    app.include_router(router, dependencies=[Depends(require(report))])
    return app


def on_an_application() -> FastAPI:
    app = installed(dependencies=[Depends(require(report))])

    @app.get("/")
    async def work() -> int:
        return await in_use()

    return app


def everywhere_at_once() -> FastAPI:
    """Equal ones are one dependency of a request, and take one permit."""
    app = installed(dependencies=[Depends(require(report))])
    router = APIRouter(dependencies=[Depends(require(report, hold="auto"))])

    @router.get("/", dependencies=[Depends(require(report))])
    async def work(permit: Held, again: Held) -> int:
        assert permit is again
        return await in_use()

    app.include_router(router)
    return app


@pytest.mark.parametrize(
    "make",
    [
        on_a_parameter,
        on_a_route,
        on_a_def,
        on_a_router,
        where_it_is_included,
        on_an_application,
        everywhere_at_once,
    ],
)
async def test_it_holds_a_permit_wherever_it_stands(make: Callable[[], FastAPI]) -> None:
    app = make()
    answer = await ask(app)
    assert answer.json() == 1
    assert answer.headers["server-timing"].startswith('queue;desc="report"')
    refusal = await refused(app)
    assert refusal.status_code == 503
    assert refusal.json()["reason"] == "full"


def test_those_that_differ_are_not_one() -> None:
    assert require(report) == require(report)
    assert hash(require(report, timeout=3, label="x")) == hash(require(report, label="x", timeout=3))
    for other in (
        require(ag.guard("other")),
        require(report, hold="body"),
        require(report, key=path_param("account")),
        require(report, timeout=3),
    ):
        assert other != require(report)


async def test_a_test_may_put_another_in_its_place() -> None:
    app = on_a_route()
    app.dependency_overrides[require(report)] = lambda: None
    assert (await ask(app)).json() == 0


@pytest.mark.parametrize(
    "wrong", [{"hold": "forever"}, {"permits": 2}, {"timeout": -1}, {"label": "x" * 513}]
)
def test_what_is_wrong_is_said_at_once(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
        require(report, **wrong)


async def test_openapi_does_not_show_it() -> None:
    def declare(app: FastAPI, *dependencies: Any) -> dict[str, Any]:
        @app.get("/{account}", dependencies=[*dependencies])
        async def work(account: int, verbose: bool = False) -> dict[str, int]:
            raise NotImplementedError

        return app.openapi()

    held = Depends(require(report, key=path_param("account"), tenant=header("x-api-key")))
    assert declare(FastAPI(), held) == declare(FastAPI())
    assert on_a_parameter().openapi()["paths"] == on_a_route().openapi()["paths"]


def test_a_decorated_endpoint_looks_the_same() -> None:
    def declare(app: FastAPI, decorate: Callable[[Any], Any]) -> dict[str, Any]:
        @app.post("/{account}", status_code=201, tags=["accounts"])
        @decorate
        async def work(
            account: Annotated[int, Path(ge=1)],
            session: Annotated[str, Depends(session)],
            tasks: BackgroundTasks,
            response: Response,
            amounts: Annotated[list[float], Body(embed=True)],
            agent: Annotated[str, Header()] = "",
        ) -> dict[str, list[float]]:
            """Do the work.

            All of it.
            """
            response.headers["x-agent"] = agent
            return {session: amounts}

        return app.openapi()

    app = installed()
    assert declare(app, report) == declare(FastAPI(), lambda function: function)
    client = TestClient(app)
    answered = client.post("/7", json={"amounts": [1, 2]}, headers={"agent": "smith"})
    assert (answered.status_code, answered.json()) == (201, {"session": [1, 2]})
    assert answered.headers["x-agent"] == "smith"
    assert client.post("/0", json={"amounts": []}).status_code == 422


# --- its place among dependencies --------------------------------------------------------------

opened: list[str] = []


async def session() -> AsyncIterator[str]:
    opened.append(f"opened with {await in_use()}")
    try:
        yield "session"
    except Exception as error:
        opened.append(f"saw {type(error).__name__}")
        raise
    finally:
        opened.append(f"closed with {await in_use()}")


def with_a_session() -> FastAPI:
    app = installed()

    @app.get("/", dependencies=[Depends(require(report))])
    async def work(session: Annotated[str, Depends(session)], fail: str = "") -> str:
        if fail == "http":
            raise HTTPException(418, "teapot")
        if fail:
            raise ValueError(fail)
        return session

    return app


async def test_those_after_it_open_within_it() -> None:
    opened.clear()
    app = with_a_session()
    await refused(app)
    assert opened == []
    assert (await ask(app)).json() == "session"
    assert opened[0] == "opened with 1"


async def test_an_error_of_the_handler_passes_through() -> None:
    opened.clear()
    app = with_a_session()
    assert (await ask(app, "/?fail=http")).status_code == 418
    assert opened == ["opened with 1", "saw HTTPException", "closed with 1"]
    with pytest.raises(ValueError, match="mistake"):
        await ask(app, "/?fail=mistake")
    assert await in_use() == 0


async def test_a_permit_that_is_lost_is_answered() -> None:
    app = installed()
    short = ag.guard("short", max_hold=0.01)

    @app.get("/", dependencies=[Depends(require(short))])
    async def work(session: Annotated[str, Depends(session)]) -> None:
        await asyncio.Event().wait()

    answer = await ask(app)
    assert answer.status_code == 503
    assert answer.json()["detail"] == "The work took longer than it may, and was cancelled."


async def test_a_handler_of_the_application_sees_the_refusal() -> None:
    app = on_a_route()

    @app.exception_handler(Refused)
    async def answer(_: Request, error: Refused) -> JSONResponse:
        return busy(error)

    assert (await refused(app)).json() == {"busy": "report", "status": 503}


def busy(error: Refused) -> JSONResponse:
    return JSONResponse({"busy": error.guard, "status": error.status}, 418)


# --- whose it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "status"),
    [
        ({"key": header("x-api-key")}, 429),
        ({"tenant": header("x-api-key")}, 429),
        ({"key": path_param("account")}, 503),
        ({"key": lambda _: "alice"}, 503),
    ],
)
async def test_429_is_for_callers_that_are_known(demand: Any, status: int) -> None:
    app = installed()
    full = ag.guard("full", max_waiting=0)

    @app.get("/{account}", dependencies=[Depends(require(full, **demand))])
    async def work() -> None: ...

    key = "alice" if "key" in demand else None
    async with full.permit(key=key):
        answer = await asyncio.create_task(ask(app, "/alice", **{"x-api-key": "alice"}))
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["retry-after"]
    assert (await ask(app, "/alice", **{"x-api-key": "alice"})).status_code == 200


async def test_nobody_is_blamed_who_is_not_known() -> None:
    app = installed()
    full = ag.guard("full", max_waiting=0)

    @app.get("/", dependencies=[Depends(require(full, key=header("x-api-key"), tenant=lambda _: None))])
    async def work() -> None: ...

    async with full.permit(key="none"):
        assert (await asyncio.create_task(ask(app))).status_code == 503


async def test_a_known_caller_is_not_blamed_for_what_others_do() -> None:
    app = installed()
    paused = ag.guard("paused", max_keys=1)

    @app.get("/", dependencies=[Depends(require(paused, key=header("x-api-key")))])
    async def work() -> None: ...

    async with paused.permit(key="bob"):
        answer = await asyncio.create_task(ask(app, **{"x-api-key": "alice"}))
    assert answer.status_code == 503
    assert answer.json()["reason"] == "too_many_keys"


async def test_a_guard_within_is_not_answered_for() -> None:
    """That the outer guard knows the caller says nothing of who fills the inner one."""
    app = installed()
    outer = ag.guard("outer")

    @app.get("/", dependencies=[Depends(require(outer, key=header("x-api-key")))])
    async def work() -> None:
        async with report:
            pass

    assert (await refused(app)).status_code == 503


async def test_to_take_one_guard_twice_is_a_mistake_in_the_code() -> None:
    app = installed(dependencies=[Depends(require(report))])

    @app.get("/")
    @report
    async def work() -> None: ...

    with pytest.raises(WouldDeadlock):
        await ask(app)


# --- without install ---------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "error"), [(None, QueueFull), (lambda _: None, NoKey)])
async def test_without_install_the_refusal_says_what_is_missing(key: Any, error: type[Exception]) -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(require(report, key=key))])
    async def work() -> None: ...

    with pytest.raises(error) as raised:
        await refused(app)
    assert any("ag.install(app)" in note for note in raised.value.__notes__)


async def test_without_install_the_permit_is_held_all_the_same() -> None:
    app = FastAPI()

    @app.get("/")
    async def work(permit: Held) -> int:
        return await in_use()

    assert (await ask(app)).json() == 1


async def test_with_install_there_is_nothing_to_note() -> None:
    app = on_a_route()
    seen: list[Refused] = []

    @app.exception_handler(Refused)
    async def answer(_: Request, error: Refused) -> JSONResponse:
        seen.append(error)
        return busy(error)

    await refused(app)
    assert not hasattr(seen[0], "__notes__")


# --- what outlives the handler -----------------------------------------------------------------


async def used_while(app: FastAPI, path: str = "/") -> list[tuple[str, int]]:
    """Ask, and note how many permits are in use when each message of the response is sent."""
    seen: list[tuple[str, int]] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start" or message.get("body"):
            seen.append((message["type"].rpartition(".")[2], await in_use()))

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [],
        "query_string": b"",
        "client": None,
        "server": None,
        "scheme": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
    }
    await app(scope, receive, send)
    return seen


async def test_a_plain_answer_is_sent_when_the_permit_has_passed_on() -> None:
    assert await used_while(on_a_parameter()) == [("start", 0), ("body", 0)]


async def test_a_stream_holds_it_until_its_last_chunk() -> None:
    app = installed()

    @app.get("/{hold}", dependencies=[Depends(require(report))])
    async def work() -> StreamingResponse:
        return StreamingResponse(chunk for chunk in ("one", "two"))

    @app.get("/by/handler", dependencies=[Depends(require(report, hold="handler"))])
    async def short() -> StreamingResponse:
        return StreamingResponse(chunk for chunk in ("one", "two"))

    assert await used_while(app, "/auto") == [("start", 1), ("body", 1), ("body", 1)]
    assert await used_while(app, "/by/handler") == [("start", 0), ("body", 0), ("body", 0)]


async def test_server_sent_events_hold_it() -> None:
    sse = pytest.importorskip("fastapi.sse")
    app = installed()

    @app.get("/", response_class=sse.EventSourceResponse)
    async def work(permit: Held) -> AsyncIterator[int]:
        for number in range(2):
            assert permit.held >= 0
            yield number

    seen = await used_while(app)
    assert [kind for kind, _ in seen] == ["start", "body", "body"]
    assert {used for _, used in seen} == {1}
    refusal = await refused(app)
    assert refusal.headers["content-type"] == "application/problem+json"


async def test_lines_of_json_hold_it() -> None:
    pytest.importorskip("fastapi.sse")  # which came with them
    app = installed()

    @app.get("/", dependencies=[Depends(require(report))])
    async def work() -> AsyncIterator[dict[str, int]]:
        for number in range(2):
            yield {"number": number}

    @app.get("/def", dependencies=[Depends(require(report))])
    def plain() -> Iterator[dict[str, int]]:
        yield {"number": 1}

    for path in ("/", "/def"):
        assert {used for _, used in await used_while(app, path)} == {1}
        assert (await ask(app, path)).headers["content-type"] == "application/jsonl"
        assert (await refused(app, path)).status_code == 503


@pytest.mark.parametrize(("hold", "used"), [("auto", 0), ("body", 0), ("background", 1)])
async def test_background_tasks_run_under_it_if_asked(hold: Any, used: int) -> None:
    app = installed()
    seen: list[int] = []

    async def later() -> None:
        seen.append(await in_use())

    @app.get("/", dependencies=[Depends(require(report, hold=hold))])
    async def work(tasks: BackgroundTasks) -> None:
        tasks.add_task(later)

    assert (await ask(app)).status_code == 200
    assert seen == [used]


# --- WebSockets --------------------------------------------------------------------------------


def test_a_websocket_holds_it_for_its_session() -> None:
    app = installed()

    @app.websocket("/")
    async def serve(socket: WebSocket, permit: Held) -> None:
        await socket.accept()
        await socket.send_json(await in_use())
        assert await socket.receive_text() == "bye"
        await socket.close()

    with TestClient(app) as client:
        with client.websocket_connect("/") as socket:
            assert socket.receive_json() == 1
            with pytest.raises(WebSocketDenialResponse) as raised, client.websocket_connect("/"):
                pass
            assert raised.value.status_code == 503
            assert raised.value.json()["reason"] == "full"
            socket.send_text("bye")
        with client.websocket_connect("/") as socket:
            assert socket.receive_json() == 1
            socket.send_text("bye")


# --- def handlers ------------------------------------------------------------------------------


async def test_defs_do_not_overlap() -> None:
    app = installed()
    inside = most = 0

    @app.get("/{number}", dependencies=[Depends(require(ag.guard("defs")))])
    def work(number: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.005)
        inside -= 1
        return number

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(10)))
    assert [answer.json() for answer in answers] == list(range(10))
    assert most == 1


# --- mounted applications ----------------------------------------------------------------------


def mounted(outer: FastAPI, inner: FastAPI) -> FastAPI:
    @inner.get("/work", dependencies=[Depends(require(report))])
    async def work() -> int:
        return await in_use()

    outer.mount("/inner", inner)
    return outer


async def test_an_application_that_is_mounted_is_served_by_the_outermost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = mounted(installed(), FastAPI())
    assert (await ask(app, "/inner/work")).json() == 1
    assert (await refused(app, "/inner/work")).json()["reason"] == "full"
    assert caplog.records == []


async def test_operators_are_told_that_nobody_runs_a_mounted_lifespan(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = mounted(FastAPI(), installed())
    for _ in range(3):
        assert (await refused(app, "/inner/work")).json()["reason"] == "full"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "mounted at /inner" in record.getMessage()
    assert "call install() for the outermost application" in record.getMessage()


def test_they_are_not_where_the_outermost_runs_one(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(mounted(installed(), installed())) as client:
        assert client.get("/inner/work").json() == 1
    with TestClient(installed(), root_path="/api") as client:
        client.get("/")
    assert [record for record in caplog.records if record.name == "asyncguard"] == []
