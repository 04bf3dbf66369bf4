"""The application that real servers serve in these tests: guarded in every way, and ready to tell of it."""

# No `from __future__ import annotations`: FastAPI reads the annotations of functions in functions.

import asyncio
import hashlib
import importlib.util
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, get_args

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask

from asyncguard import AsyncGuard
from asyncguard.http.asgi import Receive, Scope, Send
from asyncguard.http.fastapi import path_param, require
from asyncguard.permit import Hold

HAS_EVENTS = importlib.util.find_spec("fastapi.sse") is not None
"""FastAPI knows Server-Sent Events, and generators as endpoints, since 0.135."""

SEND_TIMEOUT = 0.5
MAX_HOLD = 0.3
FLOOD = b"." * 65536

ag = AsyncGuard()
work = ag.guard("work")
brief = ag.guard("brief", max_hold=MAX_HOLD)
impatient = ag.guard("impatient")
by_key = path_param("key")


class Place:
    """What happened under one key, in order; `name` is the caller's, and what is done waits for a step."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.steps = asyncio.Semaphore(0)

    async def perform(self, name: str) -> None:
        self.started.append(name)
        try:
            await self.steps.acquire()
        except BaseException as error:
            self.ended.append(f"{name}: {type(error).__name__}")
            raise
        self.ended.append(name)

    async def chunks(self, name: str, count: int) -> AsyncIterator[bytes]:
        self.started.append(name)
        try:
            for number in range(count):
                await self.steps.acquire()
                yield b"%d\n" % number
        except BaseException as error:
            self.ended.append(f"{name}: {type(error).__name__}")
            raise
        self.ended.append(name)


places: defaultdict[str, Place] = defaultdict(Place)
tasks: set[asyncio.Task[None]] = set()

control = APIRouter()


@control.get("/healthz")
async def healthz() -> None: ...


@control.get("/state/{key}")
async def state(key: str) -> dict[str, Any]:
    pictures = [await guard.inspect(key) for guard in (work, brief, impatient)]
    return {
        "started": places[key].started,
        "ended": places[key].ended,
        "held": sum(picture.in_use for picture in pictures),
        "waiting": sum(picture.waiting for picture in pictures),
    }


@control.get("/go/{key}")
async def go(key: str, times: int = 1) -> None:
    for _ in range(times):
        places[key].steps.release()


@control.get("/watched")
async def watched() -> list[str]:
    """Tell which tasks of ours there are."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("asyncguard")]


def guarded() -> APIRouter:  # noqa: C901, PLR0915
    """Make routes with guards."""
    router = APIRouter()

    # --- plain responses

    @router.get("/work/{key}/{name}")
    @router.head("/work/{key}/{name}")
    @work(key="key")
    async def in_decorator(key: str, name: str) -> str:
        await places[key].perform(name)
        return name

    @router.get("/required/{key}/{name}", dependencies=[Depends(require(work, key=by_key))])
    async def required(key: str, name: str) -> str:
        await places[key].perform(name)
        return name

    @router.get("/impatient/{key}/{name}")
    @impatient(key="key")
    async def estimated(key: str, name: str) -> str:
        await places[key].perform(name)
        return name

    @router.get("/broken/{key}/{name}")
    @work(key="key")
    async def broken(key: str, name: str) -> None:
        await places[key].perform(name)
        raise ZeroDivisionError

    @router.get("/last/{key}/{name}")
    @work(key="key")
    async def last(key: str, name: str) -> str:
        """Work until those who wait are refused, and then a little longer."""
        places[key].started.append(name)
        while not (await work.inspect(key)).refused.get("draining"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        return name

    # --- bodies

    @router.post("/raw/{key}/{name}", dependencies=[Depends(require(work, key=by_key))])
    async def raw(key: str, name: str, request: Request) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        places[key].started.append(name)
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
        places[key].ended.append(name)
        return {"sha256": digest.hexdigest(), "size": size}

    @router.post("/unread/{key}/{name}", dependencies=[Depends(require(work, key=by_key))])
    async def unread(key: str, name: str) -> str:
        await places[key].perform(name)
        return name

    @router.post("/json/{key}/{name}")
    @work(key="key")
    async def parsed(key: str, name: str, content: dict[str, int]) -> dict[str, int]:
        await places[key].perform(name)
        return content

    # --- streams

    def after(key: str, name: str) -> BackgroundTask:
        return BackgroundTask(places[key].perform, f"{name} after")

    for hold in get_args(Hold):

        @router.get(f"/stream/{hold}/{{key}}/{{name}}")
        @work(key="key", hold=hold)
        async def stream(key: str, name: str, is_followed: bool = False) -> StreamingResponse:
            return StreamingResponse(
                places[key].chunks(name, 2), background=after(key, name) if is_followed else None
            )

        @router.get(f"/plain/{hold}/{{key}}/{{name}}")
        @work(key="key", hold=hold)
        async def plain(key: str, name: str, is_followed: bool = False) -> JSONResponse:
            places[key].started.append(name)
            return JSONResponse(name, background=after(key, name) if is_followed else None)

        @router.get(
            f"/required-stream/{hold}/{{key}}/{{name}}",
            dependencies=[Depends(require(work, key=by_key, hold=hold))],
        )
        async def required_stream(key: str, name: str, is_followed: bool = False) -> StreamingResponse:
            return StreamingResponse(
                places[key].chunks(name, 2), background=after(key, name) if is_followed else None
            )

    @router.get("/flood/{key}/{name}")
    @work(key="key")
    async def flood(key: str, name: str) -> StreamingResponse:
        async def pour() -> AsyncIterator[bytes]:
            places[key].started.append(name)
            try:
                for _ in range(4096):  # 256 MiB, more than any socket takes
                    yield FLOOD
            finally:
                places[key].ended.append(name)

        return StreamingResponse(pour())

    @router.get("/file/{key}/{name}")
    @work(key="key")
    async def file(key: str, name: str) -> FileResponse:
        places[key].started.append(name)
        return FileResponse(os.environ["SERVED_FILE"])

    @router.get("/broken-stream/{key}/{name}")
    @work(key="key")
    async def broken_stream(key: str, name: str) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in places[key].chunks(name, 1):
                yield chunk
            raise ZeroDivisionError

        return StreamingResponse(chunks())

    @router.get("/brief/{key}/{name}")
    @brief(key="key")
    async def brief_stream(key: str, name: str) -> StreamingResponse:
        return StreamingResponse(places[key].chunks(name, 1000))

    if HAS_EVENTS:

        @router.get("/lines/{key}/{name}", dependencies=[Depends(require(work, key=by_key))])
        async def lines(key: str, name: str) -> AsyncIterator[dict[str, str]]:
            async for chunk in places[key].chunks(name, 2):
                yield {"chunk": chunk.decode()}

        @router.get(
            "/events/{key}/{name}",
            response_class=importlib.import_module("fastapi.sse").EventSourceResponse,
            dependencies=[Depends(require(work, key=by_key))],
        )
        async def events(key: str, name: str) -> AsyncIterator[dict[str, str]]:
            async for chunk in places[key].chunks(name, 2):
                yield {"chunk": chunk.decode()}

    # --- after the response

    async def afterwards(key: str, name: str) -> None:
        async with work.permit(key=key):
            await places[key].perform(name)

    @router.get("/background/{key}/{name}")
    async def background(key: str, name: str, tasks: BackgroundTasks) -> str:
        tasks.add_task(afterwards, key, name)
        return name

    @router.get("/detached/{key}/{name}")
    async def detached(key: str, name: str) -> str:
        task = asyncio.create_task(afterwards(key, name))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return name

    # --- WebSockets

    async def echo(socket: WebSocket, key: str, name: str) -> None:
        places[key].started.append(name)
        try:
            await socket.send_text(f"{name} is in")
            async for text in socket.iter_text():
                await socket.send_text(text)
        except WebSocketDisconnect:  # Starlette's for what servers raise of a client that left
            pass
        places[key].ended.append(name)

    @router.websocket("/before/{key}/{name}")
    async def unaccepted(socket: WebSocket, key: str, name: str, patience: float | None = None) -> None:
        async with work.permit(key=key, timeout=patience):
            await socket.accept()
            await echo(socket, key, name)

    @router.websocket("/after/{key}/{name}")
    async def accepted(socket: WebSocket, key: str, name: str, patience: float | None = None) -> None:
        await socket.accept()
        async with work.permit(key=key, timeout=patience):
            await echo(socket, key, name)

    return router


def under_middleware() -> FastAPI:
    """Make an application whose guards are in another that is mounted, under middleware of all kinds."""
    app, mounted = FastAPI(), FastAPI()
    mounted.include_router(guarded())
    app.mount("/layered", mounted)
    app.add_middleware(GZipMiddleware)

    @app.middleware("http")
    async def through(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request)

    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    ag.install(app, send_timeout=SEND_TIMEOUT)
    return app


main = FastAPI()
main.include_router(control)
main.include_router(guarded())
ag.install(main, send_timeout=SEND_TIMEOUT)

cancelling = FastAPI()
cancelling.include_router(guarded(), prefix="/cancelling")
ag.install(cancelling, send_timeout=SEND_TIMEOUT, on_disconnect="cancel")

layered = under_middleware()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope.get("path", "")
    chosen = (
        cancelling if path.startswith("/cancelling") else layered if path.startswith("/layered") else main
    )
    await chosen(scope, receive, send)
