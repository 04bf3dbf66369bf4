"""Measure, print the table, keep it as JSON, and fail if a bound was missed."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import memory
from benchmarks.table import Progress, write_json


def main() -> int:
    rows = memory.measure(Progress())
    write_json(rows, Path(__file__).parent / "results" / "memory.json")
    print(*rows, sep="\n")
    return 0 if all(row.holds for row in rows) else 1


sys.exit(main())
