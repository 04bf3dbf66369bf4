"""Metrics scraped from a real server, while work runs there and more waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from pathlib import Path

    from .servers import Server, Servers

APP = """
import asyncio

from asyncguard import AsyncGuard
from asyncguard.observability.prometheus import metrics_app
from fastapi import FastAPI
from starlette.routing import Route

ag = AsyncGuard("memory:")
app = FastAPI()
ag.install(app)
app.routes.append(Route("/metrics", metrics_app(ag)))
over = asyncio.Event()


@app.get("/report")
@ag.guard("report", max_waiting=1)
async def build_report() -> str:
    await over.wait()
    return "done"


@app.get("/finish")
async def finish() -> None:
    over.set()
"""


@pytest.fixture
def shop(servers: Servers, tmp_path: Path) -> Server:
    (tmp_path / "shop.py").write_text(APP)
    return servers.start("uvicorn", "--host", "127.0.0.1", "--port", "0", "shop:app", cwd=tmp_path)


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert not response.history
    return {
        sample.name.removeprefix("asyncguard_") + sample.labels.get("reason", ""): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.labels["guard"] == "report"
    }


async def test_a_scrape_tells_who_works_and_who_waits(shop: Server) -> None:
    async with httpx.AsyncClient(base_url=shop.url, timeout=20) as client:
        before = await scrape(client)
        reports = [asyncio.create_task(client.get("/report")) for _ in range(2)]
        async with asyncio.timeout(20):
            while not (during := await scrape(client))["tickets_waiting"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        refused = await client.get("/report")
        await client.get("/finish")
        answers = await asyncio.gather(*reports)
        after = await scrape(client)
    assert [answer.status_code for answer in (refused, *answers)] == [503, 200, 200]
    kept = ("permits_in_use", "tickets_waiting", "tickets_granted_total", "tickets_refused_totalfull")
    assert [before[name] for name in kept] == [0, 0, 0, 0]
    assert [during[name] for name in kept] == [1, 1, 1, 0]
    assert [after[name] for name in kept] == [0, 0, 2, 1]
