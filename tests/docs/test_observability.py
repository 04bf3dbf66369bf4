"""What docs/observability.md says of metrics, attributes and levels is what the code does."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families

from asyncguard import AsyncGuard, GuardError
from asyncguard.observability import logs, opentelemetry, prometheus

PAGE = (Path(__file__).parents[2] / "docs" / "observability.md").read_text()
PROMETHEUS, _, REST = PAGE.partition("\n## Prometheus\n")[2].partition("\n## OpenTelemetry\n")
OPENTELEMETRY, _, LOG = REST.partition("\n## The log\n")


def rows(text: str, columns: int) -> list[list[str]]:
    """Find the rows of the tables that have so many columns, headings left out."""
    lines = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [cells for line in lines if len(cells := line.split(" | ")) == columns]


def names(cell: str) -> list[str]:
    return re.findall(r"`(.+?)`", cell)


async def all_that_can_happen(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_waiting=0)
    for _ in range(6):
        async with guard:
            await asyncio.sleep(1)
            with contextlib.suppress(GuardError):
                await asyncio.create_task(guard.acquire())


async def test_the_metrics_of_prometheus_are_those_in_the_table(hub: AsyncGuard) -> None:
    await all_that_can_happen(hub)
    content, _ = await prometheus.exposition(hub)
    told = []
    for family in text_string_to_metric_families(content.decode()):
        (name,) = {sample.name for sample in family.samples}
        labels = sorted({label for sample in family.samples for label in sample.labels})
        told.append((name, family.type, labels, family.documentation))
    table = rows(PROMETHEUS, 5)
    assert told == [(names(name)[0], kind, names(labels), text) for name, kind, _, labels, text in table]
    for name, kind, unit, *_ in table:
        assert (unit == "seconds") == names(name)[0].endswith("_seconds")
        assert (kind == "counter") == names(name)[0].endswith("_total")
        assert re.fullmatch("`asyncguard_[a-z]+(_[a-z]+)*`", name)


async def test_the_metrics_of_opentelemetry_are_those_in_the_table(hub: AsyncGuard) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], Resource({"service.name": "test"}), shutdown_on_exit=False)
    undo = opentelemetry.instrument(hub, meter_provider=provider)
    await all_that_can_happen(hub)
    undo()
    data = reader.get_metrics_data()
    assert data is not None
    told = []
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        attributes = {name for point in metric.data.data_points for name in point.attributes or {}}
        if isinstance(metric.data, Sum):
            assert not metric.data.is_monotonic
        kind = "histogram" if isinstance(metric.data, Histogram) else "up-down counter"
        told.append((metric.name, kind, metric.unit, sorted(attributes), metric.description))
    provider.shutdown()
    table = rows(OPENTELEMETRY, 5)
    assert sorted(told) == sorted(
        (names(name)[0], kind, unit, names(attributes), text) for name, kind, unit, attributes, text in table
    )


def test_every_attribute_is_in_the_table() -> None:
    source = inspect.getsource(opentelemetry)
    metrics = {name for row in rows(OPENTELEMETRY, 5) for name in names(row[0])}
    attributes = set(re.findall(r'"(asyncguard\.[a-z_.]+)"', source)) - metrics
    assert attributes == {name for row in rows(OPENTELEMETRY, 3) for name in names(row[0])}


def test_the_levels_are_those_in_the_table() -> None:
    assert {kind: logging.getLevelName(level) for kind, level in logs.LEVELS.items()} == {
        names(kind)[0]: level for kind, level in rows(LOG, 2)
    }


def test_every_function_is_shown() -> None:
    for module in (prometheus, opentelemetry, logs):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                assert f"\n| `{name}(ag" in PAGE
                assert f"import {name}\n" in PAGE
