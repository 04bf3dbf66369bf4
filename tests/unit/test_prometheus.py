"""Metrics as Prometheus reads them: what the backend knows, once per scrape, with few labels."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, get_args

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from asyncguard import AsyncGuard, BackendUnavailable, Guard, Reason, Refused, Snapshot
from asyncguard.observability.prometheus import exposition, metrics_app

if TYPE_CHECKING:
    from asyncguard.http.asgi import ASGIApp

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Page:
    """An exposition as Prometheus understands it."""

    def __init__(self, text: str) -> None:
        parse = parse_openmetrics if text.endswith("# EOF\n") else parse_text
        self.families = {family.name: family for family in parse(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def values(self, name: str, **labels: str) -> list[float]:
        return [
            sample.value
            for sample in self.samples
            if sample.name == f"asyncguard_{name}" and labels.items() <= sample.labels.items()
        ]

    def value(self, name: str, **labels: str) -> float:
        (value,) = self.values(name, **labels)
        return value


async def scrape(ag: AsyncGuard, accept: str = "") -> Page:
    content, _ = await exposition(ag, accept)
    return Page(content.decode())


async def get(
    app: ASGIApp, path: str = "/metrics", *, method: str = "GET", accept: str = "*/*"
) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=[(b"accept", accept.encode("latin-1"))])


async def work(guard: Guard, seconds: float = 2, **ask: Any) -> None:
    with contextlib.suppress(Refused):
        async with guard.permit(**ask):
            await asyncio.sleep(seconds)


def fail_to_inspect(hub: AsyncGuard, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """Have the backend raise an error when it is asked, or never answer."""

    async def inspect(*_: object) -> Snapshot:
        if error is not None:
            raise error
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    monkeypatch.setattr(hub.open(), "inspect", inspect)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
async def test_it_tells_what_happens_now(accept: str, hub: AsyncGuard) -> None:
    report, export = hub.guard("report", limit=1, max_waiting=1), hub.guard("export", limit=3)
    tasks = [asyncio.create_task(work(report)) for _ in range(3)]
    tasks += [asyncio.create_task(work(export, key=key)) for key in "ab"]
    await asyncio.sleep(1)
    await export.pause()
    page = await scrape(hub, accept)
    await export.resume()
    await asyncio.wait(tasks)
    assert page.value("permits_limit", guard="report") == 1
    assert page.value("permits_limit", guard="export") == 3
    assert page.value("permits_in_use", guard="report") == 1
    assert page.value("permits_in_use", guard="export") == 2
    assert page.value("tickets_waiting", guard="report") == 1
    assert page.value("tickets_waiting", guard="export") == 0
    assert page.value("keys_in_use", guard="export") == (await export.inspect()).keys + 2
    assert page.value("paused", guard="report") == 0
    assert page.value("paused", guard="export") == 1
    assert page.value("tickets_granted_total", guard="report") == 1
    assert page.value("tickets_refused_total", guard="report", reason="full") == 1


async def test_it_tells_what_happened_lately(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    await asyncio.gather(*(work(guard) for _ in range(4)))
    before = await scrape(hub)
    await asyncio.gather(*(work(guard, 2) for _ in range(6)))
    after = await scrape(hub)
    assert before.values("mean_hold_seconds") == []
    assert after.value("mean_hold_seconds", guard="report") == pytest.approx(2)
    assert after.value("recent_hold_seconds", quantile="0.5") == pytest.approx(2)
    assert after.value("recent_wait_seconds", quantile="0.99") == pytest.approx(10)
    assert len(after.values("recent_wait_seconds", guard="report")) == 3


async def test_an_unused_guard_has_all_counters_at_zero_and_no_quantiles(hub: AsyncGuard) -> None:
    hub.guard("report")
    page = await scrape(hub)
    assert page.value("tickets_granted_total", guard="report") == 0
    for reason in get_args(Reason):
        assert page.value("tickets_refused_total", guard="report", reason=reason) == 0
    assert page.values("recent_wait_seconds") == page.values("recent_hold_seconds") == []


async def test_no_guards_no_samples(hub: AsyncGuard) -> None:
    assert (await scrape(hub)).samples == []


async def test_labels_are_few_and_bounded(hub: AsyncGuard) -> None:
    guard = hub.guard("report", order="fair", limit=2)
    ask: Any = {"key": "a-secret-key", "tenant": "a-secret-tenant", "label": "a-secret-label"}
    async with guard.permit(permits=2, **ask):
        waits = asyncio.create_task(work(guard, **ask))
        await asyncio.sleep(1)
        content, _ = await exposition(hub)
    await waits
    assert b"secret" not in content
    assert {label for sample in Page(content.decode()).samples for label in sample.labels} == {
        "guard",
        "reason",
    }


@pytest.mark.parametrize("name", ['say "hi"', "two\nlines", "back\\slash", "a{b}=c,d", "naïve 🛡"])
@pytest.mark.parametrize("accept", ["", OPENMETRICS])
async def test_guards_may_have_any_name(name: str, accept: str, hub: AsyncGuard) -> None:
    hub.guard(name)
    assert (await scrape(hub, accept)).value("permits_limit", guard=name) == 1


async def test_a_variant_speaks_for_its_guard(hub: AsyncGuard) -> None:
    hub.guard("report").replace(limit=5)
    assert (await scrape(hub)).value("permits_limit", guard="report") == 5


async def test_workers_that_share_a_backend_answer_the_same(hub: AsyncGuard) -> None:
    other = AsyncGuard(clock=hub.clock)
    other._backend = hub.open()
    mine, theirs = hub.guard("report", limit=2), other.guard("report", limit=2)
    tasks = [asyncio.create_task(work(guard)) for guard in (mine, theirs, theirs)]
    await asyncio.sleep(1)
    pages = [await exposition(ag) for ag in (hub, other)]
    await asyncio.wait(tasks)
    assert pages[0] == pages[1]
    page = Page(pages[0][0].decode())
    assert (page.value("permits_in_use"), page.value("tickets_waiting")) == (2, 1)


async def test_a_scrape_asks_each_guard_once(hub: AsyncGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    inspect = hub.open().inspect

    async def counted(declaration: Any, key: str | None) -> Snapshot:
        asked.append(declaration.name)
        return await inspect(declaration, key)

    monkeypatch.setattr(hub.open(), "inspect", counted)
    for name in ("report", "export"):
        hub.guard(name)
    await exposition(hub)
    assert asked == ["report", "export"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/plain"),
        ("text/plain", "text/plain"),
        (OPENMETRICS, "application/openmetrics-text"),
        ("application/openmetrics-text", "application/openmetrics-text"),
    ],
)
async def test_it_answers_in_the_format_that_is_asked_for(
    accept: str, content_type: str, hub: AsyncGuard
) -> None:
    hub.guard("report")
    response = await get(metrics_app(hub), accept=accept)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(content_type + ";")
    assert int(response.headers["content-length"]) == len(response.content)
    assert Page(response.text).value("permits_limit", guard="report") == 1


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=none",
        "text/plain;version=x.y;escaping=\xff",
        "text/plain;version=1.0.0;escaping",
        ";;,=,",
    ],
)
async def test_whatever_is_asked_for_it_answers(accept: str, hub: AsyncGuard) -> None:
    hub.guard("report")
    response = await get(metrics_app(hub), accept=accept)
    assert response.status_code == 200
    assert Page(response.text).value("permits_limit", guard="report") == 1


def fastapi(metrics: ASGIApp) -> FastAPI:
    app = FastAPI()
    app.routes.append(Route("/metrics", metrics))
    return app


def starlette(metrics: ASGIApp) -> Starlette:
    return Starlette(routes=[Route("/metrics", metrics)])


def mounted(metrics: ASGIApp) -> Starlette:
    return Starlette(routes=[Mount("/metrics", metrics)])


@pytest.mark.parametrize("frame", [fastapi, starlette, mounted])
async def test_any_framework_serves_it(frame: Any, hub: AsyncGuard) -> None:
    app = frame(metrics_app(hub))
    hub.install(app)
    response = await get(app, "/metrics/" if frame is mounted else "/metrics")
    assert response.status_code == 200
    assert "asyncguard_permits_limit" in response.text


async def test_it_answers_head_without_content(hub: AsyncGuard) -> None:
    response = await get(metrics_app(hub), method="HEAD")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) > 0
    assert response.content == b""


async def test_it_is_read_only(hub: AsyncGuard) -> None:
    response = await get(metrics_app(hub), method="POST")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD"


async def test_it_serves_http_alone(hub: AsyncGuard) -> None:
    app: Any = metrics_app(hub)
    with pytest.raises(NotImplementedError, match="lifespan"):
        await app({"type": "lifespan"}, None, None)


@pytest.mark.parametrize("error", [BackendUnavailable("secret.example: no route"), TimeoutError()])
async def test_a_backend_that_cannot_be_asked_is_a_503(
    error: Exception, hub: AsyncGuard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.guard("report")
    fail_to_inspect(hub, monkeypatch, error)
    response = await get(metrics_app(hub))
    monkeypatch.undo()
    assert response.status_code == 503
    assert response.text == "the backend can't be asked\n"
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics: the backend can't be asked: {error!r}"
    ]


async def test_a_backend_that_does_not_answer_is_a_503_in_time(
    hub: AsyncGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.guard("report")
    fail_to_inspect(hub, monkeypatch, None)
    began = asyncio.get_running_loop().time()
    response = await get(metrics_app(hub, timeout=3))
    monkeypatch.undo()
    assert response.status_code == 503
    assert asyncio.get_running_loop().time() - began == pytest.approx(3)


@pytest.mark.parametrize(
    ("seconds", "error"), [(0, ValueError), (-1, ValueError), ("5", TypeError), (None, TypeError)]
)
async def test_the_timeout_is_checked_at_once(seconds: Any, error: type[Exception], hub: AsyncGuard) -> None:
    with pytest.raises(error, match="timeout"):
        metrics_app(hub, timeout=seconds)


async def test_the_guards_of_an_asyncguard_are_listed_and_the_list_is_frozen(hub: AsyncGuard) -> None:
    report = hub.guard("report")
    listed: Any = hub.guards
    export = hub.guard("export")
    assert dict(listed) == {"report": report}
    assert dict(hub.guards) == {"report": report, "export": export}
    with pytest.raises(TypeError):
        listed["other"] = report


def test_an_application_is_no_asyncguard() -> None:
    application: Any = object()
    with pytest.raises(TypeError, match="ag: expected an AsyncGuard, got <object"):
        metrics_app(application)
