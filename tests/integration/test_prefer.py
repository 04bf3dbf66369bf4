"""`Prefer: wait=SECONDS` (RFC 7240), in time that jumps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from jumping import JumpingLoop

from asyncguard.http.exchange import preferred_wait

if TYPE_CHECKING:
    from asyncguard import AsyncGuard

HOLD = 10.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": JumpingLoop}


@pytest.fixture
async def client(hub: AsyncGuard) -> httpx.AsyncClient:
    """Make a client of an application whose guard knows that its work takes ten seconds."""
    app = FastAPI()
    hub.install(app)

    @app.get("/")
    @hub.guard("report", max_wait=60)
    async def report() -> None:
        await asyncio.sleep(HOLD)

    @app.get("/free")
    async def free() -> None: ...

    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    for _ in range(5):
        await client.get("/")
    return client


async def ask(client: httpx.AsyncClient, prefer: str, *, ahead: int = 0) -> httpx.Response:
    """Ask behind so many others."""
    others = []
    for _ in range(ahead):
        others.append(asyncio.create_task(client.get("/")))
        await asyncio.sleep(0.001)
    response = await client.get("/", headers={"Prefer": prefer})
    await asyncio.gather(*others)
    return response


@pytest.mark.parametrize(
    ("wait", "ahead", "status"),
    [
        (11, 0, 200),
        (5, 1, 503),
        (15, 1, 200),  # who waits alone is always let in: what is estimated may be wrong
        (25, 2, 503),
        (35, 2, 200),
        (1234567, 0, 200),
    ],
)
async def test_it_bounds_the_wait_and_the_work(
    client: httpx.AsyncClient, wait: int, ahead: int, status: int
) -> None:
    response = await ask(client, f"wait={wait}", ahead=ahead)
    assert response.status_code == status
    assert response.headers["preference-applied"] == f"wait={wait}"
    assert response.headers["vary"] == "Prefer"
    if status == 503:
        assert response.json()["reason"] == ("timeout" if ahead == 1 else "hopeless")


async def test_nought_is_a_try(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "wait=0")).status_code == 200
    refused = await ask(client, "wait=0", ahead=1)
    assert refused.status_code == 503
    assert refused.headers["preference-applied"] == "wait=0"


async def test_it_is_capped_by_what_the_guard_allows(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "wait=1000", ahead=8)).status_code == 503


@pytest.mark.parametrize("prefer", ["wait=soon", "wait", "wait=-1", "wait=1.5", "respond-async", ""])
async def test_what_is_no_preference_is_ignored(client: httpx.AsyncClient, prefer: str) -> None:
    response = await ask(client, prefer, ahead=1)
    assert response.status_code == 200
    assert "preference-applied" not in response.headers
    assert "vary" not in response.headers


async def test_where_no_guard_asks_nothing_is_applied(client: httpx.AsyncClient) -> None:
    response = await client.get("/free", headers={"Prefer": "wait=0"})
    assert "preference-applied" not in response.headers
    assert "vary" not in response.headers


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        (["wait=5"], 5),
        (["WAIT = 5"], 5),
        (['wait="5"'], 5),
        (["wait=5; foo=bar"], 5),
        (["respond-async, wait=5"], 5),
        (["wait=5, wait=50"], 5),
        (["wait=5", "wait=50"], 5),
        (["respond-async", "wait=5"], 5),
        (["wait=soon, wait=50"], None),
        (['note="wait=1, wait=2", wait=5'], 5),
        (['note="a \\" , wait=2", wait=5'], 5),
        (['wait="5'], None),
        (["wait=99999999999999999999"], None),
        (["wait=٥"], None),
        (["waiting=5"], None),
        ([], None),
    ],
)
def test_the_first_of_many_counts(fields: list[str], seconds: float | None) -> None:
    headers = [(b"prefer", field.encode()) for field in fields]
    assert preferred_wait([(b"host", b"test"), *headers]) == seconds
