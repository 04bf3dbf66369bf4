"""Errors as problem details (RFC 9457), their pages, and what OpenAPI says of them."""

from __future__ import annotations

import asyncio
import json
import math
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asyncguard import AsyncGuard, HoldExceeded, PermitLost, QueueFull, Refused, WouldBlock
from asyncguard.errors import REFUSALS, Reason
from asyncguard.http.fastapi import RESPONSES, NoKey, responses_with
from asyncguard.http.problems import ANSWERED, Problem, check_problems, page_name, pages, problem, retry_after
from asyncguard.service.app import create_app
from asyncguard.service.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
BASE = "https://example.com/problems/"
OTHERS = [WouldBlock(), PermitLost(), HoldExceeded(), NoKey()]
REASONS = get_args(Reason)


def refusal(reason: Reason, **known: Any) -> Refused:
    error = REFUSALS[reason](guard="report", estimated_wait=known.pop("estimated_wait", None))
    for name, value in known.items():
        setattr(error, name, value)
    return error


def every_error() -> list[Any]:
    return [*(refusal(reason) for reason in REASONS), *OTHERS]


def members(answer: Problem) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(answer.content)
    return parsed


def headers(answer: Problem) -> dict[str, str]:
    return dict(answer.headers)


# --- what is said ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_without_pages_the_type_is_blank_and_the_title_is_the_phrase(error: Any) -> None:
    answer = problem(error)
    said = members(answer)
    assert said["type"] == "about:blank"
    assert said["status"] == answer.status
    assert said["title"] == HTTPStatus(answer.status).phrase
    assert said["detail"]
    assert all(re.fullmatch("[A-Za-z][A-Za-z0-9_]{2,}", name) for name in said)
    assert headers(answer)["content-type"] == "application/problem+json"
    assert headers(answer)["cache-control"] == "no-store"
    assert int(headers(answer)["content-length"]) == len(answer.content)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_with_pages_the_type_leads_to_one(error: Any) -> None:
    said = members(problem(error, problems=BASE))
    name = said["type"].removeprefix(BASE)
    assert pages()[name].startswith(f"# {said['title']}\n")


def test_a_subclass_is_what_it_is_a_subclass_of() -> None:
    class MyQueue(QueueFull): ...

    class MyTurn(WouldBlock): ...

    class Mine(Refused): ...

    assert members(problem(MyQueue()))["reason"] == "full"
    assert problem(MyTurn()).reason == "would_block"
    assert problem(Mine()).status == 503


@pytest.mark.parametrize("reason", REASONS)
def test_429_is_for_who_could_ask_less_often(reason: Reason) -> None:
    assert problem(refusal(reason)).status == 503
    expected = 429 if reason in ("full", "hopeless", "timeout") else 503
    assert problem(refusal(reason, status=429)).status == expected


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_a_time_to_come_back_is_always_told_where_that_helps(error: Any) -> None:
    told = headers(problem(error)).get("retry-after")
    if isinstance(error, NoKey):
        assert told is None
    else:
        assert re.fullmatch("[1-9][0-9]*", told or "")


@given(st.floats(min_value=0) | st.just(math.nan), st.integers(1) | st.none())
@example(math.inf, 10**30)
@example(1e300, 1)
def test_any_estimate_and_limit_make_a_valid_answer(estimate: float, limit: int | None) -> None:
    answer = problem(
        refusal("full", estimated_wait=estimate, limit=limit, waiting=3), expose="capacity", problems=BASE
    )

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    said = json.loads(answer.content, parse_constant=no_constant)
    seconds = int(headers(answer)["retry-after"])
    assert seconds >= 1
    if math.isfinite(estimate):
        estimate = min(estimate, 1e15 - 1)
        assert seconds >= estimate
        assert said["estimated_wait"] == pytest.approx(estimate, abs=0.001)
    else:
        assert "estimated_wait" not in said
    if limit is not None:
        assert re.search(r"q=(\d{1,15});", headers(answer)["ratelimit-policy"])
        assert re.search(r"t=(\d{1,15})$", headers(answer)["ratelimit"])


def test_times_to_come_back_are_spread() -> None:
    chosen = {retry_after(100.0) for _ in range(1000)}
    assert min(chosen) >= 100
    assert max(chosen) <= 125
    assert len(chosen) > 20


# --- what isn't --------------------------------------------------------------------------------


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_nothing_is_told_of_the_guards_settings(error: Any) -> None:
    if isinstance(error, Refused):
        error.limit, error.waiting, error.key = 7777, 6666, "alice"
    answer = problem(error, problems=BASE)
    everything = answer.content.decode() + str(answer.headers)
    assert "7777" not in everything
    assert "6666" not in everything
    assert "alice" not in everything
    assert "ratelimit" not in everything.lower()


async def test_capacity_is_told_where_it_may_be() -> None:
    ag = AsyncGuard()
    guard = ag.guard("report", limit=2, max_waiting=0)
    app = FastAPI()
    ag.install(app, expose="capacity", problems=BASE)

    @app.get("/")
    @guard
    async def report() -> None: ...

    transport = httpx.ASGITransport(app)
    async with guard, guard, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await asyncio.create_task(client.get("/"))
    said = response.json()
    assert (said["limit"], said["waiting"]) == (2, 0)
    assert said["type"] == f"{BASE}full"
    assert said["title"] == "The queue is full"
    assert response.headers["ratelimit-policy"] == '"report";q=2;qu="concurrent-requests"'
    assert response.headers["ratelimit"] == f'"report";r=0;t={response.headers["retry-after"]}'


# --- names -------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=128)
SF_STRING = re.compile(r'"(?:[ !#-\[\]-~])*"')
"""A quoted string without anything that would have to be escaped."""


@settings(deadline=None)
@given(NAMES)
@example('a"\\\r\nSet-Cookie: b=c')
@example("\x00\x7f\x80é\U0001f600%")
@example('", r=1')
def test_no_name_breaks_a_header(name: str) -> None:
    ag = AsyncGuard()
    guard = ag.guard(name, max_waiting=0)
    app = FastAPI()
    ag.install(app, expose="capacity")

    @app.get("/")
    async def report() -> None:
        async with guard:
            pass

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            granted = await client.get("/")
            async with guard:
                return granted, await asyncio.create_task(client.get("/"))

    granted, refused = asyncio.run(ask())
    assert refused.json()["guard"] == name
    for response in (granted, refused):
        assert all(re.fullmatch(rb"[ -~]+", value) for _, value in response.headers.raw)
    limits = refused.headers
    assert re.fullmatch(SF_STRING.pattern + ';q=1;qu="concurrent-requests"', limits["ratelimit-policy"])
    assert re.fullmatch(SF_STRING.pattern + r";r=0;t=\d", limits["ratelimit"])
    timing = granted.headers["server-timing"]
    assert re.fullmatch(r"queue;desc=" + SF_STRING.pattern + r";dur=[\d.]+, work;dur=[\d.]+", timing)


# --- pages -------------------------------------------------------------------------------------


def test_each_type_has_a_page_and_each_page_a_type() -> None:
    folder = DOCS.parent / "src" / "asyncguard" / "http" / "problem_pages"
    names = {page_name(problem(error).reason) for error in every_error()}
    assert names == pages().keys() == {path.stem for path in folder.glob("*")}
    listed = re.findall(
        r"^\| \[`(.*)`\]\((.*)\) \| (.*) \|$", (DOCS / "problems.md").read_text(), re.MULTILINE
    )
    assert [name for name, _, _ in listed] == list(pages())
    for name, link, title in listed:
        assert (DOCS / link).resolve() == folder / f"{name}.md"
        assert pages()[name].startswith(f"# {title}\n")


def test_the_pages_are_found_from_the_readme() -> None:
    assert "](docs/fastapi.md)" in (DOCS.parent / "README.md").read_text()
    assert "](problems.md)" in (DOCS / "fastapi.md").read_text()


def test_every_error_that_is_answered_is_tried_here() -> None:
    assert all(any(isinstance(error, answered) for error in every_error()) for answered in ANSWERED)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_a_page_says_all_and_shows_what_is_sent(error: Any) -> None:
    answer = problem(error, problems=BASE)
    page = pages()[page_name(answer.reason)]
    headings = re.findall("^## (.*)$", page, re.MULTILINE)
    assert headings == ["What happened", "What the client can do", "What the operator can do", "Example"]
    assert f"Status {answer.status}" in page
    assert ("429" in page) == (answer.reason in ("full", "hopeless", "timeout"))
    shown = re.search(
        r"^```http\nHTTP/1.1 (\d+) .*\n((?:.+\n)+)\n(\{\n(?:.*\n)+\})\n```$", page, re.MULTILINE
    )
    assert shown is not None
    assert int(shown[1]) == answer.status
    fields = {name.lower(): value for name, value in (line.split(": ") for line in shown[2].splitlines())}
    sent = {name: value for name, value in answer.headers if name != "content-length"}
    if "retry-after" in sent:
        assert int(fields["retry-after"]) >= 1
        sent["retry-after"] = fields["retry-after"]
    assert fields == sent
    example = json.loads(shown[3])
    example.pop("estimated_wait", None)
    assert example == members(answer)


@pytest.mark.parametrize("url", ["https://example.com/problems", "about:blank", "problems", "x" * 513])
def test_a_url_that_names_cannot_follow_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="problems: expected"):
        AsyncGuard().install(FastAPI(), problems=url)


@pytest.mark.parametrize("url", ["", "/", BASE, "https://example.com/errors#", "urn:problem:", "tag:a,2026:"])
def test_a_url_that_names_can_follow_is_taken(url: str) -> None:
    assert check_problems(url) == url


def test_the_service_serves_its_pages() -> None:
    client = TestClient(create_app(Settings(work_seconds=0)))
    for name, page in pages().items():
        response = client.get(f"/problems/{name}")
        assert response.text == page
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
    missing = client.get("/problems/no-such")
    assert missing.status_code == 404
    assert "no-key" in missing.text


def test_the_services_refusals_lead_to_its_pages() -> None:
    app = create_app(Settings(work_seconds=0))
    guard = app.state.asyncguard.guards["work"]
    with TestClient(app) as client:
        asyncio.run(guard.set_limit(1))
        held = guard.acquire_nowait()
        refused = client.get("/test", headers={"Prefer": "wait=0"})
        asyncio.run(held.release())
        assert refused.status_code == 503
        assert refused.json()["type"].startswith("/problems/")
        assert client.get(refused.json()["type"]).text.startswith(f"# {refused.json()['title']}\n")


# --- OpenAPI -----------------------------------------------------------------------------------


def schema_of(status: int) -> dict[str, Any]:
    described = responses_with(429, 400)[status]
    schema: dict[str, Any] = described["content"]["application/problem+json"]["schema"]
    return schema


@pytest.mark.parametrize(
    "error",
    [*every_error(), refusal("full", status=429, estimated_wait=1.5)],
    ids=lambda error: type(error).__name__,
)
def test_openapi_describes_what_is_sent(error: Any) -> None:
    answer = problem(error)
    schema, said = schema_of(answer.status), members(answer)
    types = {"string": str, "integer": int, "number": float}
    assert set(schema["required"]) <= said.keys() <= schema["properties"].keys()
    for name, value in said.items():
        described = schema["properties"][name]
        assert isinstance(value, types[described["type"]])
        assert value in described.get("enum", [value])
    assert set(schema["required"]) <= schema["example"].keys() <= schema["properties"].keys()


def test_openapi_has_429_and_400_where_they_are_asked_for() -> None:
    app = FastAPI()

    @app.get("/", responses=RESPONSES)
    async def plain() -> None: ...

    @app.get("/keyed", responses=responses_with(429, 400))
    async def keyed() -> None: ...

    paths = app.openapi()["paths"]
    assert paths["/"]["get"]["responses"].keys() == {"200", "503"}
    described = paths["/keyed"]["get"]["responses"]
    assert described.keys() == {"200", "503", "429", "400"}
    for status in ("503", "429"):
        assert described[status]["headers"]["Retry-After"]["schema"] == {"type": "integer", "minimum": 1}
    assert "headers" not in described["400"]
