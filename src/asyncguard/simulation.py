"""A guard under load, on virtual time: how long clients wait, and how many are turned away.

The very rules that decide in production, `asyncguard.admission`, decide here. Clients come at
random, wait, hold, or give up; the time between two events passes at once. There is no I/O.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import chain
from random import Random
from statistics import fmean, stdev
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

from asyncguard.admission import Admission, Partition
from asyncguard.clock import TICKS
from asyncguard.ticket import NEW, Declaration, Terms, Ticket

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asyncguard.errors import Reason
    from asyncguard.ticket import Rules

Draw: TypeAlias = Callable[[Random], float]
"""A distribution: draws seconds."""
_SHORTEST = 1e-6
_SLICES = 200
"""Parts of a run, equally long, that the queue's length is told for."""
_BATCHES = 20
_STUDENT_T = 2.093
"""What Student's t with one degree of freedom less than batches exceeds, either way, in 5 %."""


def always(seconds: float) -> Draw:
    """Take the same time always."""
    return lambda _: seconds


def exponential(mean: float) -> Draw:
    """Take mostly less than the mean, and now and then several times as much."""
    return lambda chance: chance.expovariate(1 / mean)


def uniform(low: float, high: float) -> Draw:
    """Take any time between two equally likely."""
    return lambda chance: chance.uniform(low, high)


def lognormal(mean: float, variation: float) -> Draw:
    """Take a time with a long tail; `variation` is the standard deviation divided by the mean."""
    variance = math.log1p(variation**2)
    mu, sigma = math.log(mean) - variance / 2, math.sqrt(variance)
    return lambda chance: chance.lognormvariate(mu, sigma)


@final
@dataclass(frozen=True, slots=True)
class Tenant:
    """On whose behalf clients come, and what they do."""

    name: str
    between: float
    """Seconds between two arrivals, on average."""
    service: Draw
    """Draws for how many seconds a client holds its permits."""
    steady: bool = False
    """Whether arrivals are equally far apart, and not at random (a Poisson process)."""
    share: float = 1.0
    permits: int = 1
    priority: float = 0.0
    """Head start in seconds."""
    leaves_after: float | None = None
    """Seconds of waiting after which a client leaves that hadn't said so; None: never."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A guard, who comes to it, and for how long this is watched.

    Raises:
        ValueError: there is no tenant, or no time that counts.
    """

    rules: Rules
    tenants: Sequence[Tenant]
    seconds: float
    """How long the run takes, in virtual time."""
    max_wait: float | None = None
    """Seconds that clients say they are prepared to wait, and after which they leave; None: for ever."""
    warm_up: float = 0.1
    """The part of the run, from its start, that doesn't count: the queue begins empty."""
    seed: int = 1
    """Of what is random: the same load with the same seed has the same result."""

    def __post_init__(self) -> None:
        if not self.tenants:
            raise ValueError("tenants: expected one or more, got none")
        if not _SHORTEST <= self.seconds < math.inf:
            raise ValueError(f"seconds: expected a microsecond or more, got {self.seconds}")
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up: expected 0 or more and below 1, got {self.warm_up}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long those waited who were granted, in seconds; None where nobody was."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    max: float | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of clients in the time that counts.

    Who came, and who was here when that time began, has finished, was refused, left, or is still
    here: `present + came == finished + sum(refused.values()) + left + holding + waiting`.
    """

    tenant: str
    """Its name; empty for all together."""
    present: int
    """Clients that held or waited when the time that counts began."""
    came: int
    finished: int
    refused: Mapping[Reason, int] = field(hash=False)
    """Clients turned away, or that waited for `max_wait` ("timeout"), by reason."""
    left: int
    """Clients that left without having said how long they would wait."""
    holding: int
    """Clients that hold in the end."""
    waiting: int
    """Clients that wait in the end."""
    wait: Waits
    asked: float
    """Permit-seconds that those who came would have held in all."""
    received: float
    """Permit-seconds held."""


@final
@dataclass(frozen=True, slots=True)
class Slice:
    """The queue in one part of the run."""

    starts: float
    """Seconds since the start of the run."""
    ends: float
    waiting: float
    """Clients waiting, on average over time."""
    most: int
    """The most that waited at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of a load."""

    seconds: float
    """How long the time that counts was."""
    offered: float
    """Permits that would be in use, were there enough and nobody turned away, divided by the limit."""
    utilisation: float
    """Permits in use, on average over time, divided by the limit."""
    throughput: float
    """Clients that finished, per second."""
    mean_waiting: float
    """Clients waiting, on average over time."""
    margin: float | None
    """By how much that may be off by chance: half its 95 % confidence interval; None: the run was short."""
    most_waiting: int
    """The most that waited at once."""
    total: Outcome
    tenants: tuple[Outcome, ...]
    quantiles: tuple[float, ...]
    """Seconds that 0, 1, ... 1000 per mille of those granted did not exceed; empty if nobody was."""
    slices: tuple[Slice, ...]
    """Parts of the whole run, the warm-up included."""


def simulate(
    load: Load,
    *,
    progress: Callable[[float], object] | None = None,
    hear: Callable[[Ticket, int], object] | None = None,
) -> Result:
    """Run a load to its end.

    `progress` is called now and then with the part of the run that is done, from 0 to 1. `hear` is
    called, with the tick, for each ticket that has just been queued, granted, refused or withdrawn.
    """
    run = _Run(load, hear)
    ends = round(load.seconds * TICKS)
    counts_from = round(load.seconds * TICKS * load.warm_up)
    edges = {counts_from, *(ends * part // _SLICES for part in range(1, _SLICES + 1))} - {0}
    slices: list[Slice] = []
    for edge in sorted(edges):
        if run.now == counts_from:
            run.count_anew()
        slices.append(run.go_on(edge))
        if progress is not None:
            progress(edge / ends)
    return run.result(slices)


class _Client(Ticket):
    """A ticket whose client knows how long its work takes."""

    __slots__ = ("service", "source")

    service: int
    """Ticks for which it holds."""
    source: _Source


@final
class _Source:
    """The clients of one tenant: how they come, and what became of them."""

    __slots__ = (
        "asked",
        "between",
        "came",
        "finished",
        "here",
        "left",
        "permits",
        "present",
        "received",
        "refused",
        "service",
        "steady",
        "tenant",
        "terms",
        "time_to_stay",
        "waits",
        "why_it_leaves",
    )

    def __init__(self, tenant: Tenant, declaration: Declaration, max_wait: float | None) -> None:
        patience = None if max_wait is None or math.isinf(max_wait) else round(max_wait * TICKS)
        leaves_after = None if tenant.leaves_after is None else round(tenant.leaves_after * TICKS)
        self.tenant = tenant.name
        self.terms = Terms(
            declaration,
            permits=tenant.permits,
            patience=patience,
            priority=round(tenant.priority * TICKS),
            tenant=tenant.name,
            share=tenant.share,
        )
        self.time_to_stay = patience
        """Ticks after which a client that waits leaves; None: never."""
        self.why_it_leaves: Reason | None = "timeout"
        if leaves_after is not None and (patience is None or leaves_after < patience):
            self.time_to_stay, self.why_it_leaves = leaves_after, None
        self.service = tenant.service
        self.between = tenant.between
        self.steady = tenant.steady
        self.permits = tenant.permits or declaration.rules.limit
        self.here = 0
        """Clients that hold or wait."""
        self.count_anew()

    def count_anew(self) -> None:
        """Forget what came of the clients so far."""
        self.present = self.here
        self.came = self.finished = self.left = 0
        self.refused: dict[Reason, int] = {}
        self.waits = array("q")
        self.asked = self.received = 0
        """Permit-ticks."""

    def gap(self, chance: Random) -> int:
        """Draw the ticks until the next client comes."""
        return round((self.between if self.steady else chance.expovariate(1 / self.between)) * TICKS)

    def gone(self, reason: Reason | None) -> None:
        """Count a client that was refused, or left without a reason."""
        self.here -= 1
        if reason is None:
            self.left += 1
        else:
            self.refused[reason] = self.refused.get(reason, 0) + 1

    def outcome(self, holding: int) -> Outcome:
        """Tell what came of the clients that were counted, of whom so many hold."""
        return Outcome(
            tenant=self.tenant,
            present=self.present,
            came=self.came,
            finished=self.finished,
            refused=MappingProxyType(dict(self.refused)),
            left=self.left,
            holding=holding,
            waiting=self.here - holding,
            wait=_waits(sorted(self.waits)),
            asked=self.asked / TICKS,
            received=self.received / TICKS,
        )


@final
class _Run:
    """Events in the order of their ticks; those of one tick in the order in which they were caused."""

    def __init__(self, load: Load, hear: Callable[[Ticket, int], object] | None) -> None:
        self.now = 0
        self._hear = hear
        self._chance = Random(load.seed)  # noqa: S311
        declaration = Declaration("simulated", load.rules)
        self._admission = Admission(declaration)
        self._partition = Partition(self._admission, None)
        self._paced = load.rules.rate is not None
        self._alarm: int | None = None
        """For which tick the pace has set an alarm."""
        self._counts_from = 0
        self._events: list[tuple[int, int, Callable[[Any], object], Any]] = []
        self._caused = 0
        self._sources = [_Source(tenant, declaration, load.max_wait) for tenant in load.tenants]
        for source in self._sources:
            gap = source.gap(self._chance)
            # Steady streams start anywhere within a gap, or all of them would come at the same moments.
            self._at(round(gap * self._chance.random()) if source.steady else gap, self._enter, source)

    def count_anew(self) -> None:
        """Have only what comes from now on count."""
        self._counts_from = self.now
        for source in self._sources:
            source.count_anew()

    def go_on(self, until: int) -> Slice:
        """Have everything happen that does until a tick, and tell how long the queue was meanwhile."""
        events, partition, admission = self._events, self._partition, self._admission
        since = before = self.now
        area = 0
        waiting = most = partition.waiting
        while events[0][0] <= until:  # each source has its next client there
            now, _, happens, whom = heappop(events)
            area += waiting * (now - before)
            self.now = before = now
            happens(whom)
            if admission.changed:
                for client in admission.take_changed():
                    self._decided(cast("_Client", client))
            waiting = partition.waiting
            if waiting > most:
                most = waiting
            if self._paced and waiting:
                self._set_alarm()
        self.now = until
        area += waiting * (until - before)
        return Slice(since / TICKS, until / TICKS, area / (until - since), most)

    def _at(self, tick: int, happens: Callable[[Any], object], whom: Any) -> None:
        self._caused += 1
        heappush(self._events, (tick, self._caused, happens, whom))

    # --- what happens --------------------------------------------------------------------------

    def _enter(self, source: _Source) -> None:
        now = self.now
        self._at(now + source.gap(self._chance), self._enter, source)
        client = _Client()
        client.id = 0
        client.terms = source.terms
        client.key = None
        client.state = NEW
        client.source = source
        client.service = service = round(source.service(self._chance) * TICKS)
        source.came += 1
        source.here += 1
        source.asked += service * source.permits
        self._partition.enter(client, now)
        if client.state == "waiting":
            if source.time_to_stay is not None:
                self._at(now + source.time_to_stay, self._give_up, client)
            if self._hear is not None:
                self._hear(client, now)
        else:
            self._decided(client)

    def _give_up(self, client: _Client) -> None:
        if client.state == "waiting":
            self._partition.leave(client, self.now, client.source.why_it_leaves)
            self._decided(client)

    def _finish(self, client: _Client) -> None:
        source = client.source
        source.finished += 1
        source.here -= 1
        source.received += self._received(client)
        self._partition.leave(client, self.now)

    def _ring(self, _: None) -> None:
        self._alarm = None
        self._partition.advance(self.now)

    def _set_alarm(self) -> None:
        """Have the pace's next opening be an event."""
        due = self._partition.due(self.now)
        if due is not None and (self._alarm is None or due < self._alarm):
            self._alarm = due
            self._at(due, self._ring, None)

    def _decided(self, client: _Client) -> None:
        """Have a client that was granted hold, and count one that is gone."""
        if client.state == "held":
            client.source.waits.append(client.granted - client.arrival)
            self._at(self.now + client.service, self._finish, client)
        else:
            client.source.gone(client.reason if client.state == "refused" else None)
        if self._hear is not None:
            self._hear(client, self.now)

    def _received(self, client: _Client) -> int:
        """Permit-ticks that a client has had in the time that counts."""
        return max(0, self.now - max(client.granted, self._counts_from)) * client.source.permits

    # --- what came of it -----------------------------------------------------------------------

    def result(self, slices: Sequence[Slice]) -> Result:
        """Sum up what was counted."""
        holding = dict.fromkeys(self._sources, 0)
        for holder in self._partition.holders:
            client = cast("_Client", holder)
            client.source.received += self._received(client)
            holding[client.source] += 1
        tenants = tuple(source.outcome(holding[source]) for source in self._sources)
        ordered = sorted(chain.from_iterable(source.waits for source in self._sources))
        total = _sum_up(tenants, _waits(ordered))
        seconds = (self.now - self._counts_from) / TICKS
        permit_seconds = seconds * self._partition.limit
        counted = [part for part in slices if part.starts >= self._counts_from / TICKS]
        return Result(
            seconds=seconds,
            offered=total.asked / permit_seconds,
            utilisation=total.received / permit_seconds,
            throughput=total.finished / seconds,
            mean_waiting=sum(part.waiting * (part.ends - part.starts) for part in counted) / seconds,
            margin=_margin([part.waiting for part in counted]),
            most_waiting=max(part.most for part in counted),
            total=total,
            tenants=tenants,
            quantiles=tuple(_rank(ordered, part, 1000) for part in range(1001)) if ordered else (),
            slices=tuple(slices),
        )


def _margin(means: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of a mean, from those of parts: non-overlapping batch means.

    Source: Law, Simulation Modeling and Analysis, 5th edition, section 9.5.3.
    """
    size = len(means) // _BATCHES
    if not size:
        return None
    batches = [fmean(means[first : first + size]) for first in range(0, size * _BATCHES, size)]
    return _STUDENT_T * stdev(batches) / math.sqrt(_BATCHES)


def _sum_up(tenants: Sequence[Outcome], wait: Waits) -> Outcome:
    refused: Counter[Reason] = Counter()
    for tenant in tenants:
        refused.update(tenant.refused)
    return Outcome(
        tenant="",
        present=sum(tenant.present for tenant in tenants),
        came=sum(tenant.came for tenant in tenants),
        finished=sum(tenant.finished for tenant in tenants),
        refused=MappingProxyType(dict(refused)),
        left=sum(tenant.left for tenant in tenants),
        holding=sum(tenant.holding for tenant in tenants),
        waiting=sum(tenant.waiting for tenant in tenants),
        wait=wait,
        asked=sum(tenant.asked for tenant in tenants),
        received=sum(tenant.received for tenant in tenants),
    )


def _waits(ordered: Sequence[int]) -> Waits:
    """Sum up waits in ticks, the shortest first."""
    if not ordered:
        return Waits()
    p50, p90, p99, most = (_rank(ordered, percent, 100) for percent in (50, 90, 99, 100))
    return Waits(mean=sum(ordered) / len(ordered) / TICKS, p50=p50, p90=p90, p99=p99, max=most)


def _rank(ordered: Sequence[int], part: int, of: int) -> float:
    """The seconds that this part of the waits did not exceed, by nearest rank."""
    return ordered[max(0, -(-part * len(ordered) // of) - 1)] / TICKS
