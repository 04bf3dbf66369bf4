"""The page that fault runs write: what was done, and what came of it."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor import Result
    from redis_site import Fault

_HEAD = """\
# Reliability

Written by `{command}`: fault runs as [docs/faults.md](faults.md) tells of them, each with {processes} processes of {tasks}
tasks at a time (fewer where processes are stopped past their leases), and what the checker then found in what all of
them had noted. {where}, {date}.

The first run has what guards rest on ([docs/assumptions.md](assumptions.md)): there, work must not overlap, and nothing else
may be broken. Each of the others takes one of these things away. Then work may overlap, which is counted; but tokens
must grow, and the fenced store must not take a stale write: violations are 0 in all of them.
"""


def milliseconds(ordered: list[float], part: float) -> str:
    """Write one of what is in order, by how many are below it."""
    return f"{ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1000:,.1f}" if ordered else "-"


def page(results: Sequence[Result], *, command: str, processes: int, tasks: int, versions: str) -> str:
    """Write the page."""
    head = _HEAD.format(
        command=command,
        processes=processes,
        tasks=tasks,
        where=f"{versions}, Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores",
        date=dt.datetime.now(dt.UTC).date(),
    )
    names = ["", *(result.name for result in results)]
    rows = [names, ["---", *("---:" for _ in results)]]
    faults: set[Fault] = {fault for result in results for fault in result.done}
    columns = [_column(result, faults) for result in results]
    rows += [[title, *(column[title] for column in columns)] for title in columns[0]]
    return head + "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _column(result: Result, faults: set[Fault]) -> dict[str, str]:
    report = result.report
    expected = Counter(violation.rule for violation in result.expected)
    return {
        "grants": f"{report.grants:,}",
        "seconds": f"{result.seconds:.0f}",
        "processes killed": f"{report.killed:,}",
        "processes stopped": f"{report.stopped:,}",
        **{f"fault: {fault}": f"{result.done.get(fault, 0):,}" for fault in sorted(faults)},
        "tickets withdrawn, permits lost": f"{report.withdrawn:,}, {report.lost:,}",
        "hand-over p50, p99": f"{milliseconds(result.handovers, 0.5)}, {milliseconds(result.handovers, 0.99)} ms",
        "grant after a fault p50, max": (
            f"{milliseconds(result.recoveries, 0.5)}, {milliseconds(result.recoveries, 1)} ms"
        ),
        "longest idle permit": f"{report.longest_idle * 1000:,.0f} ms",
        "work that overlapped": f"{report.overlaps_under_stop + expected['overlap']:,}",
        "grants beyond the limit (ledger)": f"{expected['limit']:,}",
        "late writes turned away": f"{report.stale:,}",
        "**violations**": f"**{len(report.violations):,}**",
    }
