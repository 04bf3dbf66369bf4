"""What a guard has seen lately, and the frozen pictures that code, CLI and metrics share."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, final, get_args

from asyncguard.clock import TICKS
from asyncguard.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RECENT = 1000
"""How many of the last waits and holds the percentiles are taken over."""
_ENOUGH_HOLDS = 5
"""Holds seen before anything is estimated."""
_MEAN_OVER = 32
"""How many of the last holds weigh in the mean: each counts for 1/32 once so many were seen."""


@final
@dataclass(frozen=True, slots=True)
class Percentiles:
    """Durations in seconds that 50, 90 and 99 % did not exceed."""

    count: int = 0
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A ticket that holds permits."""

    id: str
    key: str | None
    label: str
    owner: str
    tenant: str
    permits: int
    since: float
    """Seconds since the epoch at which it was granted."""
    held: float
    """Seconds since then."""
    token: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A ticket that waits."""

    id: str
    key: str | None
    label: str
    owner: str
    tenant: str
    permits: int
    since: float
    """Seconds since the epoch at which it entered."""
    waited: float
    """Seconds since then."""
    position: int
    """How many tickets of its partition come before it."""
    estimated_wait: float | None
    """Seconds until it is likely granted; None where too little is known."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A guard, or one of its keys, at one moment."""

    guard: str
    key: str | None
    limit: int
    """Permits of each key."""
    in_use: int
    """Permits held, over all the keys pictured."""
    waiting: int
    """Tickets waiting, over all the keys pictured."""
    keys: int
    """Keys in use, the guard's own partition included."""
    paused: bool
    holders: tuple[Holder, ...]
    queue: tuple[Waiter, ...]
    """The waiting tickets, each key's in the order they will be granted."""
    estimated_wait: float | None
    """Seconds that a ticket entering now would wait; None where too little is known."""
    mean_hold: float | None
    """Seconds; None before five holds were seen."""
    wait: Percentiles
    """Of the last thousand tickets that had to wait, over all keys."""
    hold: Percentiles
    """Of the last thousand holds that ended by themselves, over all keys."""
    granted: int
    """Tickets granted since the guard was first used, over all its keys."""
    refused: Mapping[Reason, int] = field(hash=False)
    """Tickets refused since then, by reason."""


@final
class Statistics:
    """What one guard has seen, over all its keys: so that a new key has an estimate too."""

    __slots__ = ("fresh", "granted", "holds", "mean_hold", "refused", "seen", "waits")

    def __init__(self) -> None:
        self.granted = 0
        self.fresh: deque[int] = deque(maxlen=RECENT)
        """Holds that ended by themselves, in ticks, and are not digested yet."""
        self.waits: deque[int] = deque(maxlen=RECENT)
        """The last waits of tickets that had to wait, in ticks."""
        self.holds: deque[int] = deque(maxlen=RECENT)
        """The last holds that ended by themselves, in ticks."""
        self.mean_hold = 0.0
        """Ticks: a running mean that follows the last 32 or so."""
        self.seen = 0
        """Holds in the mean, up to 32."""
        self.refused: dict[Reason, int] = dict.fromkeys(get_args(Reason), 0)

    def held(self, ticks: int) -> None:
        """Count a hold that ended by itself."""
        if self.fresh:
            self.digest()
        self._count(ticks)

    def digest(self) -> None:
        """Count the holds that were only noted."""
        while self.fresh:
            self._count(self.fresh.popleft())

    def _count(self, ticks: int) -> None:
        self.holds.append(ticks)
        if self.seen < _MEAN_OVER:
            self.seen += 1
        self.mean_hold += (ticks - self.mean_hold) / self.seen

    @property
    def can_estimate(self) -> bool:
        """Whether enough holds were seen."""
        return self.seen >= _ENOUGH_HOLDS

    def snapshot(
        self,
        *,
        guard: str,
        key: str | None,
        limit: int,
        in_use: int,
        keys: int,
        paused: bool,
        holders: tuple[Holder, ...],
        queue: tuple[Waiter, ...],
        estimated_wait: float | None,
    ) -> Snapshot:
        """Complete a picture of occupancy with what was seen lately."""
        self.digest()
        return Snapshot(
            guard=guard,
            key=key,
            limit=limit,
            in_use=in_use,
            waiting=len(queue),
            keys=keys,
            paused=paused,
            holders=holders,
            queue=queue,
            estimated_wait=estimated_wait,
            mean_hold=self.mean_hold / TICKS if self.can_estimate else None,
            wait=percentiles(self.waits),
            hold=percentiles(self.holds),
            granted=self.granted,
            refused=MappingProxyType({reason: count for reason, count in self.refused.items() if count}),
        )


def percentiles(durations: Iterable[int]) -> Percentiles:
    """Take the percentiles of durations in ticks, by nearest rank."""
    ordered = sorted(durations)
    if not ordered:
        return Percentiles()

    def at(percent: int) -> float:
        return ordered[-(-percent * len(ordered) // 100) - 1] / TICKS

    return Percentiles(len(ordered), at(50), at(90), at(99))
