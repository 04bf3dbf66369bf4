"""What a simulation found: as tables for people, as JSON, as a picture."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncguard.errors import Reason
    from asyncguard.simulation import Load, Outcome, Result

_REASONS: tuple[Reason, ...] = ("full", "hopeless", "timeout")
"""Why a client is refused that asks for one permit, while no operator interferes."""


def as_json(result: Result) -> str:
    """Tell all figures, under the names that they have in `asyncguard.simulation`."""
    figures = {
        name: getattr(result, name)
        for name in (
            "seconds",
            "offered",
            "utilisation",
            "throughput",
            "mean_waiting",
            "margin",
            "most_waiting",
        )
    }
    figures["total"] = _figures(result.total)
    del figures["total"]["tenant"]
    figures["tenants"] = [_figures(tenant) for tenant in result.tenants]
    return json.dumps(figures, indent=2)


def _figures(outcome: Outcome) -> dict[str, Any]:
    figures = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
    figures["refused"] = {reason: outcome.refused.get(reason, 0) for reason in _REASONS}
    figures["wait"] = dataclasses.asdict(outcome.wait)
    return figures


def as_tables(result: Result) -> None:
    """Print what a person wants to know, on stdout."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(markup=False, highlight=False, emoji=False)
    outcomes = [result.total]
    if len(result.tenants) > 1:
        outcomes += result.tenants
    console.print(_guard(result), "", _clients(outcomes), "", _waits(outcomes), sep="\n")


def _guard(result: Result) -> Any:
    refused = sum(result.total.refused.values())
    margin = "" if result.margin is None else f", +/- {_figure(result.margin)} by chance"
    table = _table("guard", "", "")
    table.columns[-1].justify = "left"
    table.add_row("offered load", f"{result.offered:.1%}", "of the permits, if nobody were turned away")
    table.add_row("utilisation", f"{result.utilisation:.1%}", "of the permits")
    table.add_row("throughput", _figure(result.throughput), "clients finished per second")
    table.add_row("mean queue", _figure(result.mean_waiting), f"clients{margin}")
    table.add_row("longest queue", _figure(result.most_waiting), "clients")
    table.add_row("refused", f"{refused / max(1, result.total.came):.1%}", "of the clients that came")
    return table


def _clients(outcomes: Sequence[Outcome]) -> Any:
    table = _table("clients", "came", "finished", *_REASONS, "left", "permit-seconds")
    for outcome in outcomes:
        counts = [outcome.came, outcome.finished, *(outcome.refused.get(reason, 0) for reason in _REASONS)]
        table.add_row(
            _name(outcome), *(_figure(count) for count in (*counts, outcome.left, outcome.received))
        )
    return table


def _waits(outcomes: Sequence[Outcome]) -> Any:
    table = _table("waits in seconds", "mean", "p50", "p90", "p99", "max")
    for outcome in outcomes:
        wait = outcome.wait
        table.add_row(_name(outcome), *map(_figure, (wait.mean, wait.p50, wait.p90, wait.p99, wait.max)))
    return table


def _table(what: str, *columns: str) -> Any:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(what, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _name(outcome: Outcome) -> str:
    return outcome.tenant or "all"


_WHOLE_FROM = 1000
"""From here on a figure's digits after the point say nothing."""


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or value >= _WHOLE_FROM else f"{value:.3g}"


def plot(result: Result, load: Load, path: str) -> None:
    """Draw how long who was granted waited, and how long the queue was when.

    Raises:
        OSError: the file can't be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4), layout="constrained")
    waits, queue = figure.subplots(1, 2)

    waits.plot(result.quantiles, [part / 10 for part in range(len(result.quantiles))])
    waits.set(title="Waits of those granted", xlabel="waited at most, seconds", ylabel="% of those granted")
    waits.set_ylim(0, 100)
    waits.set_xlim(left=0)

    ends = [part.ends for part in result.slices]
    queue.fill_between(ends, [part.most for part in result.slices], alpha=0.2, step="pre", label="most")
    queue.step(ends, [part.waiting for part in result.slices], where="pre", label="mean")
    queue.axvspan(0, load.seconds * load.warm_up, color="grey", alpha=0.2, label="warm-up")
    queue.set(title="Queue", xlabel="seconds", ylabel="clients waiting")
    queue.set_ylim(bottom=0)
    queue.set_xlim(0, load.seconds)
    queue.legend(loc="lower right")

    figure.savefig(path)
