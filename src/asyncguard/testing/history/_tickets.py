"""Records put together: what became of each ticket, and of each process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from asyncguard.testing.history._record import OF_CLIENTS, OF_GUARDS
from asyncguard.testing.history._report import Violation
from asyncguard.testing.history._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asyncguard.testing.history._record import Record
    from asyncguard.testing.history._report import Rule

FOREVER: Final = 1 << 63
_ANSWERS = frozenset({"granted", "refused", "withdrawn"})
_ENDS = frozenset({"released", "lost"})
_AFTER_GRANT = frozenset({"working", "worked", "wrote", "stale"})


@final
class Ticket:
    """What was noted of a ticket; moments that weren't noted are `FOREVER`."""

    __slots__ = (
        "asking",
        "client",
        "ended",
        "granted",
        "id",
        "permits",
        "priority",
        "queued",
        "state",
        "token",
        "worked",
        "working",
        "writes",
    )

    def __init__(self, asking: Record) -> None:
        self.id = asking.ticket
        self.client = asking.client
        self.permits = asking.permits
        self.priority = asking.priority
        self.state = "asking"
        self.token = 0
        self.asking = asking.at
        self.queued = self.granted = self.working = self.worked = self.ended = FOREVER
        self.writes: list[int] = []
        """When the fenced store took something of it."""

    @property
    def is_open(self) -> bool:
        """Whether it waits or holds."""
        return self.ended == FOREVER

    def __str__(self) -> str:
        return f"{self.id!r}"


@final
class Partition:
    """One key of a guard: its tickets, in the order in which they asked."""

    def __init__(self, guard: str, key: str | None, settings: Settings) -> None:
        self.guard = guard
        self.key = key
        self.settings = settings
        self.tickets: list[Ticket] = []

    def violation(self, rule: Rule, at: int, message: str) -> Violation:
        """Say that a rule was broken here."""
        return Violation(rule=rule, at=at, guard=self.guard, key=self.key, message=message)


@final
class History:
    """All that was noted."""

    def __init__(self, records: Iterable[Record], limits: Mapping[str, int]) -> None:
        self.records = sorted(records, key=lambda record: record.at)
        self.partitions: dict[tuple[str, str | None], Partition] = {}
        self.violations: list[Violation] = []
        """What is wrong with the course of single tickets."""
        self.deaths: dict[str, int] = {}
        """Until when the processes that were killed lived for certain."""
        self.stops: dict[str, list[tuple[int, int]]] = {}
        """From when until when processes were stopped."""
        self.stale: list[tuple[Partition, Ticket, int]] = []
        """What a fenced store had to turn away."""
        self._limits = limits
        self._tickets: dict[str, tuple[Partition, Ticket]] = {}
        self._see_processes()
        settings = [record for record in self.records if record.kind in OF_GUARDS]
        for record in self.records:
            if record.ticket is not None:
                self._see(record)
        for partition in self.partitions.values():
            for record in settings:
                _set(partition, record)
        self._see_the_end()

    def _see_processes(self) -> None:
        killed = [record for record in self.records if record.kind == "killed"]
        self.deaths = {record.client: record.at for record in killed}
        for record in self.records:
            if record.kind not in OF_CLIENTS:
                if record.client in self.deaths:  # the signal takes a moment
                    self.deaths[record.client] = max(self.deaths[record.client], record.at)
            elif record.kind == "stopped":
                self.stops.setdefault(record.client, []).append((record.at, FOREVER))
            elif record.kind == "continued" and self.stops.get(record.client):
                since, _ = self.stops[record.client][-1]
                self.stops[record.client][-1] = (since, record.at)
        for client, death in self.deaths.items():
            self.stops[client] = [
                (since, min(until, death)) for since, until in self.stops.get(client, []) if since < death
            ]

    def was_stopped(self, client: str, since: int, until: int) -> int:
        """When a process was first stopped between two moments; `FOREVER`: never."""
        for stop, end in self.stops.get(client, ()):
            if end > since and stop < until:
                return max(stop, since)
        return FOREVER

    # --- the course of tickets -----------------------------------------------------------------

    def _see(self, record: Record) -> None:
        name = str(record.ticket)
        if record.kind == "asking":
            self._see_it_ask(record, name)
            return
        if name not in self._tickets:
            raise ValueError(f"ticket {name!r}: {record.kind!r} was noted of it, but not that it was asking")
        partition, ticket = self._tickets[name]
        wrong = self._step(ticket, record)
        if wrong:
            self.violations.append(partition.violation("end", record.at, f"ticket {ticket} {wrong}"))
        if record.kind == "stale":
            self.stale.append((partition, ticket, record.at))

    def _see_it_ask(self, record: Record, name: str) -> None:
        if name in self._tickets:
            raise ValueError(f"ticket {name!r}: it asked twice; each ticket needs a name of its own")
        guard = str(record.guard)
        if guard not in self._limits:
            raise ValueError(f"limits: expected one for guard {guard!r}, got {dict(self._limits)!r}")
        partition = self.partitions.get((guard, record.key))
        if partition is None:
            partition = Partition(guard, record.key, Settings(self._limits[guard]))
            self.partitions[guard, record.key] = partition
        ticket = Ticket(record)
        partition.tickets.append(ticket)
        self._tickets[name] = partition, ticket

    def _step(self, ticket: Ticket, record: Record) -> str:
        """Take a ticket further; what results says why that can't be."""
        kind, state = record.kind, ticket.state
        if kind == "queued":
            if state != "asking" or ticket.queued != FOREVER:
                return f"was queued when it was {state}"
            ticket.queued = record.at
        elif kind in _ANSWERS:
            if state != "asking":
                return f"was {kind} when it was {state}"
            ticket.state = kind
            if kind == "granted":
                ticket.granted = record.at
                ticket.token = record.token or 0
            else:
                ticket.ended = record.at
        elif kind in _ENDS:
            if state != "granted":
                return f"was {kind} when it was {state}"
            ticket.state = kind
            ticket.ended = record.at
        elif kind in _AFTER_GRANT:
            if ticket.granted == FOREVER:
                return f"was {kind} without having been granted"
            _note_work(ticket, record)
        return ""

    def _see_the_end(self) -> None:
        last = self.records[-1].at if self.records else 0
        for partition in self.partitions.values():
            for ticket in partition.tickets:
                death = self.deaths.get(ticket.client)
                if ticket.is_open and death is None:
                    what = "never answered" if ticket.state == "asking" else "neither released nor lost"
                    message = f"ticket {ticket} was {what}, though its process wasn't killed"
                    self.violations.append(partition.violation("end", last, message))
                elif ticket.is_open and death is not None:
                    ticket.ended = death
                    ticket.state = "killed"
                if ticket.working != FOREVER and ticket.worked == FOREVER and death is not None:
                    ticket.worked = death


def _note_work(ticket: Ticket, record: Record) -> None:
    if record.kind == "working":
        ticket.working = min(ticket.working, record.at)
    elif record.kind == "worked":
        ticket.worked = record.at
    elif record.kind == "wrote":
        ticket.writes.append(record.at)


def _set(partition: Partition, record: Record) -> None:
    """Have what an operator did stand where it was meant for."""
    if record.guard != partition.guard or record.key not in (None, partition.key):
        return
    settings = partition.settings
    of_key = record.key is not None
    if record.kind in ("limiting", "limited"):
        limit = settings.limit_of_key if of_key else settings.limit_of_all
        (limit.begin if record.kind == "limiting" else limit.end)(record.client, record.limit, record.at)
    else:
        pause = settings.pause_of_key if of_key else settings.pause_of_all
        begins = record.kind in ("pausing", "resuming")
        (pause.begin if begins else pause.end)(record.client, record.kind.startswith("paus"), record.at)
