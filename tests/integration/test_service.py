"""The service on a real server over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import signal
import tomllib
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi import FastAPI

from asyncguard.service.app import create_app
from asyncguard.service.settings import Settings

from .servers import ROOT, Answer, Connection, Server, Servers, connections, send_in_order

if TYPE_CHECKING:
    from pathlib import Path

WORK = 0.3
UVICORN = ("uvicorn", "--host", "127.0.0.1", "--port", "0")


def start(servers: Servers, work_seconds: float) -> Server:
    return servers.start(*UVICORN, "app:app", ASYNCGUARD_WORK_SECONDS=str(work_seconds))


def queued(answer: Answer) -> float:
    match = re.fullmatch(
        r'queue;desc="work";dur=(\d+\.\d), work;dur=(\d+\.\d)', answer.headers["server-timing"]
    )
    assert match is not None, answer.headers
    return float(match[1]) / 1000


@pytest.fixture
def service(servers: Servers) -> Server:
    return start(servers, WORK)


@pytest.fixture
def quick_service(servers: Servers) -> Server:
    return start(servers, 0.005)


async def test_parallel_calls_end_one_after_the_other(service: Server) -> None:
    async with connections(service, 4) as (control, *callers):
        await send_in_order(callers, control, "/test")
        answers = await asyncio.gather(*(caller.read() for caller in callers))
    assert [answer.status for answer in answers] == [200, 200, 200]
    for answer in answers:
        assert answer.body.keys() == {"elapsed"}
        assert WORK <= answer.body["elapsed"] < WORK + 0.2
    for before, after in itertools.pairwise(answers):
        assert WORK * 0.9 < after.at - before.at < WORK + 0.2


async def test_server_timing_tells_how_long_a_call_queued(service: Server) -> None:
    async with connections(service, 4) as (control, *callers):
        await send_in_order(callers, control, "/test")
        waits = [queued(await caller.read()) for caller in callers]
    assert waits[0] < WORK / 2
    assert WORK / 2 < waits[1] < WORK * 1.5
    assert WORK * 1.5 < waits[2] < WORK * 2.5


async def test_health_is_told_while_work_runs(service: Server) -> None:
    async with connections(service, 2) as (control, caller):
        await caller.send("/test")
        during = await control.get("/healthz")
        after = await caller.read()
    assert during.status == 200
    assert during.body == {"status": "ok"}
    assert during.at < after.at - WORK / 2


async def test_two_hundred_calls_are_served_in_the_order_they_came(quick_service: Server) -> None:
    served: list[int] = []

    async def read(number: int, caller: Connection) -> int:
        status = (await caller.read()).status
        served.append(number)
        return status

    async with connections(quick_service, 201) as (control, *callers):
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(read(*numbered)) for numbered in enumerate(callers)]
            await send_in_order(callers, control, "/test")
        assert {reader.result() for reader in readers} == {200}
    assert served == list(range(200))


def test_a_stop_leaves_no_process(service: Server) -> None:
    service.process.send_signal(signal.SIGTERM)
    service.await_end()


def test_it_runs_with_reload(servers: Servers, tmp_path: Path) -> None:
    shutil.copy(ROOT / "app.py", tmp_path)
    service = servers.start(*UVICORN, "app:app", "--reload", cwd=tmp_path, ASYNCGUARD_WORK_SECONDS="0")
    assert httpx.get(f"{service.url}/test", timeout=20).status_code == 200
    service.process.send_signal(signal.SIGTERM)
    service.await_end()


def test_a_bad_setting_is_named(servers: Servers) -> None:
    with pytest.raises(AssertionError, match="ASYNCGUARD_WORK_SECONDS: expected a number of seconds"):
        servers.start(*UVICORN, "app:app", ASYNCGUARD_WORK_SECONDS="soon")


@pytest.mark.parametrize("value", ["", "soon", "-1", "nan", "inf", "-inf"])
def test_settings_refuse_what_is_no_time(value: str) -> None:
    with pytest.raises(ValueError, match="ASYNCGUARD_WORK_SECONDS: expected") as raised:
        Settings.from_environ({"ASYNCGUARD_WORK_SECONDS": value})
    assert repr(value) in str(raised.value)


def test_settings_have_defaults(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    url = f"sqlite://{tmp_path}/asyncguard/guards.db"
    assert Settings.from_environ(environ) == Settings(work_seconds=3, url=url)
    assert Settings.from_environ({**environ, "ASYNCGUARD_WORK_SECONDS": "0.25"}).work_seconds == 0.25
    assert Settings.from_environ({"ASYNCGUARD_URL": "memory:"}) == Settings(work_seconds=3, url="memory:")


async def test_a_thousand_may_wait_and_the_next_is_refused() -> None:
    transport = httpx.ASGITransport(create_app(Settings(work_seconds=3600)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        calls = [asyncio.create_task(client.get("/test")) for _ in range(1001)]
        refusal = await asyncio.create_task(client.get("/test"))
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    assert refusal.status_code == 503
    assert refusal.headers["content-type"] == "application/problem+json"
    assert refusal.json()["reason"] == "full"
    assert refusal.json()["guard"] == "work"


def test_openapi_describes_answers_and_refusals() -> None:
    schema = create_app(Settings()).openapi()
    responses = schema["paths"]["/test"]["get"]["responses"]
    assert responses.keys() == {"200", "503"}
    elapsed = schema["components"]["schemas"]["Worked"]["properties"]["elapsed"]
    assert elapsed["type"] == "number"
    problem = responses["503"]["content"]["application/problem+json"]["schema"]
    told = {"type", "title", "status", "detail", "guard", "reason", "estimated_wait", "limit", "waiting"}
    assert told == problem["properties"].keys()
    assert "full" in problem["properties"]["reason"]["enum"]
    assert responses["503"]["headers"].keys() == {"Retry-After"}


def test_requirements_are_those_of_the_service() -> None:
    assert (ROOT / "requirements.txt").read_text() == "-e .[service]\n"


def test_fastapi_run_finds_the_application() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, _, name = pyproject["tool"]["fastapi"]["entrypoint"].partition(":")
    assert (ROOT / f"{module}.py").is_file()
    namespace: dict[str, object] = {}
    exec((ROOT / f"{module}.py").read_text(), namespace)  # noqa: S102
    assert isinstance(namespace[name], FastAPI)
