"""The memory backend, whose quick paths do in place what the rules come to, decides as the rules do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from asyncguard.backends.memory import MemoryBackend
from asyncguard.clock import TICKS_PER_MICROSECOND
from asyncguard.testing.conformance.against_rules import AgainstRules

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.admission import Partition
    from asyncguard.clock import Clock
    from asyncguard.ticket import Ticket

STEPS = settings(max_examples=300, stateful_step_count=40, deadline=None)


class MemoryAgainstRules(AgainstRules):
    def open(self, clock: Clock) -> MemoryBackend:
        self.memory = MemoryBackend(clock)
        return self.memory

    def notice_time(self, keys: list[str | None]) -> None:
        for key in keys:
            self.memory._set_alarms(self.memory._admissions["guard"].partitions[key])


TestMemoryAgainstRules = MemoryAgainstRules.TestCase
TestMemoryAgainstRules.settings = STEPS


# --- quick paths that err ----------------------------------------------------------------------


def overtakes(partition: Partition, _: Ticket) -> None:
    if partition.line:
        partition.line.rotate(1)


def queues_one_more(partition: Partition, _: Ticket) -> None:
    partition.max_waiting += 1


def miscounts_those_who_wait(partition: Partition, _: Ticket) -> None:
    partition.waiting += 1


def forgets_a_hold(partition: Partition, _: Ticket) -> None:
    partition.statistics.fresh.clear()


def dates_a_grant_too_early(partition: Partition, _: Ticket) -> None:
    partition.next_grant -= TICKS_PER_MICROSECOND


@pytest.mark.parametrize(
    ("path", "errs"),
    [
        ("_queue", overtakes),
        ("_queue", queues_one_more),
        ("_queue", miscounts_those_who_wait),
        ("_hand_over", forgets_a_hold),
        ("_hand_over", dates_a_grant_too_early),
    ],
)
def test_a_quick_path_that_errs_is_caught(
    monkeypatch: pytest.MonkeyPatch, path: str, errs: Callable[[Partition, Ticket], None]
) -> None:
    right = getattr(MemoryBackend, path)

    def wrong(self: MemoryBackend, ticket: Ticket, partition: Partition) -> Any:
        answer = right(self, ticket, partition)
        errs(partition, ticket)
        return answer

    monkeypatch.setattr(MemoryBackend, path, wrong)
    quickly = settings(STEPS, phases=[Phase.generate], database=None, report_multiple_bugs=False)
    # A step that differs, or rules that stumble over the state they were left.
    with pytest.raises((AssertionError, LookupError)):
        run_state_machine_as_test(MemoryAgainstRules, settings=quickly)
