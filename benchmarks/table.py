"""Rows of figures, how they are gathered and how they are printed."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

ROUNDS = 7


class Progress:
    """Says on stderr what is being measured."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, what: str) -> None:
        print(f"[{time.monotonic() - self._start:6.1f} s] {what}", file=sys.stderr, flush=True)


@dataclass
class Row:
    """One figure, or one ratio with the bound that it should keep."""

    name: str
    figures: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    aim: float | None = None

    @property
    def holds(self) -> bool:
        if self.ratio is None:
            return True
        return (self.at_most is None or self.ratio <= self.at_most) and (
            self.at_least is None or self.ratio >= self.at_least
        )

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.name:44}" + "   ".join(
                f"{name} {value:,.2f}" for name, value in self.figures.items()
            )
        verdict = ""
        for word, bound in (("at most", self.at_most), ("at least", self.at_least)):
            if bound is not None:
                verdict = f"{word} {bound:g}, aim {self.aim:g}: {'holds' if self.holds else 'MISSED'}"
        return f"{self.name:44}{self.ratio:10.2f}   {verdict}"


def interleaved(
    what: str, runs: Mapping[str, Callable[[], float]], progress: Progress, *, rounds: int = ROUNDS
) -> dict[str, float]:
    """Run all in turn, several times, and take the median of each."""
    figures: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        progress.say(f"{what}, round {number + 1} of {rounds}")
        for name, run in runs.items():
            figures[name].append(run())
    return {name: statistics.median(values) for name, values in figures.items()}


def write_json(rows: list[Row], path: Path) -> None:
    """Keep the figures, with what they were measured on."""
    document: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": [{**row.__dict__, "holds": row.holds} for row in rows],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
