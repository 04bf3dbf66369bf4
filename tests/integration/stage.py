"""One key of the application in `served.py` on a server, and those who call there."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .servers import Connection, Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SOON = 5.0
"""Seconds until which what should happen at once has happened, however busy the machine is."""


@dataclass
class Mishaps:
    """Texts of errors that belong to a test, and so to the log of the server."""

    sure: list[str] = field(default_factory=list)
    possible: list[str] = field(default_factory=list)


@dataclass
class Stage:
    kind: str
    server: Server
    key: str
    control: Connection
    mishaps: Mishaps
    prefix: str = ""
    callers: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def caller(self, **options: Any) -> Connection:
        """Connect, until the test ends."""
        connection = await Connection.open(self.server, **options)
        self.callers.push_async_callback(connection.close)
        return connection

    def path(self, path: str, name: str) -> str:
        return f"{self.prefix}/{path}/{self.key}/{name}"

    async def call(self, path: str, name: str, **request: Any) -> Connection:
        """Send a request on a connection of its own."""
        caller = await self.caller()
        await caller.send(self.path(path, name), **request)
        return caller

    async def hold(self, name: str = "holder", path: str = "work") -> Connection:
        """Have somebody take the permit."""
        before = (await self.state())["started"]
        caller = await self.call(path, name)
        await self.until(started=[*before, name], held=1)
        return caller

    async def wait(self, path: str, name: str, *, waiting: int = 1, **request: Any) -> Connection:
        """Have somebody wait; `waiting` says how many then do."""
        caller = await self.call(path, name, **request)
        await self.until(waiting=waiting)
        return caller

    async def go(self, times: int = 1) -> None:
        """Have so many steps be done."""
        await self.control.get(f"/go/{self.key}?times={times}")

    async def state(self) -> dict[str, Any]:
        state: dict[str, Any] = (await self.control.get(f"/state/{self.key}")).body
        return state

    async def until(self, **expected: Any) -> dict[str, Any]:
        """Wait until the state is this."""

        async def look() -> dict[str, Any]:
            state = await self.state()
            return {name: state[name] for name in expected}

        await eventually(look, expected)
        return await self.state()

    async def until_idle(self) -> None:
        """Wait until nothing is left of what was asked."""
        await self.until(held=0, waiting=0)

        async def watched() -> Any:
            return (await self.control.get("/watched")).body

        await eventually(watched, [])


async def eventually(look: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Look again and again, until what is seen is as expected."""
    deadline = time.monotonic() + SOON
    while (seen := await look()) != expected:
        assert time.monotonic() < deadline, f"{seen} is still not {expected}"
        await asyncio.sleep(0.005)
