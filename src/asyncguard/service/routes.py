"""What the service answers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from asyncguard.http.problems import RESPONSES, pages

if TYPE_CHECKING:
    from asyncguard.guard import Guard
    from asyncguard.service.settings import Settings


PROBLEMS: Final = "/problems/"
"""Where the pages on types of problems are; an absolute path, so that it is right at every address."""
_PAGES: Final = pages()


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

    @routes.get(
        PROBLEMS + "{name}",
        summary="Explain a type of problem",
        response_class=PlainTextResponse,
        responses={404: {"description": "No problem goes by that name."}},
    )
    async def problem_page(name: str) -> PlainTextResponse:
        """Say what happened, and what the client and the operator can do about it."""
        page = _PAGES.get(name)
        if page is None:
            return PlainTextResponse(f"No problem goes by that name; there are: {', '.join(_PAGES)}.\n", 404)
        return PlainTextResponse(page)

    return routes
