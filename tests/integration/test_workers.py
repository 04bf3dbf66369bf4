"""The service in several worker processes: their work doesn't overlap, wherever the guard's permits are."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

import pytest

from .servers import ROOT, WORKERS, connections, send_in_order

if TYPE_CHECKING:
    from pathlib import Path

    from .servers import Server, Servers

WORK = 0.1
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/guards.db"
    return str(request.getfixturevalue("redis_url"))


@pytest.fixture(params=["asyncguard", *WORKERS])
def workers(request: pytest.FixtureRequest, servers: Servers, url: str) -> Server:
    if request.param == "gunicorn":
        pytest.importorskip("uvicorn_worker")
    settings = {"ASYNCGUARD_URL": url, "ASYNCGUARD_WORK_SECONDS": str(WORK)}
    if request.param == "asyncguard":
        return servers.start("asyncguard", "serve", "--port=0", "--workers=4", cwd=ROOT, **settings)
    return servers.start_workers(request.param, **settings)


async def test_the_work_of_four_workers_does_not_overlap(workers: Server) -> None:
    await asyncio.sleep(2)  # until all of them are there
    async with connections(workers, 21) as (control, *callers):
        began = time.perf_counter()
        await send_in_order(callers, control, "/test")
        answers = await asyncio.gather(*(caller.read() for caller in callers))
    assert [answer.status for answer in answers] == [200] * 20
    took = max(answer.at for answer in answers) - began
    assert 20 * WORK <= took < 20 * WORK + 0.4
    ends = sorted(answer.at for answer in answers)
    assert min(after - before for before, after in itertools.pairwise(ends)) > WORK / 2
