"""The server that `asyncguard serve` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

from asyncguard.service.app import create_app

if TYPE_CHECKING:
    from asyncguard.service.settings import Settings


def serve(settings: Settings, *, host: str, port: int, reload: bool, workers: int, grace: int) -> int:
    """Serve until a signal, and return the exit code; work that runs then has `grace` seconds to end."""
    if reload or workers > 1:  # the application is made in other processes
        uvicorn.run(
            "asyncguard.service.app:app",
            host=host,
            port=port,
            reload=reload,
            workers=workers,
            timeout_graceful_shutdown=grace,
        )
        return 0
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), host=host, port=port, timeout_graceful_shutdown=grace)
    )
    server.run()
    return 0 if server.started else 1
