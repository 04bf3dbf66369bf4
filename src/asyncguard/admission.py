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
from collections import OrderedDict
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, Literal, TypedDict, final

from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND
from asyncguard.order import Queue, queue_for
from asyncguard.sortedqueue import SortedQueue
from asyncguard.statistics import Holder, Snapshot, Statistics, Waiter
from asyncguard.ticket import EXCLUSIVE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asyncguard.errors import Reason
    from asyncguard.ticket import Declaration, Order, Rules, Ticket

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

    def __init__(self, declaration: Declaration, epoch: int = 0) -> None:
        self.name = declaration.name
        self.rules = declaration.rules
        self.epoch = epoch
        """Ticks to add to `now` for those since 1970: tokens and dates count from there."""
        self.ids = itertools.count(1)
        """For tickets whose backend needs no ids until somebody looks."""
        self.limit: int | None = None
        """An operator's limit, which stands until it is cleared."""
        self.paused = False
        self.partitions: dict[str | None, Partition] = {}
        self.statistics = Statistics()
        self.changed: list[Ticket] = []
        """Tickets granted, refused or lost by a step that another ticket or time caused."""
        self._lingering: list[tuple[int, str]] = []
        """Heap of (tick, key): partitions that are empty, and idle from that tick on."""

    def declare(self, rules: Rules, now: int) -> bool:
        """Take over rules of a higher revision; False where the same revision says otherwise."""
        if rules.revision > self.rules.revision:
            self.redeclare(rules, now)
        return rules.revision != self.rules.revision or rules == self.rules

    def redeclare(self, rules: Rules, now: int) -> None:
        """Have these rules stand, whatever their revision."""
        self.rules = rules
        self._settle(now)

    def configure(self, now: int, *, limit: Setting = KEEP, paused: bool | None = None) -> None:
        """Set what an operator decides for every key: a limit (None clears it), a pause."""
        if limit != KEEP:
            self.limit = limit
        if paused is not None:
            self.paused = paused
        self._settle(now)

    def _settle(self, now: int) -> None:
        for partition in list(self.partitions.values()):
            partition.settle(now)
            self.retire(partition, now)

    def partition(self, key: str | None, now: int) -> Partition | None:
        """Find or make the partition of a key; None where too many keys are in use."""
        partition = self.partitions.get(key)
        if partition is None:
            self._sweep(now)
            if key is not None and len(self.partitions) >= self.rules.max_keys:
                return None
            partition = self.partitions[key] = Partition(self, key)
        return partition

    def refuse_key(self, ticket: Ticket) -> None:
        """Refuse a ticket whose key has no partition because too many others have."""
        ticket.state = "refused"
        ticket.reason = "too_many_keys"
        ticket.estimate = None
        self.statistics.refused["too_many_keys"] += 1

    def retire(self, partition: Partition, now: int) -> None:
        """Delete the partition of a key once nothing about it would be missed."""
        key = partition.key
        if key is None or partition.lingers or self.partitions.get(key) is not partition:
            return
        idle_from = partition.idle_from(now)
        if idle_from is None:
            return
        if idle_from <= now:
            del self.partitions[key]
        else:
            partition.lingers = True
            heappush(self._lingering, (idle_from, key))

    def _sweep(self, now: int) -> None:
        while self._lingering and self._lingering[0][0] <= now:
            _, key = heappop(self._lingering)
            partition = self.partitions[key]
            partition.lingers = False
            self.retire(partition, now)

    def token(self, ticket: Ticket) -> int:
        """The fencing token of a ticket that was granted: the microsecond of its grant since 1970."""
        return (ticket.granted + self.epoch) // TICKS_PER_MICROSECOND

    def inspect(self, now: int) -> Snapshot:
        """Picture all keys at this moment."""
        partitions = [*self.partitions.values()]
        pictures = [partition.inspect(now) for partition in partitions]
        waits = [picture.estimated_wait for picture in pictures]
        known = [wait for wait in waits if wait is not None]
        return self.statistics.snapshot(
            guard=self.name,
            key=None,
            limit=self.limit or self.rules.limit,
            in_use=sum(picture.in_use for picture in pictures),
            keys=len(pictures),
            paused=self.paused,
            holders=tuple(holder for picture in pictures for holder in picture.holders),
            queue=tuple(waiter for picture in pictures for waiter in picture.queue),
            estimated_wait=max(known, default=0.0) if len(known) == len(waits) and not self.paused else None,
        )


@final
class Partition:
    """The state of one (guard, key): holders, queue, last token, pacing."""

    __slots__ = (
        "_arrival",
        "_exclusive",
        "_expiries",
        "_leased",
        "_order",
        "_override",
        "_paused",
        "_queue",
        "_statistics",
        "_tat",
        "_tombstones",
        "_waiting_all",
        "_waiting_permits",
        "admission",
        "fresh",
        "gated",
        "holders",
        "key",
        "limit",
        "lingers",
        "max_waiting",
        "next_grant",
        "room",
        "waiting",
    )

    def __init__(self, admission: Admission, key: str | None) -> None:
        self.admission = admission
        self.key = key
        self.holders: set[Ticket] = set()
        self.waiting = 0
        """Tickets that wait."""
        self.lingers = False
        """Whether its guard will look again when it is idle."""
        self._statistics = admission.statistics
        self.fresh = admission.statistics.fresh
        self._exclusive: Ticket | None = None
        """The ticket that holds all permits."""
        self._waiting_permits = 0
        self._waiting_all = 0
        self._arrival = 0
        """Tick of the last arrival: each is later than the one before."""
        self.next_grant = 0
        """Tick before which no grant is dated, so that each has a microsecond, its token, to itself."""
        self._tat = 0
        """Theoretical arrival time of the next grant at the guard's pace (GCRA, ITU-T I.371)."""
        self._override: int | None = None
        self._paused = False
        self._leased: dict[int | str, Ticket] = {}
        """The tickets with a lease: their clients may send a request twice, or in the wrong order."""
        self._expiries: SortedQueue[Ticket] = SortedQueue()
        """The same by the end of their lease."""
        self._tombstones: OrderedDict[int | str, int] = OrderedDict()
        """Ids that left before they entered, and the tick until which they may not enter."""
        self._order: Order = admission.rules.order
        self._queue: Queue = queue_for(self._order)
        self.room = self.limit = 0
        self._read_rules()

    # --- the operations ------------------------------------------------------------------------

    def enter(self, ticket: Ticket, now: int, wait: bool = True) -> None:
        """Grant at once, queue, or refuse with a reason; sent again, it gets its first answer again.

        With `wait=False` a ticket that can't be granted at once leaves no trace and stays new.
        """
        terms = ticket.terms
        if self.gated or not terms.plain:
            self._enter_gated(ticket, now, wait=wait)
        elif len(self.holders) < self.room and not self.waiting:
            # As _grant does, in place: most tickets come this way.
            now = max(now, self.next_grant)
            self.next_grant = now + TICKS_PER_MICROSECOND
            ticket.arrival = ticket.granted = now
            ticket.partition = self
            ticket.state = "held"
            self.holders.add(ticket)
            self._statistics.granted += 1
        elif wait:
            self._enqueue(ticket, now)
            if len(self.holders) < self.room:
                self.advance(now)
                if ticket.state == "held":
                    self.admission.changed.remove(ticket)
                    return
            if self.fresh:
                self._statistics.digest()
            patience = terms.patience
            if self.waiting > self.max_waiting or (
                patience is not None
                and (self.waiting + self._waiting_permits) * self._statistics.mean_hold
                >= patience * self.limit
            ):
                self._refuse_at_the_door(ticket, now)

    def _enter_gated(self, ticket: Ticket, now: int, *, wait: bool) -> None:
        if self.gated or self._leased or self._tombstones:
            self.advance(now)
        if ticket.terms.lease and self._answer_again(ticket, now):
            return
        if ticket.terms.permits > self.limit:
            self._refuse(ticket, "too_large", now)
            return
        self._enqueue(ticket, now)
        self.advance(now)
        if ticket.state == "held":
            self.admission.changed.remove(ticket)  # the caller sees it
        elif wait:
            self._refuse_at_the_door(ticket, now)
        else:
            self._withdraw(ticket)
            ticket.state = "new"

    def _answer_again(self, ticket: Ticket, now: int) -> bool:
        """Whether the request was sent before, and so has its answer."""
        known = self._leased.get(ticket.id)
        if known is not None:
            ticket.partition, ticket.arrival, ticket.state = self, known.arrival, known.state
            if known.state == "held":
                ticket.granted = known.granted
        elif ticket.id in self._tombstones:
            self._refuse(ticket, "superseded", now)
        return ticket.state != "new"

    def leave(self, ticket: Ticket, now: int, reason: Reason | None = None, *, finished: bool = True) -> None:
        """Release if held, withdraw if waiting, leave a tombstone if unknown; idempotent.

        `reason` is why a waiting ticket gives up, where it isn't simply withdrawn. `finished` says
        that the work ended by itself, so that how long it held the permit says something.
        """
        if ticket.state == "held" and ticket.terms.plain and not self.gated:
            self.holders.discard(ticket)
            ticket.state = "released"
            ticket.ended = now
            if finished:
                self._statistics.held(now - ticket.granted)
            if self.waiting:
                self.advance(now)
            return
        if self.gated or self._leased:
            self.advance(now)
        known = self._leased.get(ticket.id) if ticket.terms.lease else ticket
        if known is None:
            self._tombstones[ticket.id] = now + 2 * ticket.terms.lease
            return
        self._take_out(known, now, reason, finished=finished)
        self.advance(now)

    def _take_out(self, ticket: Ticket, now: int, reason: Reason | None, *, finished: bool) -> None:
        if ticket.state == "held":
            self._release(ticket, now)
            ticket.state = "released"
            if finished:
                self._statistics.held(now - ticket.granted)
        elif ticket.state == "waiting":
            self._withdraw(ticket)
            ticket.state = "withdrawn"
            if reason is not None:
                self._refuse(ticket, reason, now)

    def renew(self, tickets: Iterable[Ticket], now: int) -> list[Ticket]:
        """Extend those that are still here by their lease; name the lost."""
        self.advance(now)
        lost = []
        for ticket in tickets:
            known = self._leased.get(ticket.id)
            if known is None:
                lost.append(ticket)
            else:
                self._expiries.remove(known.expires, known.arrival)
                known.expires = now + known.terms.lease
                self._expiries.add(known.expires, known.arrival, known)
        return lost

    def advance(self, now: int) -> None:
        """Drop what has expired, then grant in order while permits are free."""
        if self._leased or self._tombstones:
            self._drop_expired(now)
        queue = self._queue
        while self.waiting and (self.gated or len(self.holders) < self.room):
            ticket = queue.first()
            plain = ticket.terms.plain and not self.gated
            if not plain and not self._fits(ticket, now):
                break
            queue.remove(ticket)
            self.waiting -= 1
            granted = self.next_grant
            granted = max(granted, now)
            self.next_grant = granted + TICKS_PER_MICROSECOND
            ticket.granted = granted
            ticket.state = "held"
            self.holders.add(ticket)
            self._statistics.granted += 1
            self._statistics.waits.append(granted - ticket.arrival)
            if not plain:
                self._grant_gated(ticket, now)
            self.admission.changed.append(ticket)

    def evict(self, ticket: Ticket, now: int) -> None:
        """Take a ticket out, waiting or held."""
        if ticket.state == "held":
            self._release(ticket, now)
            ticket.state = "lost"
        else:
            self._turn_away(ticket, "evicted", now)
        self.admission.changed.append(ticket)
        self.advance(now)

    def configure(self, now: int, *, limit: Setting = KEEP, paused: bool | None = None) -> None:
        """Set what an operator decides for this key alone: a limit (None clears it), a pause."""
        if limit != KEEP:
            self._override = limit
        if paused is not None:
            self._paused = paused
        self.settle(now)

    def settle(self, now: int) -> None:
        """Follow a change of the rules: refuse what can't fit any more, grant what now can."""
        self._read_rules()
        for ticket in [*self._queue.in_order(self._expected_cost)]:
            if ticket.terms.permits > self.limit:
                self._turn_away(ticket, "too_large", now)
                self.admission.changed.append(ticket)
        self.advance(now)

    def due(self, now: int) -> int | None:
        """The tick at which `advance` next has something to do that only time brings; None: never."""
        ticks = []
        if self._expiries:
            ticks.append(self._expiries.first().expires)
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
        return max(self._tat, self.next_grant, *self._tombstones.values(), now)

    def find(self, ticket_id: str) -> Ticket | None:
        """Find a ticket that holds or waits by its id."""
        for ticket in (*self.holders, *self._queue.in_order(self._expected_cost)):
            if str(ticket.id) == ticket_id:
                return ticket
        return None

    @property
    def in_use(self) -> int:
        """Permits held."""
        return self.limit if self._exclusive else len(self.holders) + self.limit - self.room

    def first_in_line(self) -> Ticket | None:
        """The ticket that is granted next; None where nobody waits."""
        return self._queue.first() if self.waiting else None

    def inspect(self, now: int) -> Snapshot:
        """Picture this partition at this moment."""
        epoch = self.admission.epoch
        ahead = 0
        queue = []
        for position, ticket in enumerate(self._queue.in_order(self._expected_cost)):
            wait = self._estimate(ahead, position, ticket.terms.permits, now)
            queue.append(
                Waiter(
                    **self._describe(ticket),
                    since=(ticket.arrival + epoch) / TICKS,
                    waited=(now - ticket.arrival) / TICKS,
                    position=position,
                    estimated_wait=None if wait is None else wait / TICKS,
                )
            )
            ahead += ticket.terms.permits or self.limit
        holders = [
            Holder(
                **self._describe(ticket),
                since=(ticket.granted + epoch) / TICKS,
                held=(now - ticket.granted) / TICKS,
                token=self.admission.token(ticket),
            )
            for ticket in sorted([*self.holders], key=_by_grant)
        ]
        wait = self.estimate(now)
        return self._statistics.snapshot(
            guard=self.admission.name,
            key=self.key,
            limit=self.limit,
            in_use=self.in_use,
            keys=1,
            paused=self.paused,
            holders=tuple(holders),
            queue=tuple(queue),
            estimated_wait=None if wait is None else wait / TICKS,
        )

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
            self._queue = queue_for(self._order)
        beside = self.limit - self.room
        most = rules.max_waiting
        self.max_waiting = math.inf if most is None else most
        self.limit = self._override or self.admission.limit or rules.limit
        self.room = self.limit - beside
        """Tickets that may hold: the limit, less the permits that holders have beyond one each."""
        self.gated = (
            self.paused
            or self._exclusive is not None
            or rules.rate is not None
            or self._order != "fifo"
            or self._order != rules.order
        )
        """Whether more decides than permits and arrival: most partitions needn't ask at each step."""

    def _fits(self, ticket: Ticket, now: int) -> bool:
        if self.gated and (self._exclusive or self.paused or self._opening(0) > now):
            return False
        permits = ticket.terms.permits
        return not self.holders if permits == EXCLUSIVE else len(self.holders) + permits <= self.room

    def _refuse_at_the_door(self, ticket: Ticket, now: int) -> None:
        patience = ticket.terms.patience
        if self.waiting > self.max_waiting:
            surplus = self._queue.surplus(ticket)
            self._turn_away(surplus, "full", now)
            if surplus is not ticket:
                self.admission.changed.append(surplus)
        elif patience is None:
            return
        elif patience == 0:
            self._turn_away(ticket, "paused" if self.paused else "timeout", now)
        elif self.waiting > 1 and self._is_hopeless(ticket, patience, now):
            self._turn_away(ticket, "hopeless", now)

    # --- the estimate --------------------------------------------------------------------------

    def estimate(self, now: int) -> float | None:
        """Estimate the ticks that a ticket entering now, for one permit, would wait."""
        if not self.waiting and self.in_use < self.limit and not (self._exclusive or self.paused):
            return max(0.0, self._opening(0) - now)
        position = 0 if self._order == "lifo" else self.waiting
        return self._estimate(self._ahead(position), position, 1, now)

    def _ahead(self, position: int) -> float:
        """Permits that `position` waiting tickets ask for, if they ask for what all do on average."""
        permits = self.waiting + self._waiting_permits + self._waiting_all * self.limit
        return permits * position / self.waiting if self.waiting else 0.0

    def _is_hopeless(self, ticket: Ticket, patience: int, now: int) -> bool:
        statistics = self._statistics
        statistics.digest()
        longest = (
            self.waiting + self._waiting_permits + self._waiting_all * self.limit + 1
        ) * statistics.mean_hold
        if longest <= patience * self.limit and not self.gated:
            return False
        position = self._queue.ahead_of(ticket)
        wait = self._estimate(self._ahead(position), position, ticket.terms.permits, now)
        return wait is not None and wait > patience

    def _estimate(self, ahead: float, position: int, permits: int, now: int) -> float | None:
        """Estimate the wait behind `position` tickets that ask for `ahead` permits.

        Permits come free at the rate limit / mean hold, the first of them when the holders, on
        average, have what is left of their mean hold behind them: docs/decisions/0003-estimate.md.
        """
        statistics = self._statistics
        statistics.digest()
        if self.paused or not statistics.can_estimate:
            return None
        mean = statistics.mean_hold
        left = mean / 2 if self._exclusive else 0.0
        if self.holders and not self._exclusive:
            some = list(itertools.islice(self.holders, _SOME))
            left = max(0.0, mean - now + sum(ticket.granted for ticket in some) / max(1, len(some)))
        wanted = (permits or self.limit) - 1
        return max(((ahead + wanted) * mean + left) / self.limit, float(self._opening(position) - now))

    def _expected_cost(self, ticket: Ticket) -> float:
        """Permit-ticks that a grant will cost, as far as one can tell."""
        return (ticket.terms.permits or self.limit) * self._statistics.mean_hold

    def _opening(self, position: int) -> int:
        """The tick before which the pace lets nobody in behind `position` others; 0: no pace."""
        rate = self.admission.rules.rate
        return 0 if rate is None else self._tat - rate.tolerance + position * rate.interval

    # --- the effects ---------------------------------------------------------------------------

    def _enqueue(self, ticket: Ticket, now: int) -> None:
        if self._order != self.admission.rules.order:
            self._read_rules()
        arrival = self._arrival + 1
        arrival = max(arrival, now)
        self._arrival = ticket.arrival = arrival
        ticket.partition = self
        ticket.state = "waiting"
        self._queue.add(ticket)
        self.waiting += 1
        terms = ticket.terms
        if not terms.plain:
            self._waiting_all += not terms.permits
            self._waiting_permits += terms.permits - 1
            if terms.lease:
                ticket.expires = now + terms.lease
                self._expiries.add(ticket.expires, arrival, ticket)
                self._leased[ticket.id] = ticket

    def _withdraw(self, ticket: Ticket) -> None:
        self.waiting -= 1
        self._queue.remove(ticket)
        self._waiting_all -= not ticket.terms.permits
        self._waiting_permits -= ticket.terms.permits - 1
        if ticket.terms.lease:
            self._forget_lease(ticket)

    def _forget_lease(self, ticket: Ticket) -> None:
        del self._leased[ticket.id]
        self._expiries.remove(ticket.expires, ticket.arrival)

    def _turn_away(self, ticket: Ticket, reason: Reason, now: int) -> None:
        """Refuse a ticket that waits."""
        self._withdraw(ticket)
        self._refuse(ticket, reason, now)

    def _refuse(self, ticket: Ticket, reason: Reason, now: int) -> None:
        ticket.state = "refused"
        ticket.reason = reason
        ticket.estimate = self.estimate(now)
        self._statistics.refused[reason] += 1

    def _grant_gated(self, ticket: Ticket, now: int) -> None:
        """What a grant means beyond a permit less and a token more."""
        permits = ticket.terms.permits
        self._waiting_permits -= permits - 1
        if permits == EXCLUSIVE:
            self._waiting_all -= 1
            self._exclusive = ticket
            self.gated = True
        else:
            self.room -= permits - 1
        rate = self.admission.rules.rate
        if rate is not None:
            self._tat = max(self._tat, now) + rate.interval
        self._queue.granted(ticket, self._expected_cost(ticket))

    def _release(self, ticket: Ticket, now: int) -> None:
        terms = ticket.terms
        self.holders.discard(ticket)
        ticket.ended = now
        if terms.lease:
            self._forget_lease(ticket)
        self._queue.released(ticket, (terms.permits or self.limit) * (now - ticket.granted))
        if terms.permits == EXCLUSIVE:
            self._exclusive = None
            self._read_rules()
        else:
            self.room += terms.permits - 1

    def _drop_expired(self, now: int) -> None:
        while self._expiries and self._expiries.first().expires <= now:
            ticket = self._expiries.first()
            if ticket.state == "held":
                self._release(ticket, now)
            else:
                self._withdraw(ticket)
            ticket.state = "lost"
            self.admission.changed.append(ticket)
        while self._tombstones and next(iter(self._tombstones.values())) <= now:
            self._tombstones.popitem(last=False)


class _Description(TypedDict):
    id: str
    key: str | None
    label: str
    owner: str
    tenant: str
    permits: int


def _by_grant(ticket: Ticket) -> int:
    return ticket.granted
