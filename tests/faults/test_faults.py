"""A short fault run, and that such a run can fail; the long one is `make faults`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conductor import Plan, run

if TYPE_CHECKING:
    from pathlib import Path


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
