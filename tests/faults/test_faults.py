"""A short fault run, and that such a run can fail; the long one is `make faults`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from conductor import Plan, plans, run

if TYPE_CHECKING:
    from pathlib import Path

    from redis_site import Fault


def test_processes_are_killed_and_stopped_and_no_rule_is_broken(tmp_path: Path) -> None:
    plan = Plan(seed=4, processes=4, grants=1500, seconds=50, stop_every=(0.2, 0.8), stop_for=(0.05, 0.5))
    result = run(plan, tmp_path)
    assert result.is_good, result
    report = result.report
    assert report.grants >= 1500
    assert report.killed > 0
    assert report.stopped > 0
    assert report.withdrawn > 0
    assert report.limits > 0
    assert report.pauses > 0
    assert report.writes > 100


def test_a_run_of_guards_that_know_nothing_of_each_other_fails(tmp_path: Path) -> None:
    plan = Plan(
        seed=1,
        processes=2,
        tasks=4,
        grants=500,
        seconds=50,
        kill_every=None,
        stop_every=None,
        roles=False,
        url="memory:",
    )
    result = run(plan, tmp_path)
    assert result.mishaps == []
    assert not result.is_good
    assert {"overlap", "limit", "fence"} <= {violation.rule for violation in result.report.violations}


def test_what_a_process_says_when_it_ends_by_itself_is_told(tmp_path: Path) -> None:
    plan = Plan(seed=1, processes=1, tasks=1, grants=10, seconds=50, url="nothing:", roles=False)
    result = run(plan, tmp_path)
    assert not result.is_good
    assert "no backend is known for the scheme 'nothing'" in str(result)


def short(name: str, **changes: Any) -> Plan:
    """Find one of the runs on Redis, and make it short."""
    options = {"seed": 4, "processes": 4, "tasks": 4, "grants": 1000, "seconds": 40.0, "lease": 1.0}
    (plan,) = (plan for plan in plans("redis", **options) if plan.name == name)
    return dataclasses.replace(plan, **{"at_least": 3.0, "grants": 200, **changes})


def test_on_redis_no_rule_is_broken_where_what_is_assumed_holds(tmp_path: Path) -> None:
    plan = short("what is assumed holds", fault_every=(0.1, 0.4), kill_every=(1, 2), lease=2.0)
    result = run(plan, tmp_path)
    assert result.is_good, result
    assert sum(result.done.values()) > 5
    assert result.expected == ()


def test_on_redis_work_overlaps_under_a_stop_and_the_fence_turns_late_writers_away(tmp_path: Path) -> None:
    result = run(short("stopped past the lease", at_least=10.0, grants=60), tmp_path)
    assert result.is_good, result
    assert result.report.stopped > 0
    assert result.report.overlaps_under_stop > 0


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("the data is lost", "wipe"),
        ("a lagging replica is promoted", "promote"),
        ("the clock is an hour wrong", "clock"),
    ],
)
def test_tokens_grow_on_redis_also_where_it_forgets_who_holds(
    tmp_path: Path, name: str, fault: Fault
) -> None:
    result = run(short(name, fault_every=(0.3, 0.8)), tmp_path)
    assert result.is_good, result
    assert result.done[fault] > 0
