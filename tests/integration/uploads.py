"""Applications that take large uploads under a guard, for a real server to serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from asyncguard import AsyncGuard
from asyncguard.http.fastapi import GuardMiddleware

if TYPE_CHECKING:
    from asyncguard.http.asgi import ASGIApp, Message, Receive, Scope, Send

ag = AsyncGuard()
guard = ag.guard("upload", max_waiting=0)
patient = ag.guard("patient", max_wait=0.3)
read = 0
"""Bytes of bodies that the server was asked for."""


class Counted:
    """Counts what is read of bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted() -> Message:
            global read  # noqa: PLW0603
            message = await receive()
            read += len(message.get("body", b""))
            return message

        await self.app(scope, counted, send)


async def upload(request: Request) -> JSONResponse:
    return JSONResponse(len(await request.body()))


async def state(request: Request) -> JSONResponse:
    return JSONResponse(
        {"read": read, "in_use": (await guard.inspect()).in_use + (await patient.inspect()).in_use}
    )


routes: list[BaseRoute] = [
    Route("/upload", upload, methods=["POST"]),
    Route("/patient", upload, methods=["POST"]),
    Route("/state", state),
]
app = FastAPI(routes=routes)
app.add_middleware(GuardMiddleware, guard=guard, match="/upload")
app.add_middleware(GuardMiddleware, guard=patient, match="/patient")
ag.install(app)
installed = Counted(app)
alone = Counted(
    GuardMiddleware(
        GuardMiddleware(Starlette(routes=routes), guard, match="/upload"), patient, match="/patient"
    )
)
