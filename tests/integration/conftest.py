from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from .servers import SERVERS, Connection, Server, Servers
from .stage import Mishaps, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # whose time doesn't jump: what runs here is not in this process


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    started = Servers(tmp_path)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="session", params=SERVERS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Server]]:
    """Have a server of each kind serve the application of these tests."""
    logs = tmp_path_factory.mktemp(request.param)
    (logs / "large").write_bytes(bytes(1024) * 16384)
    started = Servers(logs)
    try:
        # Hypercorn never ends a connection whose client left in the middle of a body that nobody read.
        more = ["--graceful-timeout=1"] if request.param == "hypercorn" else []
        yield request.param, started.start_served(request.param, *more, SERVED_FILE=str(logs / "large"))
    finally:
        started.close()


@pytest.fixture
def mishaps(served: tuple[str, Server]) -> Iterator[Mishaps]:
    """See that nothing in the server's log says that something went wrong, but for what a test expects."""
    server = served[1]
    before = len(server.log.read_text())
    expected = Mishaps()
    yield expected
    logged = server.mishaps(before)
    for text in expected.sure:
        # In the older of Starlette what goes wrong in a stream is in a group, of which granian logs no more.
        assert text in logged or "ExceptionGroup" in logged
    if not expected.sure and not any(text in logged for text in expected.possible):
        assert not logged, logged


@pytest.fixture
async def stage(served: tuple[str, Server], mishaps: Mishaps) -> AsyncIterator[Stage]:
    kind, server = served
    stage = Stage(kind, server, uuid.uuid4().hex, await Connection.open(server), mishaps)
    try:
        yield stage
        await stage.callers.aclose()
        await stage.until_idle()
    finally:
        await stage.control.close()
