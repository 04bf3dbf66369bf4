"""The applications that the HTTP benchmarks serve: one way to guard work each, named by VARIANT."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI

from asyncguard import AsyncGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS = float(os.environ.get("SECONDS", "0"))
app = FastAPI()


async def work() -> dict[str, float]:
    if SECONDS:
        await asyncio.sleep(SECONDS)
    return {"elapsed": SECONDS}


async def turn() -> AsyncIterator[None]:
    yield


match os.environ["VARIANT"]:
    case "unguarded":

        @app.get("/")
        async def unguarded() -> dict[str, float]:
            return await work()

    case "asyncio.Lock":
        lock = asyncio.Lock()

        @app.get("/")
        async def locked() -> dict[str, float]:
            async with lock:
                return await work()

    case "Depends(max_concurrency)":

        @app.get("/")
        async def limited(_: Annotated[None, Depends(turn, max_concurrency=1)]) -> dict[str, float]:
            return await work()

    case "AsyncGuard":
        ag = AsyncGuard()
        ag.install(app)

        @app.get("/")
        @ag.guard("work", max_wait=0.8)
        async def guarded() -> dict[str, float]:
            return await work()

    case "AsyncGuard, Prefer":  # as it comes; its clients say for how long they wait
        ag = AsyncGuard()
        ag.install(app)

        @app.get("/")
        @ag.guard("work")
        async def preferred() -> dict[str, float]:
            return await work()
