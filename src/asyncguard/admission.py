"""Admission: who runs, who waits and who is turned away, as pure synchronous rules.

One `Partition` is the state of one (guard, key). Its operations are `enter`, `leave`, `renew`,
`advance`, `configure` (with `evict`) and `inspect`; each is one atomic step *advance, effect,
advance*, and leaves in `Admission.changed` the tickets that it decided upon besides the one that it
was called for. There is no I/O and no clock here: the caller passes `now`, in ticks of a clock that
never goes back. Every backend keeps exactly these rules, wherever it stores their state.
"""

from __future__ import annotations

import itertools
import math
import sys
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, Literal, TypedDict, final

from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND
from asyncguard.leases import Leases
from asyncguard.order import Queue, queue_for
from asyncguard.statistics import Holder, Snapshot, Statistics, Waiter
from asyncguard.ticket import EXCLUSIVE, Declaration, Outlook

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Iterator

    from asyncguard.errors import Reason
    from asyncguard.ticket import Order, Rules, Ticket

_HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
_SOME = 16
"""Holders that are asked for how long they have held, for an estimate."""
KEEP: Final = "keep"
"""The setting that leaves an override as it is."""
Setting = int | None | Literal["keep"]


@final
class Admission:
    """The state of one guard: its rules, what an operator set, its partitions and statistics."""

    __slots__ = (
        "_lingering",
        "_spare",
        "changed",
        "epoch",
        "ids",
        "limit",
        "name",
        "partitions",
        "paused",
        "rules",
        "statistics",
    )

    def __init__(self, declaration: Declaration, epoch: int = 0, ids: Iterator[int] | None = None) -> None:
        self.name = declaration.name
        self.rules = declaration.rules
        self.epoch = epoch
        """Ticks to add to `now` for those since 1970: tokens and dates count from there."""
        self.ids = ids or itertools.count(1)
        """For tickets that get an id only when somebody looks at them."""
        self.limit: int | None = None
        """An operator's limit, which stands until it is cleared."""
        self.paused = False
        self.partitions: dict[str | None, Partition] = {}
        self.statistics = Statistics()
        self.changed: list[Ticket] = []
        """Tickets granted, refused or lost by a step that another ticket or time caused."""
        self._spare: Partition | None = None
        """The last partition that was deleted, as good as new."""
        self._lingering: list[tuple[int, str]] = []
        """Heap of (tick, key): partitions that are empty, and idle from that tick on."""

    def start_anew(self) -> None:
        """Forget all tickets, and what was seen; the rules and the guard's own partition stay."""
        kept = self.partitions.get(None)
        self.__init__(Declaration(self.name, self.rules), self.epoch, self.ids)
        if kept is not None:
            kept.__init__(self, None)
            self.partitions[None] = kept

    def take_changed(self) -> list[Ticket]:
        """Hand over the tickets that were decided upon, to be told by whoever took the step."""
        changed, self.changed = self.changed, []
        return changed

    def declare(self, rules: Rules, now: int) -> bool:
        """Take over rules of a higher revision; False where the same revision says otherwise."""
        if rules.revision > self.rules.revision:
            self.redeclare(rules, now)
        return rules.revision != self.rules.revision or rules == self.rules

    def redeclare(self, rules: Rules, now: int) -> None:
        """Have these rules stand, whatever their revision."""
        self._advance(now)
        self.rules = rules
        self._settle(now)

    def configure(self, now: int, *, limit: Setting = KEEP, paused: bool | None = None) -> None:
        """Set what an operator decides for every key: a limit (None clears it), a pause."""
        self._advance(now)
        if limit != KEEP:
            self.limit = limit
        if paused is not None:
            self.paused = paused
        self._settle(now)

    def _advance(self, now: int) -> None:
        for partition in self.partitions.values():
            partition.advance(now)

    def _settle(self, now: int) -> None:
        self._spare = None
        self._lingering.clear()
        for partition in list(self.partitions.values()):
            partition.lingers = False
            partition.settle(now)
            self._retire(partition, now)

    def partition(self, key: str | None, now: int) -> Partition | None:
        """Find or make the partition of a key; None where too many keys are in use."""
        partition = self.partitions.get(key)
        if partition is None:
            self._sweep(now)
            keys = len(self.partitions) - (None in self.partitions)
            if key is not None and keys >= self.rules.max_keys:
                return None
            partition, self._spare = self._spare, None
            if partition is None:
                partition = Partition(self, key)
            partition.key = key
            partition.next_grant = 0
            self.partitions[key] = partition
        return partition

    def refuse_key(self, ticket: Ticket) -> None:
        """Refuse a ticket whose key has no partition because too many others have."""
        ticket.state = "refused"
        ticket.reason = "too_many_keys"
        ticket.outlook = Outlook(None, 0, self.limit or self.rules.limit)
        self.statistics.refused["too_many_keys"] += 1

    def retire(self, partition: Partition, now: int) -> None:
        """Delete the partition of a key once nothing about it would be missed."""
        if self._lingering:
            self._sweep(now)
        self._retire(partition, now)

    def _retire(self, partition: Partition, now: int) -> None:
        key = partition.key
        if key is None or partition.lingers or self.partitions.get(key) is not partition:
            return
        idle_from = partition.idle_from(now)
        if idle_from is None:
            return
        if idle_from <= now:
            del self.partitions[key]
            self._spare = partition if partition.quick else None
        else:
            partition.lingers = True
            heappush(self._lingering, (idle_from, key))

    def _sweep(self, now: int) -> None:
        while self._lingering and self._lingering[0][0] <= now:
            _, key = heappop(self._lingering)
            partition = self.partitions[key]
            partition.lingers = False
            self._retire(partition, now)

    @property
    def granted(self) -> int:
        """Tickets granted since the guard was first used."""
        return self.statistics.ended + sum(len(p.held()) for p in self.partitions.values())

    def token(self, ticket: Ticket) -> int:
        """The fencing token of a ticket that was granted: the microsecond of its grant since 1970."""
        return (ticket.granted + self.epoch) // TICKS_PER_MICROSECOND

    def inspect(self, now: int) -> Snapshot:
        """Picture all keys at this moment."""
        self._sweep(now)
        partitions = [*self.partitions.values()]
        waits = [partition.estimate(now) for partition in partitions]
        known = [wait for wait in waits if wait is not None]
        wait = max(known, default=0.0) if len(known) == len(waits) and not self.paused else None
        return self.statistics.snapshot(
            guard=self.name,
            key=None,
            limit=self.limit or self.rules.limit,
            in_use=sum(partition.in_use for partition in partitions),
            keys=len(partitions),
            paused=self.paused,
            granted=self.granted,
            holders=tuple(holder for partition in partitions for holder in partition.picture_holders(now)),
            queue=tuple(waiter for partition in partitions for waiter in partition.picture_queue(now)),
            estimate=wait,
        )


@final
class Partition:
    """The state of one (guard, key): holders, queue, last token, pacing."""

    __slots__ = (
        "_exclusive",
        "_leases",
        "_order",
        "_override",
        "_paused",
        "_special",
        "_special_all",
        "_special_permits",
        "_tat",
        "admission",
        "gated",
        "holders",
        "key",
        "last_arrival",
        "limit",
        "line",
        "lingers",
        "max_waiting",
        "next_grant",
        "queue",
        "quick",
        "room",
        "statistics",
        "waiting",
    )

    def __init__(self, admission: Admission, key: str | None) -> None:
        self.admission = admission
        self.key = key
        self.holders: set[Ticket] = set()
        self.waiting = 0
        """Tickets that wait."""
        self.next_grant = 0
        """Tick before which no grant is dated, so that each has a microsecond, its token, to itself."""
        self.lingers = False
        """Whether its guard will look again when it is idle."""
        self.last_arrival = 0
        """Tick of the last that was queued: no two are the same."""
        self._exclusive: Ticket | None = None
        """The ticket that holds all permits."""
        self._special = 0
        """Waiting tickets that aren't plain."""
        self._special_permits = 0
        """Permits that these ask for beyond one each."""
        self._special_all = 0
        """How many of them ask for all permits."""
        self.statistics = admission.statistics
        self._tat = 0
        """Theoretical arrival time of the next grant at the guard's pace (GCRA, ITU-T I.371)."""
        self._override: int | None = None
        self._paused = False
        self._leases: Leases | None = None
        """Made for the first ticket that has one."""
        self._order: Order = admission.rules.order
        self.queue: Queue | None = None
        """Made for the first ticket that waits."""
        self.line: deque[Ticket] | None = None
        """The queue's tickets, where they stand in order of arrival."""
        self.room = self.limit = 0
        self.quick = False
        """Whether all is as in most partitions: one permit, tickets that are plain, in order of arrival."""
        self._read_rules()

    # --- the operations ------------------------------------------------------------------------

    def enter(self, ticket: Ticket, now: int, wait: bool = True) -> None:
        """Grant at once, queue, or refuse with a reason; sent again, it gets its first answer again.

        With `wait=False` a ticket that can't be granted at once leaves no trace and stays new.
        """
        self.advance(now)
        if ticket.terms.lease and self._answer_again(ticket, now):
            return
        if ticket.terms.permits > self.limit:
            self._bury(ticket, "too_large", now)
            self._refuse(ticket, "too_large", now)
            return
        if self.quick and not self.waiting and ticket.terms.plain and self._fits(ticket, now):
            ticket.arrival = now  # it would be queued, and granted at once
            ticket.partition = self
            if self._grant(ticket, now):
                return
        self._enqueue(ticket, now)
        self._advance_for(ticket, now)
        if ticket.state == "waiting":
            if wait:
                self.refuse_at_the_door(ticket, now)
            else:
                self._withdraw(ticket)
                ticket.state = "new"

    def _advance_for(self, ticket: Ticket, now: int) -> None:
        """Advance in the step of a ticket that has just been queued, and whose caller sees its answer."""
        self.advance(now)
        if ticket.state == "held":
            self.admission.changed.remove(ticket)

    def _answer_again(self, ticket: Ticket, now: int) -> bool:
        """Whether the request was sent before, and so has its answer."""
        if self._leases is None:
            return False
        known = self._leases.find(ticket)
        if known is not None:
            ticket.partition, ticket.arrival, ticket.state = self, known.arrival, known.state
            if known.state == "held":
                ticket.granted = known.granted
        elif (reason := self._leases.why_buried(ticket)) is not None:
            self._say_refused(ticket, reason, now)
        return ticket.state != "new"

    def leave(self, ticket: Ticket, now: int, reason: Reason | None = None, *, finished: bool = True) -> None:
        """Release if held, withdraw if waiting; idempotent.

        Of a ticket with a lease a tombstone stays, known or not: a request to enter may come after.
        `reason` is why a waiting ticket gives up, where it isn't simply withdrawn. `finished` says
        that the work ended by itself, so that how long it held the permit says something.
        """
        self.advance(now)
        known: Ticket | None = ticket
        if ticket.terms.lease:
            known = self._find_or_bury(ticket, now)
        if known is None:
            return
        if known.state == "held" and self._release(known, now):
            known.state = "released"
            self.statistics.released(known, finished=finished)
        elif known.state == "waiting":
            self._withdraw(known)
            known.state = "withdrawn"
            if reason is not None:
                self._refuse(known, reason, now)
        self.advance(now)

    def _find_or_bury(self, ticket: Ticket, now: int) -> Ticket | None:
        leases = self._open_leases()
        known = leases.find(ticket)
        leases.bury(ticket, now)
        return known

    def renew(self, tickets: Iterable[Ticket], now: int) -> list[Ticket]:
        """Extend those that are still here by their lease; name the lost."""
        self.advance(now)
        lost = []
        for ticket in tickets:
            known = self._leases.find(ticket) if self._leases is not None else None
            if known is None or self._leases is None:
                lost.append(ticket)
            else:
                self._leases.renew(known, now)
        return lost

    def advance(self, now: int) -> None:
        """Drop what has expired, then grant in order while permits are free."""
        if self._leases is not None:
            self._drop_expired(self._leases, now)
        queue = self.queue
        while self.waiting and queue is not None:
            ticket = queue.first()
            if not self._fits(ticket, now) or not self._grant(ticket, now):
                break
            self._dequeue(ticket)
            self.admission.changed.append(ticket)

    def evict(self, ticket: Ticket, now: int) -> None:
        """Take a ticket out, waiting or held, as it is; what was due besides is granted after."""
        if ticket.state == "held" and self._release(ticket, now):
            self.statistics.released(ticket, finished=False)
            self._bury(ticket, "evicted", now)
            ticket.state = "lost"
        elif ticket.state == "waiting":
            self._turn_away(ticket, "evicted", now)
        else:
            return
        self.admission.changed.append(ticket)
        self.advance(now)

    def configure(self, now: int, *, limit: Setting = KEEP, paused: bool | None = None) -> None:
        """Set what an operator decides for this key alone: a limit (None clears it), a pause."""
        self.advance(now)
        if limit != KEEP:
            self._override = limit
        if paused is not None:
            self._paused = paused
        self.settle(now)

    def settle(self, now: int) -> None:
        """Follow a change of the rules: refuse what can't fit any more, grant what now can."""
        self._read_rules()
        rate = self.admission.rules.rate
        self._tat = min(self._tat, now + rate.burst * rate.interval) if rate is not None else 0
        for ticket in self.in_order():
            if ticket.terms.permits > self.limit:
                self._turn_away(ticket, "too_large", now)
                self.admission.changed.append(ticket)
        self.advance(now)

    def due(self, now: int) -> int | None:
        """The tick at which `advance` next has something to do that only time brings; None: never."""
        ticks = []
        expiry = self._leases.next_expiry() if self._leases is not None else None
        if expiry is not None:
            ticks.append(expiry)
        if self.waiting and not self.paused and self._opening(0) > now:
            ticks.append(self._opening(0))
        return min(ticks, default=None)

    def idle_from(self, now: int) -> int | None:
        """The tick from which on nothing here would be missed; None: not by time alone.

        Idle is: no tickets, no override, no tombstones, the pace's next grant in the past, and the
        last token too, so that a partition made anew continues above it.
        """
        if self.holders or self.waiting or self._paused or self._override is not None:
            return None
        last_tombstone = self._leases.last_tombstone() if self._leases is not None else 0
        return max(self._tat, self.next_grant, last_tombstone, now)

    def find(self, ticket_id: str) -> Ticket | None:
        """Find a ticket that holds or waits by its id."""
        for ticket in (*self.held(), *self.in_order()):
            if str(ticket.id) == ticket_id:
                return ticket
        return None

    def held(self) -> list[Ticket]:
        """The tickets that hold, without those that only look whether they may come in."""
        return [ticket for ticket in [*self.holders] if ticket.state == "held"]

    @property
    def in_use(self) -> int:
        """Permits held."""
        return self.limit if self._exclusive else len(self.held()) + self.limit - self.room

    def first_in_line(self) -> Ticket:
        """The ticket that is granted next.

        Raises:
            LookupError: nobody waits.
        """
        if self.queue is None:
            raise LookupError("nobody waits")
        return self.queue.first()

    def inspect(self, now: int) -> Snapshot:
        """Picture this partition at this moment."""
        return self.statistics.snapshot(
            guard=self.admission.name,
            key=self.key,
            limit=self.limit,
            in_use=self.in_use,
            keys=1,
            paused=self.paused,
            granted=self.admission.granted,
            holders=tuple(self.picture_holders(now)),
            queue=tuple(self.picture_queue(now)),
            estimate=self.estimate(now),
        )

    def picture_holders(self, now: int) -> list[Holder]:
        """Picture the tickets that hold, in the order of their grants."""
        return [
            Holder(
                **self._describe(ticket),
                since=(ticket.granted + self.admission.epoch) / TICKS,
                held=max(0, now - ticket.granted) / TICKS,
                token=self.admission.token(ticket),
            )
            for ticket in sorted(self.held(), key=_by_grant)
        ]

    def picture_queue(self, now: int) -> list[Waiter]:
        """Picture the tickets that wait, in the order in which they will be granted."""
        ahead = 0
        queue = []
        for position, ticket in enumerate(self.in_order()):
            wait = self._estimate(ahead, position, ticket.terms.permits, now)
            queue.append(
                Waiter(
                    **self._describe(ticket),
                    since=(ticket.arrival + self.admission.epoch) / TICKS,
                    waited=max(0, now - ticket.arrival) / TICKS,
                    position=position,
                    estimated_wait=None if wait is None else wait / TICKS,
                )
            )
            ahead += ticket.terms.permits or self.limit
        return queue

    def _describe(self, ticket: Ticket) -> _Description:
        terms = ticket.terms
        ticket.id = ticket.id or next(self.admission.ids)
        return {
            "id": str(ticket.id),
            "key": self.key,
            "label": terms.label,
            "owner": terms.owner,
            "tenant": terms.tenant,
            "permits": terms.permits or self.limit,
        }

    # --- what decides --------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether an operator paused this key or its whole guard."""
        return self._paused or self.admission.paused

    def _read_rules(self) -> None:
        rules = self.admission.rules
        if self._order != rules.order and not self.holders and not self.waiting:
            self._order = rules.order
            self.queue = self.line = None
        beside = self.limit - self.room
        self.limit = self._override or self.admission.limit or rules.limit
        self.room = self.limit - beside
        """Tickets that may hold: the limit, less the permits that holders have beyond one each."""
        self.max_waiting = math.inf if rules.max_waiting is None else rules.max_waiting
        self.gated = (
            self.paused
            or self._exclusive is not None
            or rules.rate is not None
            or self._order != "fifo"
            or self._order != rules.order
        )
        """Whether more decides than permits and arrival: most partitions needn't ask at each step."""
        self._see_whether_quick()

    def _fits(self, ticket: Ticket, now: int) -> bool:
        if self.paused or self._opening(0) > now:
            return False
        return self._has_room_for(ticket)

    def _has_room_for(self, ticket: Ticket) -> bool:
        permits = ticket.terms.permits
        if self._exclusive is not None:
            return False
        return not self.holders if permits == EXCLUSIVE else len(self.holders) + permits <= self.room

    def is_full_for(self, ticket: Ticket) -> bool:
        """Whether the permits that are held keep a ticket out, and not a pause or the pace."""
        if self.waiting and not self._has_room_for(self.first_in_line()):
            return True
        return not self._has_room_for(ticket)

    def refuse_at_the_door(self, ticket: Ticket, now: int) -> None:
        """Refuse a ticket that has just been queued, or another in its place, if it had better not wait."""
        patience = ticket.terms.patience
        surplus = None
        if self.waiting > self.max_waiting and self.queue is not None:
            surplus = self.queue.surplus(ticket)
        if surplus is ticket:
            self._turn_away(ticket, "full", now)
        elif patience == 0:
            self._turn_away(ticket, "paused" if self.paused else "timeout", now)
        elif patience is not None and self.waiting > 1 and self._is_hopeless(ticket, patience, now):
            self._turn_away(ticket, "hopeless", now)
        elif surplus is not None:
            self._turn_away(surplus, "full", now)
            self.admission.changed.append(surplus)
            self._advance_for(ticket, now)  # it may have been in the way of those behind it

    # --- the estimate --------------------------------------------------------------------------

    def estimate(self, now: int) -> float | None:
        """Estimate the ticks that a ticket entering now, for one permit, would wait."""
        if not self.waiting and len(self.holders) < self.room and not (self._exclusive or self.paused):
            return max(0.0, self._opening(0) - now)
        position = 0 if self._order == "lifo" else self.waiting
        return self._estimate(self._ahead(position), position, 1, now)

    def _ahead(self, position: int) -> float:
        """Permits that `position` waiting tickets ask for, if they ask for what all do on average."""
        beyond = self._special_permits + self._special_all * (self.limit - 1)
        return position * (1 + beyond / self.waiting) if self.waiting else 0.0

    def _is_hopeless(self, ticket: Ticket, patience: int, now: int) -> bool:
        position = self.queue.ahead_of(ticket) if self.queue is not None else 0
        wait = self._estimate(self._ahead(position), position, ticket.terms.permits, now)
        if wait is None:
            return False
        within = ticket.terms.within
        return wait > patience or (within is not None and wait + self.statistics.mean_hold > within)

    def _estimate(self, ahead: float, position: int, permits: int, now: int) -> float | None:
        """Estimate the wait behind `position` tickets that ask for `ahead` permits.

        Permits come free at the rate limit / mean hold, the first of them when the holders, on
        average, have what is left of their mean hold behind them: docs/decisions/0003-estimate.md.
        """
        statistics = self.statistics
        statistics.digest()
        if self.paused:
            return None
        opening = float(self._opening(position) - now)
        if not statistics.can_estimate:
            return opening if opening > 0 else None
        mean = statistics.mean_hold
        left = mean / 2 if self._exclusive else 0.0
        some = [t.granted for t in list(itertools.islice(self.holders, _SOME)) if t.state == "held"]
        if some and not self._exclusive:
            left = max(0.0, mean - now + sum(some) / len(some))
        wanted = (permits or self.limit) - 1
        return max(((ahead + wanted) * mean + left) / self.limit, opening)

    def _expected_cost(self, ticket: Ticket) -> float:
        """Permit-ticks that a grant will cost, as far as one can tell."""
        self.statistics.digest()  # or it would depend on whether anybody has looked
        return (ticket.terms.permits or self.limit) * self.statistics.mean_hold

    def _opening(self, position: int) -> int:
        """The tick before which the pace lets nobody in behind `position` others; 0: no pace."""
        rate = self.admission.rules.rate
        return 0 if rate is None else self._tat - rate.tolerance + position * rate.interval

    # --- the effects ---------------------------------------------------------------------------

    def _enqueue(self, ticket: Ticket, now: int) -> None:
        if self._order != self.admission.rules.order:
            self._read_rules()
        if self.queue is None:
            self.queue = queue_for(self._order)
        self.last_arrival = ticket.arrival = max(self.last_arrival + 1, now)
        ticket.partition = self
        ticket.state = "waiting"
        self.queue.add(ticket)
        if not ticket.terms.plain:
            self._count_special(ticket, 1)
            if ticket.terms.lease:
                self._open_leases().add(ticket, now)
        self.waiting += 1
        if self.line is None:
            self._see_whether_quick()

    def _count_special(self, ticket: Ticket, sign: int) -> None:
        self._special += sign
        if ticket.terms.permits == EXCLUSIVE:
            self._special_all += sign
        else:
            self._special_permits += sign * (ticket.terms.permits - 1)
        self._see_whether_quick()

    def _see_whether_quick(self) -> None:
        self.line = self.queue.line if self.queue is not None else None
        self.quick = (
            _HAS_GIL
            and self.limit == self.room == 1
            and len(self.holders) <= 1
            and not (self.gated or self._special)
            and (self.line is not None or not self.waiting)
        )

    def in_order(self) -> list[Ticket]:
        """The waiting tickets, the one that is granted next first."""
        return [] if self.queue is None else [*self.queue.in_order(self._expected_cost)]

    def _dequeue(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue."""
        if self.queue is not None:
            self.queue.remove(ticket)
        if not ticket.terms.plain:
            self._count_special(ticket, -1)
        self.waiting -= 1

    def _withdraw(self, ticket: Ticket) -> None:
        """Take a waiting ticket out altogether."""
        self._dequeue(ticket)
        if ticket.terms.lease and self._leases is not None:
            self._leases.remove(ticket)

    def _turn_away(self, ticket: Ticket, reason: Reason, now: int) -> None:
        """Refuse a ticket that waits; with a lease, also when it comes again."""
        self._withdraw(ticket)
        self._bury(ticket, reason, now)
        self._refuse(ticket, reason, now)

    def _bury(self, ticket: Ticket, reason: Reason, now: int) -> None:
        """Have a ticket with a lease get this answer if it comes again."""
        if ticket.terms.lease:
            self._open_leases().bury(ticket, now, reason)

    def _open_leases(self) -> Leases:
        if self._leases is None:
            self._leases = Leases()
        return self._leases

    def _refuse(self, ticket: Ticket, reason: Reason, now: int) -> None:
        self._say_refused(ticket, reason, now)
        self.statistics.refused[reason] += 1

    def _say_refused(self, ticket: Ticket, reason: Reason, now: int) -> None:
        ticket.state = "refused"
        ticket.reason = reason
        ticket.outlook = Outlook(self.estimate(now), self.waiting, self.limit)

    def _grant(self, ticket: Ticket, now: int) -> bool:
        """Have a ticket hold; False where one that came in without the lock took the room meanwhile.

        That one looks around once it is in, sees this one, and goes out again to have the partition
        advanced: see `MemoryBackend.enter`.
        """
        self.holders.add(ticket)
        if len(self.holders) > self.room:
            self.holders.discard(ticket)
            return False
        ticket.granted = max(now, self.next_grant)
        self.next_grant = ticket.granted + TICKS_PER_MICROSECOND
        ticket.state = "held"
        permits = ticket.terms.permits
        if permits == EXCLUSIVE:
            self._exclusive = ticket
            self._read_rules()
        else:
            self.room -= permits - 1
        rate = self.admission.rules.rate
        if rate is not None:
            self._tat = max(self._tat, now) + rate.interval
        if self.queue is not None:
            self.queue.granted(ticket, self._expected_cost)
        return True

    def _release(self, ticket: Ticket, now: int) -> bool:
        """Have a ticket hold no more; False where another thread, without the lock, was faster."""
        try:
            self.holders.remove(ticket)
        except KeyError:
            return False
        ticket.ended = now
        terms = ticket.terms
        if terms.lease and self._leases is not None:
            self._leases.remove(ticket)
        if self.queue is not None:
            self.queue.released(ticket, (terms.permits or self.limit) * max(0, now - ticket.granted))
        if terms.permits == EXCLUSIVE:
            self._exclusive = None
            self._read_rules()
        else:
            self.room += terms.permits - 1
        if not self.quick:
            self._see_whether_quick()
        return True

    def _drop_expired(self, leases: Leases, now: int) -> None:
        for ticket in leases.expired(now):
            if ticket.state == "held":
                self._release(ticket, now)
                self.statistics.released(ticket, finished=False)
            else:
                self._withdraw(ticket)
            leases.bury(ticket, now)
            ticket.state = "lost"
            self.admission.changed.append(ticket)


class _Description(TypedDict):
    id: str
    key: str | None
    label: str
    owner: str
    tenant: str
    permits: int


def _by_grant(ticket: Ticket) -> int:
    return ticket.granted
