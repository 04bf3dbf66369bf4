"""The memory backend, whose quick paths do in place what the rules come to, decides as the rules do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import settings

from asyncguard.backends.memory import MemoryBackend
from asyncguard.testing.conformance.against_rules import AgainstRules

if TYPE_CHECKING:
    from asyncguard.clock import Clock

NO_LOOP: Any = None
"""Time alone moves the partition, whoever noticed it."""


class MemoryAgainstRules(AgainstRules):
    def open(self, clock: Clock) -> MemoryBackend:
        self.memory = MemoryBackend(clock)
        return self.memory

    def notice_time(self, keys: list[str | None]) -> None:
        for key in keys:
            self.memory._ring(self.memory._admissions["guard"].partitions[key], NO_LOOP, 0)


TestMemoryAgainstRules = MemoryAgainstRules.TestCase
TestMemoryAgainstRules.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
