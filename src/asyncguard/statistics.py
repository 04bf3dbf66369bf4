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

    from asyncguard.ticket import Ticket

RECENT = 1000
"""How many of the last waits and holds the percentiles are taken over."""
_ENOUGH_HOLDS = 5
"""Holds seen before anything is estimated."""
BATCH = 16
"""Holds that move the mean at once."""


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
    """Of the last thousand tickets whose work ended by itself, over all keys."""
    hold: Percentiles
    """Of the same."""
    granted: int
    """Tickets granted since the guard was first used, over all its keys."""
    refused: Mapping[Reason, int] = field(hash=False)
    """Tickets refused since then, by reason."""


@final
class Statistics:
    """What one guard has seen, over all its keys: so that a new key has an estimate too."""

    __slots__ = ("_batch", "_ended", "fresh", "holds", "mean_hold", "refused", "waits")

    def __init__(self) -> None:
        self.fresh: list[Ticket] = []
        """Tickets whose work ended by itself, to be counted when somebody asks, or when they are many."""
        self.waits: deque[int] = deque(maxlen=RECENT)
        """How long the last of these had waited, in ticks."""
        self.holds: deque[int] = deque(maxlen=RECENT)
        """How long they held, in ticks."""
        self.mean_hold = 0.0
        """Ticks: the mean of the first five holds, then halfway to the mean of each sixteen; 0: not yet."""
        self.refused: dict[Reason, int] = dict.fromkeys(get_args(Reason), 0)
        self._ended = 0
        """Tickets that held and hold no more."""
        self._batch: list[int] = []
        """The holds that are not in the mean yet."""

    def released(self, ticket: Ticket, *, finished: bool) -> None:
        """Count a ticket that holds no more; if its work was broken off, not how long it held."""
        if finished:
            self.fresh.append(ticket)
            if len(self.fresh) >= BATCH:
                self.digest()
        else:
            self._ended += 1

    def digest(self) -> None:
        """Count the fresh."""
        fresh = self.fresh
        tickets = fresh.copy()
        del fresh[: len(tickets)]  # one that came meanwhile stays, as it comes without the lock
        # A grant is dated at least a microsecond after the one before, so it may come after its end; what
        # took place took a tick at least, as a mean of 0 says that none was seen. (To call `max` for each
        # would cost as much as all the rest.)
        holds = [held if (held := ticket.ended - ticket.granted) > 0 else 1 for ticket in tickets]
        self._ended += len(tickets)
        self.holds.extend(holds)
        self.waits.extend([ticket.granted - ticket.arrival for ticket in tickets])
        self._batch += holds
        while len(self._batch) >= (BATCH if self.mean_hold else _ENOUGH_HOLDS):
            size = BATCH if self.mean_hold else _ENOUGH_HOLDS
            mean = sum(self._batch[:size]) / size
            self.mean_hold = (self.mean_hold + mean) / 2 if self.mean_hold else mean
            del self._batch[:size]

    @property
    def ended(self) -> int:
        """How many tickets held and hold no more."""
        return self._ended + len(self.fresh)

    @property
    def can_estimate(self) -> bool:
        """Whether enough holds were seen."""
        return self.mean_hold > 0

    def snapshot(
        self,
        *,
        guard: str,
        key: str | None,
        limit: int,
        in_use: int,
        keys: int,
        paused: bool,
        granted: int,
        holders: tuple[Holder, ...],
        queue: tuple[Waiter, ...],
        estimate: float | None,
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
            estimated_wait=None if estimate is None else estimate / TICKS,
            mean_hold=self.mean_hold / TICKS if self.can_estimate else None,
            wait=percentiles(self.waits),
            hold=percentiles(self.holds),
            granted=granted,
            refused=MappingProxyType({reason: count for reason, count in self.refused.items() if count}),
        )


def percentiles(durations: Iterable[int]) -> Percentiles:
    """Take the percentiles of durations in ticks, by nearest rank."""
    ordered = sorted(max(0, ticks) for ticks in durations)
    if not ordered:
        return Percentiles()

    def at(percent: int) -> float:
        return ordered[-(-percent * len(ordered) // 100) - 1] / TICKS

    return Percentiles(len(ordered), at(50), at(90), at(99))
