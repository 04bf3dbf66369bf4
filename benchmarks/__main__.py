"""Measure, print the table, keep it as JSON, and fail if a bound was missed.

`python -m benchmarks` asks every question, `python -m benchmarks memory requests` those that are named.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import memory, on_redis, overload, requests, sqlite
from benchmarks.table import Progress, write_json

QUESTIONS = {
    "memory": memory.measure,
    "sqlite": sqlite.measure,
    "redis": on_redis.measure,
    "requests": requests.measure,
    "overload": overload.measure,
}


def main(names: list[str]) -> int:
    unknown = set(names) - QUESTIONS.keys()
    if unknown:
        print(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
        return 2
    progress, all_hold = Progress(), True
    for name in names or QUESTIONS:
        rows = QUESTIONS[name](progress)
        write_json(rows, Path(__file__).parent / "results" / f"{name}.json")
        print(*rows, sep="\n", flush=True)
        all_hold = all_hold and all(row.holds for row in rows)
    return 0 if all_hold else 1


sys.exit(main(sys.argv[1:]))
