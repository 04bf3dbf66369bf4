"""What came out of a check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, final

Rule = Literal["limit", "pause", "overlap", "tokens", "order", "idle", "end", "fence"]
_SHOWN = 5
"""Violations of one rule that are printed; a guard that doesn't guard has thousands."""
_SECOND = 1e9


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One place where a rule was broken."""

    rule: Rule
    at: int
    """When it shows, in nanoseconds as in the records."""
    guard: str
    key: str | None
    message: str

    def __str__(self) -> str:
        where = self.guard if self.key is None else f"{self.guard}[{self.key}]"
        return f"{self.rule}: {where} at {self.at / _SECOND:.6f} s: {self.message}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a history shows: how much happened, and which rules were broken. Printed, it is a table."""

    violations: tuple[Violation, ...]
    """In the order of their moments."""
    records: int
    tickets: int
    grants: int
    refused: int
    withdrawn: int
    lost: int
    killed: int
    stopped: int
    limits: int
    """How often another limit was set."""
    pauses: int
    writes: int
    """How many the fenced store let through."""
    stale: int
    """How many it turned away, as a newer token had come before theirs."""
    longest_idle: float
    """Seconds for which a permit was free at most while a ticket waited that could take it."""
    longest_idle_after_kill: float
    """The same, where a process was killed meanwhile."""
    overlaps_under_stop: int
    """Of a backend with leases: how often work overlapped because one that works had been stopped."""

    def __str__(self) -> str:
        rows = [
            ("records", f"{self.records:,}"),
            ("tickets", f"{self.tickets:,}"),
            ("grants", f"{self.grants:,}"),
            ("refused, withdrawn, lost", f"{self.refused:,}, {self.withdrawn:,}, {self.lost:,}"),
            ("processes killed, stopped", f"{self.killed:,}, {self.stopped:,}"),
            ("limits set, pauses", f"{self.limits:,}, {self.pauses:,}"),
            ("writes to the fenced store", f"{self.writes:,}"),
            ("  turned away", f"{self.stale:,}"),
            ("longest idle permit", f"{self.longest_idle * 1000:,.1f} ms"),
            ("  where one was killed", f"{self.longest_idle_after_kill * 1000:,.1f} ms"),
            ("overlaps under a stop", f"{self.overlaps_under_stop:,}"),
            ("violations", f"{len(self.violations):,}"),
        ]
        lines = [f"{name:28}{value:>16}" for name, value in rows]
        for rule, count in Counter(violation.rule for violation in self.violations).items():
            lines += [f"  {each}" for each in [v for v in self.violations if v.rule == rule][:_SHOWN]]
            if count > _SHOWN:
                lines.append(f"  {rule}: {count - _SHOWN:,} more")
        return "\n".join(lines)
