"""Pictures of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

mpl.rcParams["svg.hashsalt"] = "asyncguard"  # so that equal runs draw equal files
mpl.rcParams["svg.fonttype"] = "none"


def draw_goodput(answered: dict[str, list[float]], seconds: int, capacity: float, path: Path) -> None:
    """Draw what was answered in each second, by variant."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    for variant, times in answered.items():
        counts = [0] * seconds
        for at in times:
            if at < seconds:
                counts[int(at)] += 1
        axes.step(range(seconds), counts, where="post", label=variant, linewidth=1.8)
    axes.axhline(capacity, color="0.6", linestyle=":", linewidth=1)
    axes.set(
        xlabel="seconds",
        ylabel="answered in time, per second",
        ylim=(-0.3, capacity * 1.25),
        xlim=(0, seconds - 1),
        title="10 x overload, clients that give up after a second",
    )
    axes.legend(loc="center right", fontsize="small", frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
