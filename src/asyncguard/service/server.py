"""The server that `asyncguard serve` runs: uvicorn, which drains the queue when it is told to stop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, final

import uvicorn

from asyncguard.service.app import create_app

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from asyncguard import AsyncGuard
    from asyncguard.service.settings import Settings


def serve(settings: Settings, *, host: str, port: int, reload: bool, grace: int) -> int:
    """Serve until a signal, and return the exit code; work that runs then has `grace` seconds to end."""
    if reload:  # the application is made in another process, time and again
        uvicorn.run(
            "asyncguard.service.app:app", host=host, port=port, reload=True, timeout_graceful_shutdown=grace
        )
        return 0
    app = create_app(settings)
    config = uvicorn.Config(app, host=host, port=port, timeout_graceful_shutdown=grace)
    server = DrainingServer(config, app.state.asyncguard)
    server.run()
    return 0 if server.started else 1


@final
class DrainingServer(uvicorn.Server):
    """A server that refuses who waits for a guard as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, ag: AsyncGuard) -> None:
        super().__init__(config)
        self._ag = ag
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal to stop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ag.drain)
        super().handle_exit(sig, frame)
