"""OpenTelemetry: queue and work as spans under the request's, and metrics with few attributes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from asyncguard import ALL, AsyncGuard, Event, Guard, GuardError
from asyncguard.observability.opentelemetry import _Telemetry, instrument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_RESOURCE = Resource({"service.name": "test"})
"""Given, as to find one out reads files."""


class Telemetry:
    """What an SDK has recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(resource=_RESOURCE, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.tracer_provider.get_tracer("test")
        self._reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self._reader], _RESOURCE, shutdown_on_exit=False)

    def instrument(self, ag: AsyncGuard, *, keys: bool = False) -> Callable[[], None]:
        return instrument(
            ag, tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, keys=keys
        )

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(name)]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def points(self, name: str) -> dict[tuple[str, ...], Any]:
        """Find a metric's points by the values of their attributes."""
        data = self._reader.get_metrics_data()
        metrics = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == f"asyncguard.{name}"
        ]
        return {
            tuple(str(value) for _, value in sorted((point.attributes or {}).items())): point
            for metric in metrics
            for point in metric.data.data_points
        }

    def level(self, name: str) -> dict[str, int]:
        return {guard: point.value for (guard,), point in self.points(name).items()}


@pytest.fixture
def telemetry(hub: AsyncGuard) -> Iterator[Telemetry]:
    telemetry = Telemetry()
    telemetry.instrument(hub)
    yield telemetry
    assert in_flight(hub) == 0, "a ticket that is over is still kept"
    telemetry.meter_provider.shutdown()


def observers(hub: AsyncGuard) -> list[Any]:
    return [observation.observer for observation in hub.observers.observations]


def in_flight(hub: AsyncGuard) -> int:
    recording = [observer for observer in observers(hub) if isinstance(observer, _Telemetry)]
    return sum(len(observer._waiting) + len(observer._working) for observer in recording)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("asyncguard."): value for name, value in (span.attributes or {}).items()}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


async def block(guard: Guard, seconds: float = 2, **ask: Any) -> None:
    with contextlib.suppress(GuardError):
        async with guard.permit(**ask):
            await asyncio.sleep(seconds)


async def test_queue_and_work_are_spans_under_the_requests(hub: AsyncGuard, telemetry: Telemetry) -> None:
    guard = hub.guard("report")
    events: list[Event] = []
    hub.observe(events.append)

    async def request(name: str) -> int:
        with telemetry.tracer.start_as_current_span(name) as span:
            await block(guard)
        return span.get_span_context().span_id

    first, second = await asyncio.gather(request("first"), request("second"))
    assert [span.name for span in telemetry.spans()] == [
        "queue report",
        "work report",
        "first",
        "queue report",
        "work report",
        "second",
    ]
    assert [parent(span) for span in telemetry.spans("queue")] == [first, second]
    assert [parent(span) for span in telemetry.spans("work")] == [first, second]
    assert [seconds(span) for span in telemetry.spans("queue")] == pytest.approx([0, 2], abs=1e-6)
    assert [seconds(span) for span in telemetry.spans("work")] == pytest.approx([2, 2], abs=1e-6)
    queue, work = telemetry.spans("queue")[1], telemetry.spans("work")[1]
    granted = [event for event in events if event.kind == "granted"][1]
    assert queue.end_time == pytest.approx(granted.at * 1e9, abs=1000)
    assert work.start_time == pytest.approx(granted.at * 1e9, abs=1000)
    assert attributes(queue) == {
        "guard": "report",
        "outcome": "granted",
        "permits": 1,
        "token": granted.token,
    }
    assert attributes(work) == {
        "guard": "report",
        "outcome": "released",
        "permits": 1,
        "token": granted.token,
    }
    assert queue.status.status_code is work.status.status_code is StatusCode.UNSET


async def test_what_the_work_traces_is_a_child_of_the_request(hub: AsyncGuard, telemetry: Telemetry) -> None:
    with telemetry.tracer.start_as_current_span("request") as request:
        async with hub.guard("report"):
            assert trace.get_current_span() is request
    assert parent(telemetry.span("work")) == request.get_span_context().span_id


async def test_without_a_current_span_each_begins_a_trace(hub: AsyncGuard, telemetry: Telemetry) -> None:
    await block(hub.guard("report"))
    queue, work = telemetry.spans()
    assert parent(queue) is parent(work) is None


async def test_refusals_are_errors_with_a_reason(hub: AsyncGuard, telemetry: Telemetry) -> None:
    guard = hub.guard("report", max_waiting=1, max_wait=1)
    await asyncio.gather(*(block(guard) for _ in range(3)))
    refused = [span for span in telemetry.spans() if span.status.status_code is StatusCode.ERROR]
    assert [(span.name, span.status.description) for span in refused] == [
        ("queue report", "full"),
        ("queue report", "timeout"),
    ]
    assert [seconds(span) for span in refused] == pytest.approx([0, 1], abs=1e-6)
    assert attributes(refused[0]) == {
        "guard": "report",
        "outcome": "refused",
        "reason": "full",
        "permits": 1,
    }
    assert telemetry.points("wait.duration").keys() == {
        ("report", "granted"),
        ("report", "refused", "full"),
        ("report", "refused", "timeout"),
    }


async def test_a_wait_that_is_cancelled_is_no_error(hub: AsyncGuard, telemetry: Telemetry) -> None:
    guard = hub.guard("report")
    async with guard:
        task = asyncio.create_task(block(guard))
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.wait([task])
        (_, queue) = telemetry.spans("queue")
    assert attributes(queue)["outcome"] == "withdrawn"
    assert queue.status.status_code is StatusCode.UNSET
    assert seconds(queue) == pytest.approx(3, abs=1e-6)


async def test_work_that_lost_its_permit_is_an_error(hub: AsyncGuard, telemetry: Telemetry) -> None:
    await block(hub.guard("report", max_hold=1))
    work = telemetry.span("work")
    assert attributes(work)["outcome"] == "lost"
    assert (work.status.status_code, work.status.description) == (StatusCode.ERROR, "the permit was lost")
    assert seconds(work) == pytest.approx(1, abs=1e-6)


async def test_keys_are_told_only_if_asked_for(hub: AsyncGuard) -> None:
    discreet, open_ = Telemetry(), Telemetry()
    discreet.instrument(hub)
    open_.instrument(hub, keys=True)
    await block(hub.guard("report"), key="alice", tenant="shop", label="the yearly one")
    for span in discreet.spans():
        assert attributes(span).keys() == {"guard", "outcome", "permits", "token"}
    for span in open_.spans():
        assert attributes(span)["key"] == "alice"
    assert open_.points("wait.duration").keys() == {("report", "granted")}
    assert open_.points("hold.duration").keys() == {("report", "released")}


async def test_to_ask_for_all_permits_is_no_number(hub: AsyncGuard, telemetry: Telemetry) -> None:
    guard = hub.guard("report", limit=3)
    await block(guard, permits=2)
    await block(guard, permits=ALL)
    assert [attributes(span).get("permits") for span in telemetry.spans("work")] == [2, None]


async def test_durations_are_in_buckets_of_seconds(hub: AsyncGuard, telemetry: Telemetry) -> None:
    guard = hub.guard("report")
    await asyncio.gather(*(block(guard) for _ in range(3)))
    wait = telemetry.points("wait.duration")["report", "granted"]
    hold = telemetry.points("hold.duration")["report", "released"]
    assert (wait.count, wait.sum) == (3, pytest.approx(6))
    assert (hold.count, hold.sum) == (3, pytest.approx(6))
    assert {0.005, 1, 300} <= set(hold.explicit_bounds)


async def test_who_waits_and_works_in_this_process_is_counted(hub: AsyncGuard, telemetry: Telemetry) -> None:
    guard = hub.guard("report", limit=2)
    tasks = [asyncio.create_task(block(guard)) for _ in range(5)]
    await asyncio.sleep(1)
    assert telemetry.level("waiting_tickets") == {"report": 3}
    assert telemetry.level("working_tickets") == {"report": 2}
    await asyncio.wait(tasks)
    assert telemetry.level("waiting_tickets") == telemetry.level("working_tickets") == {"report": 0}


async def test_it_can_be_undone_while_tickets_are_in_flight(hub: AsyncGuard) -> None:
    telemetry = Telemetry()
    undo = telemetry.instrument(hub)
    guard = hub.guard("report")
    tasks = [asyncio.create_task(block(guard)) for _ in range(3)]
    await asyncio.sleep(1)
    before = len(telemetry.spans())
    undo()
    undo()
    await asyncio.wait(tasks)
    await block(guard)
    assert telemetry.level("waiting_tickets") == telemetry.level("working_tickets") == {"report": 0}
    assert len(telemetry.spans()) == before
    assert not hub.observers


async def test_work_in_a_thread_and_permits_that_are_dropped_have_spans(
    hub: AsyncGuard, telemetry: Telemetry
) -> None:
    guard = hub.guard("report")

    @guard
    def compute() -> None: ...

    with telemetry.tracer.start_as_current_span("request") as request:
        await compute()
        permit = await guard.acquire()
        with pytest.warns(ResourceWarning, match="dropped"):  # noqa: PT031
            del permit
            gc.collect()
        await asyncio.sleep(0)
    ours = request.get_span_context().span_id
    assert [parent(span) for span in telemetry.spans("work")] == [ours, ours]


async def test_a_loss_that_is_heard_of_before_the_grant_is_recorded_whole(hub: AsyncGuard) -> None:
    """As may happen where two threads tell of the two."""
    telemetry, heard = Telemetry(), list[Event]()
    hub.observe(heard.append)
    await block(hub.guard("report", max_hold=1))
    entered, granted, lost = heard
    undo = telemetry.instrument(hub)
    (_, observer) = observers(hub)
    for event in (entered, lost, granted):
        observer(event)
    assert in_flight(hub) == 0
    undo()
    assert [span.name for span in telemetry.spans()] == ["queue report", "work report"]
    assert seconds(telemetry.span("queue")) == pytest.approx(granted.waited, abs=1e-6)
    assert telemetry.span("queue").end_time == pytest.approx(granted.at * 1e9, abs=1000)
    assert seconds(telemetry.span("work")) == pytest.approx(lost.held, abs=1e-6)
    assert telemetry.level("waiting_tickets") == telemetry.level("working_tickets") == {"report": 0}
    observer(dataclasses.replace(granted, ticket="unknown"))
    observer(dataclasses.replace(granted, kind="withdrawn", ticket="unknown"))
    assert len(telemetry.spans()) == 2


async def test_threads_and_loops_are_recorded_too() -> None:
    telemetry, ag = Telemetry(), AsyncGuard()
    telemetry.instrument(ag)
    guard = ag.guard("report", max_waiting=None)

    async def many() -> None:
        await asyncio.gather(*(block(guard, 0) for _ in range(25)))

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, many()) for _ in range(4)))
    assert (len(telemetry.spans("queue")), len(telemetry.spans("work"))) == (100, 100)
    assert telemetry.level("waiting_tickets") == telemetry.level("working_tickets") == {"report": 0}
    assert in_flight(ag) == 0
    assert threading.active_count() < 20


async def test_two_can_be_recorded_by_one_sdk(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry()
    with caplog.at_level(logging.DEBUG, "opentelemetry"):
        for name in ("report", "export"):
            ag = AsyncGuard()
            telemetry.instrument(ag)
            await block(ag.guard(name), 0)
    assert telemetry.level("working_tickets") == {"report": 0, "export": 0}
    assert caplog.records == []


async def test_without_an_sdk_nothing_is_recorded_and_all_goes_on(hub: AsyncGuard) -> None:
    undo = instrument(hub)
    await block(hub.guard("report"))
    assert in_flight(hub) == 0
    undo()


def test_it_loads_the_api_alone() -> None:
    program = (
        "import sys, asyncguard.observability.opentelemetry; "
        "assert not any(name.startswith('opentelemetry.sdk') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_application_is_no_asyncguard() -> None:
    application: Any = object()
    with pytest.raises(TypeError, match="ag: expected an AsyncGuard, got <object"):
        instrument(application)
