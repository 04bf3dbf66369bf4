"""The service as an application: `uvicorn asyncguard.service.app:app`."""

from __future__ import annotations

from fastapi import FastAPI

from asyncguard import AsyncGuard, __version__
from asyncguard.service.routes import PROBLEMS, make_routes
from asyncguard.service.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the service; its guard is that of all services, and all `asyncguard run`, on the same file.

    Raises:
        ValueError: without `settings` they are read from the environment, and one can't be used.
    """
    settings = settings or Settings.from_environ()
    ag = AsyncGuard(settings.url)
    guard = ag.guard("work", limit=1, max_waiting=1000, max_wait=None)
    app = FastAPI(
        title="AsyncGuard",
        version=__version__,
        description="Work that runs one at a time, in the order of arrival, with a bounded queue.",
    )
    app.state.asyncguard = ag
    ag.install(app, problems=PROBLEMS)
    app.include_router(make_routes(guard, settings))
    return app


app = create_app()
