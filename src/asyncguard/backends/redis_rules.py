"""How the rules on a Redis or Valkey server are called: what is sent, and what the answers mean.

`redis.lua` decides, as `asyncguard.admission` does. Here is no connection, and no I/O: whoever has a
connection sends a `Call` with `EVALSHA SHA 1 key *args`, gives what comes back to `RedisRules.read`, and
sends what the answer's `more` holds at once. What other clients decide upon this client's tickets comes
as messages on the channels that `RedisRules.channel` names.
"""

# ruff: noqa: SLF001 - what is stored is put back into the rules' own objects to be pictured

from __future__ import annotations

import hashlib
import json
import math
import pkgutil
import re
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast, final
from urllib.parse import quote, unquote

from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.backends.restored import (
    StoredTicket,
    restore_partition,
    restore_rules,
    restore_tenant,
    restore_ticket,
)
from asyncguard.clock import TICKS_PER_MICROSECOND
from asyncguard.ticket import Declaration, Outlook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asyncguard.admission import Setting
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Order, Rules, State, Terms, Ticket

SCRIPT: Final = (pkgutil.get_data("asyncguard.backends", "redis.lua") or b"").decode()
SHA: Final = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
MOST_RENEWED: Final = 500
"""Tickets that one call renews: all of them are there while the server does nothing else."""

_MOST_HEADS: Final = 1000
_read_json: Final = json.JSONDecoder().raw_decode


class Call(NamedTuple):
    """One run of the script, to be sent as `EVALSHA SHA 1 key *args`."""

    key: str
    args: tuple[str, ...]


class Row(NamedTuple):
    """What was decided about a ticket. Moments are microseconds since 1970; 0 where there is none."""

    id: str
    state: str
    """That of a ticket; or `gone`: the server knows nothing of it any more."""
    arrival: int
    granted: int
    ended: int
    reason: str
    outlook: Outlook | None


class Answer(NamedTuple):
    """What came of a call."""

    more: list[Call]
    """What is to be sent at once: the step did all that one may."""
    due: int | None
    """The tick of the client's clock at which to send `advance`, as time alone moves the guard then."""
    standing: Rules | None
    """The rules that stand, where they aren't those declared."""
    rows: list[Row]
    """What the call asked for: of `enter`, `leave` and `evict` the ticket, of `renew` each."""
    decided: list[Row]
    """Other tickets that the step decided upon; their clients are told, but for the one that called."""
    now: int
    """The tick at which the guard's clock took the step: from there to `due` is how long one may wait."""


@final
class RedisRules:
    """What one client sends, and how it reads what comes back.

    `epoch` are the ticks from 1970 to the beginning of the client's clock: tickets have its times.
    `now` is for tests: a clock to be used instead of the server's, in microseconds since 1970.
    """

    def __init__(
        self,
        namespace: str,
        client: str,
        epoch: int,
        *,
        cluster: bool = False,
        now: Callable[[], int] | None = None,
    ) -> None:
        self.namespace = namespace
        self.client = client
        """The part of its tickets' ids before the first dot."""
        self.epoch = epoch
        self._ring = "SPUBLISH" if cluster else "PUBLISH"
        self._now = now
        self._heads: dict[int, tuple[Declaration, str, tuple[str, ...]]] = {}
        """What calls begin with, by the identity of a declaration, which is kept with it."""

    # --- what is sent --------------------------------------------------------------------------

    def base(self, guard: str) -> str:
        """Name a guard's first key, with which all its others begin."""
        return f"asyncguard:{{{quote(self.namespace, '')}/{quote(guard, '')}}}"

    @property
    def guards(self) -> str:
        """Write the pattern of the keys by which the guards of the namespace are found."""
        return f"asyncguard:{{{quote(self.namespace, '')}/*}}:g"

    def guard_of(self, key: bytes) -> str | None:
        """Tell the name of the guard that such a key is of."""
        found = re.fullmatch(r"asyncguard:\{([^/]*)/(.*)\}:g", key.decode())
        return unquote(found[2]) if found and unquote(found[1]) == self.namespace else None

    def channel(self, guard: str) -> str:
        """Name the channel on which this client hears what others' steps decided in a guard."""
        return f"{self.base(guard)}:c:{self.client}"

    def enter(self, ticket: Ticket, *, wait: bool = True, since: int | None = None) -> Call:
        """Grant at once, queue, or refuse with a reason; sent again, it gets its first answer again.

        With `wait=False` a ticket that can't be granted at once leaves no trace and stays new. `since` is
        the tick at which it had arrived, where the server has forgotten that it waits: it keeps its place.
        """
        terms = ticket.terms
        asked = terms.place  # the same for all tickets that ask the same
        if asked is None:
            asked = terms.place = _ask(terms)
        back = "" if since is None else str((since + self.epoch) // TICKS_PER_MICROSECOND)
        key, head = self._head(terms.guard)
        waits = "1" if wait else "0"
        return Call(key, ("enter", *head, str(ticket.id), _encode(ticket.key), *asked, waits, back))

    def leave(self, ticket: Ticket, reason: Reason | None = None, *, finished: bool = True) -> Call:
        """Release if held, withdraw if waiting; idempotent, and a late enter finds that it left."""
        terms = ticket.terms
        lease = str(terms.lease // TICKS_PER_MICROSECOND)
        key, head = self._head(terms.guard)
        ended = "1" if finished else "0"
        return Call(key, ("leave", *head, str(ticket.id), _encode(ticket.key), lease, reason or "", ended))

    def renew(self, declaration: Declaration, ids: Sequence[int | str]) -> Call:
        """Extend the leases of at most `MOST_RENEWED` tickets of one guard; their rows say who is left."""
        return self._call(declaration, "renew", *ids)

    def advance(self, declaration: Declaration, keys: Iterable[str | None]) -> Call:
        """See to what time has brought: to leases that ended in the whole guard, and to these keys' pace."""
        return self._call(declaration, "advance", *map(_encode, keys))

    def evict(self, declaration: Declaration, ticket_id: str) -> Call:
        """Take a ticket out, waiting or held; there is no row where it isn't there."""
        return self._call(declaration, "evict", ticket_id)

    def configure(
        self, declaration: Declaration, key: str | None, *, limit: Setting = KEEP, paused: bool | None = None
    ) -> Call:
        """Set what an operator decides for a key; None: for all. A limit of None clears it."""
        shut = KEEP if paused is None else str(int(paused))
        return self._call(declaration, "configure", _encode(key), "" if limit is None else limit, shut)

    def declare(self, declaration: Declaration, *, force: bool = False) -> Call:
        """Declare a guard's rules, as each call does; with `force` they stand, whatever their revision."""
        return self._call(declaration, "declare", int(force))

    def inspect(self, declaration: Declaration, key: str | None) -> Call:
        """Ask for all that `picture` needs; key None: for the guard with all its keys."""
        return self._call(declaration, "inspect", "*" if key is None else _encode(key))

    def is_full(self, declaration: Declaration, key: str | None, permits: int) -> Call:
        """Ask whether the permits held keep out one that asks for so many, or the first in line: b"1"."""
        return self._call(declaration, "is_full", _encode(key), permits)

    def _call(self, declaration: Declaration, operation: str, *needs: object) -> Call:
        key, head = self._head(declaration)
        return Call(key, (operation, *head, *map(str, needs)))

    def _head(self, declaration: Declaration) -> tuple[str, tuple[str, ...]]:
        """Name the key, and what each call on a guard begins with, after the operation."""
        known = self._heads.get(id(declaration))
        if known is None or known[0] is not declaration:
            if len(self._heads) > _MOST_HEADS:
                self._heads.clear()
            text = _as_text(declaration.rules)
            head: tuple[str, ...] = ("", self.client, self._ring, text)
            known = self._heads[id(declaration)] = declaration, self.base(declaration.name), head
        _, key, head = known
        return key, head if self._now is None else (str(self._now()), *head[1:])

    # --- what comes back -----------------------------------------------------------------------

    def read(self, call: Call, answer: Sequence[Any]) -> Answer:
        """Read the answer to a call, but for `inspect` and `is_full`."""
        more, due, standing, rows, decided, now = answer
        return Answer(
            [Call(call.key, (_text(name), *call.args[1:5], *map(_text, rest))) for name, *rest in more],
            self._tick(int(due)) if due else None,
            _as_rules(_text(standing)) if standing else None,
            [_read_row(_read_json(_text(row))[0]) for row in rows],
            [_read_row(_read_json(_text(row))[0]) for row in decided],
            self._tick(int(now)),
        )

    def read_message(self, message: bytes | str) -> list[Row]:
        """Read what comes on a channel."""
        return [_read_row(row) for row in json.loads(message)]

    def write(self, ticket: Ticket, row: Row) -> None:
        """Write into a ticket what was decided about it."""
        ticket.state = cast("State", row.state)
        if row.arrival:
            ticket.arrival = self._tick(row.arrival)
        if row.granted:
            ticket.granted = self._tick(row.granted)
        if row.ended:
            ticket.ended = self._tick(row.ended)
        if row.reason and row.outlook is not None:
            ticket.reason = cast("Reason", row.reason)
            ticket.outlook = row.outlook

    def picture(self, declaration: Declaration, key: str | None, answer: Sequence[Any]) -> Snapshot:
        """Picture what `inspect` was answered, as the rules do."""
        now, declared, override, paused, granted, mean, refused, ring, partitions, tickets, tenants = answer
        admission = Admission(Declaration(declaration.name, _as_rules(_text(declared))), self.epoch)
        admission.limit = int(override) if override else None
        admission.paused = _text(paused) == "1"
        statistics = admission.statistics
        statistics.mean_hold = float(mean)
        for reason, count in zip(refused[::2], refused[1::2], strict=True):
            statistics.refused[cast("Reason", _text(reason))] = int(count)
        for wait, hold in struct.iter_unpack("<dd", ring):
            statistics.waits.append(int(wait))
            statistics.holds.append(int(hold))
        restored: dict[str | None, Partition] = {}
        for row in partitions:
            of, order, limit, shut, tat = map(_text, row)
            restored[_decode(of)] = restore_partition(
                admission,
                _decode(of),
                cast("Order", order),
                int(limit) if limit else None,
                shut == "1",
                self._tick(int(tat)),
            )
        for row in sorted(tickets, key=lambda row: int(row[5])):
            self._restore(restored, *map(_text, row))
        for of, name, tag, share in tenants:
            restore_tenant(restored[_decode(_text(of))], unquote(_text(name)), float(tag), float(share))
        held = sum(len(partition.holders) for partition in restored.values())
        statistics._ended = int(granted) - held
        if key is None:
            return admission.inspect(self._tick(int(now)))
        return (restored.get(key) or Partition(admission, key)).inspect(self._tick(int(now)))

    def declared_in(self, answer: Sequence[Any]) -> Rules:
        """Read the rules that stand from what `inspect` was answered."""
        return _as_rules(_text(answer[1]))

    def _restore(
        self,
        restored: dict[str | None, Partition],
        ticket_id: str,
        key: str,
        state: str,
        permits: str,
        priority: str,
        arrival: str,
        granted: str,
        share: str,
        tenant: str,
        label: str,
        owner: str,
    ) -> None:
        stored = StoredTicket(
            ticket_id,
            cast("State", state),
            int(permits),
            int(priority) * TICKS_PER_MICROSECOND,
            self._tick(int(arrival)),
            self._tick(int(granted)),
            float(share),
            unquote(tenant),
            label,
            owner,
        )
        restore_ticket(restored[_decode(key)], stored)

    def _tick(self, moment: int) -> int:
        return moment * TICKS_PER_MICROSECOND - self.epoch


def _ask(terms: Terms) -> tuple[str, ...]:
    """Write what tickets ask for, in the order in which the script takes it."""
    return (
        str(terms.lease // TICKS_PER_MICROSECOND),
        str(terms.permits),
        "" if terms.patience is None else str(terms.patience),
        str(terms.priority // TICKS_PER_MICROSECOND),
        quote(terms.tenant, ""),
        repr(terms.share),
        terms.label,
        terms.owner,
        "" if terms.within is None else str(terms.within),
    )


def _encode(key: str | None) -> str:
    return "" if key is None else quote(key, "")


def _decode(key: str) -> str | None:
    return unquote(key) if key else None


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _read_row(row: list[str]) -> Row:
    ticket_id, state, arrival, granted, ended, reason, wait, waiting, limit = row
    outlook = Outlook(float(wait) if wait else None, int(waiting), int(limit)) if limit else None
    return Row(ticket_id, state, int(arrival), int(granted), int(ended), reason, outlook)


def _as_text(rules: Rules) -> str:
    rate = rules.rate
    paced: list[Any] = [None, None]
    if rate is not None:
        paced = [[rate.n, rate.per, rate.burst], math.ceil(rate.interval / TICKS_PER_MICROSECOND)]
    declared = [rules.revision, rules.limit, rules.max_waiting, rules.order, rules.max_keys, *paced]
    return json.dumps(declared, separators=(",", ":"))


def _as_rules(text: str) -> Rules:
    revision, limit, max_waiting, order, max_keys, rate, _ = json.loads(text)
    return restore_rules(revision, limit, max_waiting, order, max_keys, rate)
