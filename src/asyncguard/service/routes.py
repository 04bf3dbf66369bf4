"""What the service answers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from asyncguard.http.problems import RESPONSES

if TYPE_CHECKING:
    from asyncguard.guard import Guard
    from asyncguard.service.settings import Settings


class Worked(BaseModel):
    """The guarded work is done."""

    elapsed: float = Field(
        description="Seconds that the work itself took, however long the request queued for it.",
        examples=[3.0012345],
    )


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"] = "ok"


async def work(seconds: float) -> float:
    """Stand in for what must not overlap, and tell the seconds that it took."""
    started = time.perf_counter()
    elapsed = 0.0
    while elapsed < seconds:  # some event loops wake a millisecond early
        await asyncio.sleep(seconds - elapsed)
        elapsed = time.perf_counter() - started
    return elapsed


def make_routes(guard: Guard, settings: Settings) -> APIRouter:
    """Make the routes of a service whose work runs under a guard."""
    routes = APIRouter()

    @routes.get("/test", summary="Run the guarded work", responses=RESPONSES)
    @guard
    async def test() -> Worked:
        """Wait for those who came before, run the work, and tell how long it took.

        How long the request queued is in the `Server-Timing` header.
        """
        return Worked(elapsed=await work(settings.work_seconds))

    @routes.get("/healthz", summary="Tell whether the service answers")
    async def healthz() -> Health:
        """Answer at once, whatever work runs."""
        return Health()

    return routes
