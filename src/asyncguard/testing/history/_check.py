"""A history put to the rules."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from asyncguard.checks import check_number, check_whole
from asyncguard.testing.history import _rules
from asyncguard.testing.history._idle import Idle
from asyncguard.testing.history._report import Report
from asyncguard.testing.history._tickets import History

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncguard.testing.history._record import Record
    from asyncguard.testing.history._tickets import Ticket

_SECOND = 1e9


def check(
    records: Iterable[Record],
    *,
    limits: Mapping[str, int],
    in_order: bool = True,
    idle: float = 2.0,
    idle_after_kill: float | None = None,
    leases: bool = False,
) -> Report:
    """Find out whether guards kept their rules, from all that was noted of their tickets.

    Nothing is named that may not have happened: where what was noted leaves it open in which order two
    things came about, the guard gets the benefit. So note much, and when it happens.

    Args:
        records: from all processes, in any order.
        limits: the limit that each guard declared, by its name.
        in_order: whether those who ask for the same are served in the order in which they came; not so
            with `order="lifo"` or `"fair"`.
        idle: seconds for which a permit may be free at most while a ticket that could take it waits.
            Infinite for a guard with a rate, whose permits are free on purpose.
        idle_after_kill: the same where a process was killed meanwhile; None: as `idle`.
        leases: whether a process that is stopped loses its permits after a time. Then its work may
            overlap with that of others, and a fenced store turn its writes away, which the report
            counts; else that is a violation.

    Raises:
        ValueError: the records contradict one another, or a guard has no limit.
    """
    declared = {name: check_whole("limits", limit, least=1) for name, limit in limits.items()}
    at_most = check_number("idle", idle)
    after_kill = at_most if idle_after_kill is None else check_number("idle_after_kill", idle_after_kill)
    history = History(records, declared)
    violations = [*history.violations, *_rules.fence(history, leases=leases)]
    under_stop: list[Ticket] = []
    longest = longest_after_kill = 0
    for partition in history.partitions.values():
        violations += _rules.limit(history, partition, leases=leases)
        violations += _rules.overlap(history, partition, leases=leases, under_stop=under_stop)
        violations += _rules.tokens(partition)
        if in_order:
            violations += _rules.order(partition)
        waits = Idle(history, partition, at_most=at_most * _SECOND, at_most_after_kill=after_kill * _SECOND)
        violations += waits.violations()
        longest = max(longest, waits.longest)
        longest_after_kill = max(longest_after_kill, waits.longest_after_kill)
    kinds = Counter(record.kind for record in history.records)
    return Report(
        violations=tuple(sorted(violations, key=lambda violation: violation.at)),
        records=len(history.records),
        tickets=kinds["asking"],
        grants=kinds["granted"],
        refused=kinds["refused"],
        withdrawn=kinds["withdrawn"],
        lost=kinds["lost"],
        killed=kinds["killed"],
        stopped=kinds["stopped"],
        limits=kinds["limited"],
        pauses=kinds["paused"],
        writes=kinds["wrote"],
        stale=kinds["stale"],
        longest_idle=longest / _SECOND,
        longest_idle_after_kill=longest_after_kill / _SECOND,
        overlaps_under_stop=len(under_stop),
    )
