"""Guards under a FastAPI or Starlette application."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asyncguard.http.middleware import ExchangeMiddleware
from asyncguard.http.problems import RESPONSES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncguard.hub import AsyncGuard

__all__ = ["RESPONSES", "install"]

_NEEDED = ("add_middleware", "user_middleware", "router.lifespan_context")


def install(ag: AsyncGuard, app: Any) -> None:
    """Serve guards under an application: `AsyncGuard.install` says what that means.

    Raises:
        TypeError: it isn't a FastAPI or Starlette application.
        RuntimeError: it was installed before, or the application has started.
    """
    if not all(_has(app, name) for name in _NEEDED):
        raise TypeError(f"app: expected a FastAPI or Starlette application, got {app!r}")
    if any(middleware.cls is ExchangeMiddleware for middleware in app.user_middleware):
        raise RuntimeError("install() was called before for this application: once is enough")
    if getattr(app, "middleware_stack", None) is not None:
        raise RuntimeError("the application has started already: call install(app) before it serves")
    # Twice: inside the application's other middleware, so that it sees a refusal as a response like any
    # other (and CORS can add its headers), and outside, for the guards that are taken in middleware.
    app.add_middleware(ExchangeMiddleware)
    app.user_middleware.append(app.user_middleware[0])
    own_lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with ag, own_lifespan(app) as state:
            yield state

    app.router.lifespan_context = lifespan


def _has(app: object, path: str) -> bool:
    value = app
    for name in path.split("."):
        value = getattr(value, name, None)
    return value is not None
