"""The rules of admission in an SQLite file: what the SQLite backend calls, synchronously.

`sqlite.sql` decides, as `asyncguard.admission` does; here is one method for each operation. It runs
the one statement that is the operation, and after the commit reads what came of it.
"""

# ruff: noqa: SLF001 - what is stored is put back into the rules' own objects to be pictured

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, final

from asyncguard.admission import KEEP, Admission, Partition
from asyncguard.backends.restored import (
    StoredTicket,
    restore_partition,
    restore_rules,
    restore_tenant,
    restore_ticket,
)
from asyncguard.ticket import EXCLUSIVE, Declaration, Outlook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from asyncguard.admission import Setting
    from asyncguard.backends.lives import Lives
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Rules, Ticket

VERSION: Final = 2
"""Of the schema; another one's file is not opened."""
BITS: Final = 36
"""A ticket's id is its client's number, shifted by so many bits, plus a number of the client's own."""
MOST_GRANTS: Final = 400
"""Tickets that one statement grants at most in a partition."""
_SPIN_NS = 1_000_000
_NAP = 0.000_2

# What is None, or true or false, goes there as a number: Python looks for an adapter of each, for 0.3 us.
_NONE: Final = -1
_ENTER = "INSERT INTO op_enter VALUES (?,?,nullif(?,-1),?,nullif(?,-1),?,?,?,?,nullif(?,-1),?,?)"
_LEAVE = "INSERT INTO op_leave VALUES (?,nullif(?,-1),?,?,?)"
_ADVANCE = "INSERT INTO op_advance VALUES (?,?,?)"
_EVICT = "INSERT INTO op_evict VALUES (?,?,?,?)"
_CONFIGURE = "INSERT INTO op_configure VALUES (?,?,?,?,?,?,?)"
_DECLARE = "INSERT INTO op_declare VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
_BURY = "INSERT INTO op_bury VALUES (?,?,?)"
_FORGET = "DELETE FROM ticket WHERE id = ? AND state IN ('refused', 'lost')"
_ANSWER = "state, arrival, granted, ended, reason, foreseen, met_waiting, met_capacity"
_STATE = "SELECT state, arrival, granted FROM ticket WHERE id = ?"
_READ = f"SELECT {_ANSWER} FROM ticket WHERE id = ?"  # noqa: S608
_NEWS = "SELECT granted, id, state, arrival FROM ticket WHERE client = ? AND decided_by IS NOT NULL"
_DECIDED = "SELECT client FROM ticket WHERE decided_by = ?"
_DECIDED_IN = "SELECT DISTINCT partition FROM ticket WHERE decided_by = ?"
_DUE = """
    SELECT CASE WHEN waiting > 0 AND NOT shut AND opening > ? THEN opening END
    FROM gate WHERE guard = ? AND key IS ?
"""
_GUARD = "SELECT id, declared FROM guard WHERE name = ?"
_GUARDS = "SELECT name, declared FROM guard WHERE substr(name, 1, ?) = ? ORDER BY name"
_PICTURE_GUARD = """
    SELECT id, declared, override, paused, ended, mean_hold, batches, batch_text FROM guard WHERE name = ?
"""
_PICTURE_REFUSALS = "SELECT reason, count FROM refusal WHERE guard = ?"
_PICTURE_RECENT = """
    SELECT batch_text FROM recent WHERE id BETWEEN ? * 64 AND ? * 64 + 63 ORDER BY (id + 64 - ? % 64) % 64
"""
_PICTURE_PARTITIONS = """
    SELECT id, key, ordering, override, paused, tat, holders FROM partition
    WHERE guard = ? AND (idle_from IS NULL OR idle_from > ?) ORDER BY id
"""
_PICTURE_TICKETS = """
    SELECT
        t.partition, t.id, t.state, t.permits, iif(p.ordering = 'lifo', 0, t.arrival - t.score), t.arrival,
        t.granted, t.share, t.tenant, t.label, coalesce(c.owner, '')
    FROM ticket AS t JOIN partition AS p ON p.id = t.partition LEFT JOIN client AS c ON c.id = t.client
    WHERE t.guard = ? AND t.state IN ('waiting', 'held') ORDER BY t.arrival
"""
_PICTURE_TENANTS = "SELECT name, tag, share FROM tenant WHERE partition = ? AND waiting > 0"
_ROOM = """
    SELECT held, capacity, (SELECT permits FROM head WHERE head.partition = gate.partition)
    FROM gate WHERE guard = ? AND key IS ?
"""
_PRESENT = "SELECT id FROM ticket WHERE id BETWEEN ? AND ? AND state IN ('waiting', 'held')"
_PARTITION = "SELECT id FROM partition WHERE guard = ? AND key IS ?"

_give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))


class StoreBusy(Exception):
    """Another process holds the file's write lock for longer than one may wait for it here."""


NOBODY: Final[frozenset[int]] = frozenset()


@final
class Store:
    """One connection to the file; for one thread at a time.

    Each operation gives the numbers of the clients whose tickets it decided upon, besides the ticket
    that it was called for: they are to be rung, so that they read their news.

    Nothing here waits, but for the write lock: while another process is inside a statement, at most
    `patience` seconds; then it raises `StoreBusy`, having done nothing, and may be called again.
    """

    def __init__(self, path: str | os.PathLike[str], *, epoch: int, patience: float = 0.001) -> None:
        self.patience = patience
        """Seconds; beyond the first millisecond it sleeps, so only a thread of its own should have more."""
        self.connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=64, timeout=patience
        )
        self._execute = self.connection.cursor().execute
        try:
            self._prepare(epoch)
        except BaseException as error:
            self.connection.close()
            if isinstance(error, sqlite3.OperationalError) and _is_busy(error):
                raise StoreBusy(StoreBusy.__doc__) from None
            raise
        self.epoch: int = self._execute("SELECT epoch FROM store").fetchone()[0]
        """Ticks to add to the clock's for those since 1970; the same for all who open the file."""

    def _prepare(self, epoch: int) -> None:
        self._check_schema()  # before anything is changed
        # Permits don't outlive the host's uptime, so nothing is synced: a crash of a process loses
        # nothing, and after one of the host there is nothing worth keeping. Small pages make short
        # commits: each writes whole ones.
        for pragma in (
            "page_size = 512",
            "journal_mode = WAL",
            "synchronous = OFF",
            "recursive_triggers = ON",
            "secure_delete = OFF",
            "temp_store = MEMORY",
            "wal_autocheckpoint = 0",  # see tidy
        ):
            self._execute(f"PRAGMA {pragma}")
        if self._version() == 0:
            schema = resources.files("asyncguard.backends").joinpath("sqlite.sql").read_text("utf-8")
            try:
                self.connection.executescript(f"BEGIN IMMEDIATE; {schema}; COMMIT")
            except sqlite3.OperationalError:  # another process was faster, or it can't be written
                if self.connection.in_transaction:
                    self._execute("ROLLBACK")
                if self._version() == 0:
                    raise
        self._check_schema()
        self._execute("INSERT OR IGNORE INTO store (id, lives, boot, epoch) VALUES (1, '', '', ?)", (epoch,))
        self._execute("PRAGMA busy_timeout = 0")

    def _check_schema(self) -> None:
        """See that the file is empty, or made by this version.

        Raises:
            ValueError: it isn't.
        """
        self._execute("BEGIN")  # another process may be making the schema
        try:
            version = self._version()
            tables = {name for (name,) in self._execute("SELECT name FROM sqlite_schema").fetchall()}
        finally:
            self._execute("ROLLBACK")
        if version not in (0, VERSION):
            raise ValueError(
                f"expected schema version {VERSION}, found {version}: another version of AsyncGuard made it, "
                "or another application, so give this one another file"
            )
        if tables and (version == 0 or "op_enter" not in tables):
            raise ValueError("it is the database of another application: give guards a file of their own")

    def _version(self) -> int:
        return int(self._execute("PRAGMA user_version").fetchone()[0])

    def _run(self, sql: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        """Run a statement, giving way to another process that is inside one."""
        began = 0
        while True:
            try:
                return self._execute(sql, values)
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
            now = time.monotonic_ns()
            began = began or now
            if now - began > self.patience * 1e9:
                raise StoreBusy(StoreBusy.__doc__)
            if now - began < _SPIN_NS:
                _give_way()
            else:
                time.sleep(_NAP)

    # --- who asks, and for what ----------------------------------------------------------------

    def register(
        self, client: int, owner: str, process: tuple[int, int], hold: Callable[[int], object]
    ) -> None:
        """Become a client by a number that nobody has; before anybody sees it, `hold` says that it lives.

        A process is its id and the namespace that this is of.
        """
        with self._transaction():
            self._execute("INSERT INTO client VALUES (?, ?, ?, ?)", (client, owner, *process))
            hold(client)

    def clients(self) -> dict[int, tuple[int, int]]:
        """List the clients, with their processes."""
        rows = self._run("SELECT id, pid, pids FROM client", ()).fetchall()
        return {client: (pid, pids) for client, pid, pids in rows}

    def tidy(self) -> None:
        """Move what was written from the log into the file, and have the log begin anew.

        Only one may do so at a time, of all who have the file open. Nothing is synced, so this takes some
        20 us where it is done often. A log that grows makes all steps slower, and one that others write to
        meanwhile never begins anew.
        """
        # SQLite before 3.51.3 loses commits where a log that was moved already begins anew just as somebody
        # is about to move it (https://sqlite.org/wal.html#walresetbug). After this commit, which changes
        # nothing, there is something to move, and nobody else moves it: until then it can't begin anew.
        self._run(f"PRAGMA user_version = {VERSION}", ())
        self._execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def begin(self, boot: str, lives: Lives, epoch: int, now: int) -> None:
        """Forget all that was before the host's last boot, when its clock began anew.

        Raises:
            ValueError: there are clients of another boot, and so of another host; or nobody can tell who
                lives, as the file that says it was replaced.
        """
        with self._transaction():
            before, known, old_epoch = self._execute("SELECT boot, lives, epoch FROM store").fetchone()
            clients = [client for (client,) in self._execute("SELECT id FROM client").fetchall()]
            if before == boot and known != lives.identity and clients:
                raise ValueError(
                    "the file of the same name with -lives was deleted or replaced, so that nobody can tell "
                    "which of the processes that use it live: end them all, and delete both"
                )
            if before != boot:
                if any(lives.is_alive(client) for client in clients):
                    raise ValueError(
                        "processes of another host use it, too: each host needs a file of its own, or a "
                        "backend for several hosts"
                    )
                last = self._execute(
                    "SELECT max(next_grant) FROM partition UNION ALL SELECT max(floor) FROM guard"
                ).fetchall()
                latest = max((ticks for (ticks,) in last if ticks), default=0) + old_epoch
                for table in (
                    "ticket",
                    "tenant",
                    "partition",
                    "recent",
                    "refusal",
                    "guard",
                    "declaration",
                    "client",
                ):
                    self._execute(f"DELETE FROM {table}")  # noqa: S608
                # Tokens grow on, also if the time of day went back meanwhile.
                self.epoch = max(epoch, latest - now) if before else old_epoch
                self._execute("UPDATE store SET boot = ?, epoch = ?", (boot, self.epoch))
            else:
                self.epoch = old_epoch
            self._execute("UPDATE store SET lives = ?", (lives.identity,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE", ())
        try:
            yield
        except BaseException:
            self._execute("ROLLBACK")
            raise
        self._execute("COMMIT")

    def is_full_for(self, guard: int, key: str | None, permits: int) -> bool:
        """Whether the permits that are held keep out one that asks for so many, or the first in line."""
        row = self._run(_ROOM, (guard, key)).fetchone()
        if row is None:
            return False
        held, capacity, first = row
        asked = [permits] if first is None else [first, permits]
        return any(held > 0 if one == EXCLUSIVE else held + one > capacity for one in asked)

    def declare(
        self, declaration: Declaration, now: int, step: int, *, force: bool = False
    ) -> tuple[int, Rules]:
        """Declare a guard: give its number and the rules that stand, which may be another's.

        Those of the highest revision stand, and of one revision those that came first, while a client
        lives that declared them; with `force` these, whatever their revision.
        """
        rules = declaration.rules
        rate = rules.rate
        values = (
            declaration.name,
            _as_text(rules),
            rules.revision,
            rules.limit,
            rules.max_waiting,
            rules.order,
            rate.interval if rate else None,
            rate.burst if rate else 1,
            rules.max_keys,
            force,
            now,
            step,
        )
        self._run(_DECLARE, values)
        guard, declared = self._run(_GUARD, (declaration.name,)).fetchone()
        return guard, _as_rules(declared)

    # --- the operations ------------------------------------------------------------------------

    def enter(self, ticket: Ticket, guard: int, now: int, wait: bool = True) -> frozenset[int]:
        """Grant at once, queue, or refuse with a reason; sent again, it gets its first answer again.

        With `wait=False` a ticket that can't be granted at once leaves no trace and stays new.
        """
        terms = ticket.terms
        values = (
            ticket.id,
            guard,
            _NONE if ticket.key is None else ticket.key,
            terms.permits,
            _NONE if terms.patience is None else terms.patience,
            terms.priority,
            terms.tenant,
            terms.share,
            terms.label,
            _NONE if terms.within is None else terms.within,
            1 if wait else 0,
            now,
        )
        self._run(_ENTER, values)
        row = self._run(_STATE, (ticket.id,)).fetchone()
        if row is None:
            return self.decided(ticket.id, now)
        state, ticket.arrival, granted = row
        if state == "held":
            ticket.granted = granted
            ticket.state = state
            if granted <= now:  # the first to be granted, so nobody else fits since
                return NOBODY
        elif state == "waiting":
            ticket.state = state
        else:
            self.read(ticket)
        return self.decided(ticket.id, now)

    def leave(
        self, ticket: Ticket, now: int, reason: Reason | None = None, *, finished: bool = True
    ) -> frozenset[int]:
        """Release if held, withdraw if waiting; idempotent.

        `reason` is why a waiting ticket gives up, where it isn't simply withdrawn. A ticket that was
        refused or lost meanwhile is told so.
        """
        self._run(_LEAVE, (ticket.id, reason or _NONE, 1 if finished else 0, now, ticket.id))
        if ticket.state == "held":
            ticket.state = "released"
            ticket.ended = now
        elif ticket.state == "waiting":
            ticket.state = "withdrawn"
            self.read(ticket)
        return self.decided(ticket.id, now)

    def advance(self, partition: int, now: int, step: int) -> frozenset[int]:
        """Grant in order while permits are free."""
        self._run(_ADVANCE, (partition, now, step))
        return self.decided(step, now)

    def evict(self, guard: int, ticket_id: int, now: int, step: int) -> frozenset[int]:
        """Take a ticket out, waiting or held."""
        self._run(_EVICT, (guard, ticket_id, now, step))
        return self.decided(step, now)

    def configure(
        self,
        guard: int,
        key: str | None,
        now: int,
        step: int,
        *,
        limit: Setting = KEEP,
        paused: bool | None = None,
    ) -> frozenset[int]:
        """Set what an operator decides for a key; None: for all. A limit of None clears it."""
        keep = limit == KEEP
        self._run(_CONFIGURE, (guard, key, None if keep else limit, keep, paused, now, step))
        return self.decided(step, now)

    def bury(self, client: int, now: int, step: int) -> frozenset[int]:
        """Have all tickets of a dead client leave."""
        clients: set[int] = set()
        while self._run("SELECT 1 FROM client WHERE id = ?", (client,)).fetchone():
            self._run(_BURY, (client, now, step))
            clients |= self.decided(step, now)
        return frozenset(clients - {client})

    # --- what came of it -----------------------------------------------------------------------

    def decided(self, step: int | str, now: int) -> frozenset[int]:
        """Whom a step decided upon, having finished it if that was too much for one statement."""
        rows = self._run(_DECIDED, (step,)).fetchall()
        if not rows:
            return NOBODY
        while len(rows) >= MOST_GRANTS:
            for (partition,) in self._run(_DECIDED_IN, (step,)).fetchall():
                self._run(_ADVANCE, (partition, now, step))
            before, rows = rows, self._run(_DECIDED, (step,)).fetchall()
            if len(rows) == len(before):
                break
        return frozenset(client for (client,) in rows)

    def read(self, ticket: Ticket) -> bool:
        """Write into a ticket what was decided; False where nothing of it is stored."""
        row = self._run(_READ, (ticket.id,)).fetchone()
        if row is not None:
            _answer(ticket, row)
        return row is not None

    def news(self, client: int, tickets: Mapping[Any, Ticket]) -> list[Ticket]:
        """Write into a client's tickets what the steps of others decided; give those that changed."""
        changed = []
        rows = self._run(_NEWS, (client,)).fetchall()
        rows.sort(key=lambda row: row[0] or 0)
        for granted, ticket_id, state, arrival in rows:
            ticket = tickets.get(ticket_id)
            if ticket is not None and ticket.state != state:
                changed.append(ticket)
                if state == "held":
                    ticket.arrival = arrival
                    ticket.granted = granted
                    ticket.state = state
                else:
                    self.read(ticket)
        return changed

    def present(self, client: int) -> list[int]:
        """List a client's tickets that wait or hold, by id."""
        first = client << BITS
        return [ticket for (ticket,) in self._run(_PRESENT, (first, first + (1 << BITS) - 1)).fetchall()]

    def drop(self, ticket_id: int, now: int) -> frozenset[int]:
        """Leave for a ticket that its client doesn't know."""
        self._run(_LEAVE, (ticket_id, _NONE, 0, now, ticket_id))
        return self.decided(ticket_id, now)

    def forget(self, tickets: Iterable[Ticket]) -> None:
        """Delete tickets that were refused or lost, once their client knows."""
        for ticket in tickets:
            self._run(_FORGET, (ticket.id,))

    def is_paced(self, guard: int) -> bool:
        """Whether time has a say in when a guard's tickets are granted."""
        return bool(self._run("SELECT pace IS NOT NULL FROM guard WHERE id = ?", (guard,)).fetchone()[0])

    def due(self, guard: int, key: str | None, now: int) -> int | None:
        """The tick at which a key's queue next moves by time alone; None: never."""
        row = self._run(_DUE, (now, guard, key)).fetchone()
        return None if row is None else row[0]

    def partition(self, guard: int, key: str | None) -> int | None:
        """The number of a key's partition; None where it isn't in use."""
        row = self._run(_PARTITION, (guard, key)).fetchone()
        return None if row is None else row[0]

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def guards(self, prefix: str) -> list[Declaration]:
        """List the guards whose names begin so, with the rules that stand."""
        rows = self._run(_GUARDS, (len(prefix), prefix)).fetchall()
        return [Declaration(name, _as_rules(declared)) for name, declared in rows]

    # --- pictures ------------------------------------------------------------------------------

    def inspect(self, name: str, key: str | None, now: int) -> Snapshot:
        """Picture one key; None: the guard with all its keys.

        It looks at every ticket there is, of other guards too: of one's holders there is no index,
        which each ticket would pay for.
        """
        self._run("BEGIN", ())
        try:
            admission = self._restore(name, key, now)
        finally:
            self._run("COMMIT", ())
        if key is None:
            return admission.inspect(now)
        return (admission.partitions.get(key) or Partition(admission, key)).inspect(now)

    def _restore(self, name: str, key: str | None, now: int) -> Admission:
        """Make the rules' own objects of what is stored of a guard; of one key's partition, or of all."""
        row = self._run(_PICTURE_GUARD, (name,)).fetchone()
        guard, declared, override, paused, ended, mean, batches, latest = row
        admission = Admission(Declaration(name, _as_rules(declared)), self.epoch)
        admission.limit = override
        admission.paused = bool(paused)
        statistics = admission.statistics
        statistics.mean_hold = mean
        statistics.refused.update(self._run(_PICTURE_REFUSALS, (guard,)).fetchall())
        earlier = self._run(_PICTURE_RECENT, (guard, guard, batches)).fetchall()
        recent = [int(ticks) for (text,) in (*earlier, (latest,)) for ticks in text.split()]
        statistics.waits.extend(recent[::2])
        statistics.holds.extend(recent[1::2])
        restored = {}
        for row in self._run(_PICTURE_PARTITIONS, (guard, now)).fetchall():
            if key is None or row[1] == key:
                number, of, order, limit, shut, tat, _ = row
                restored[number] = restore_partition(admission, of, order, limit, bool(shut), tat)
            else:
                ended += row[6]
        statistics._ended = ended
        for number, *row in self._run(_PICTURE_TICKETS, (guard,)).fetchall():
            if number in restored:
                restore_ticket(restored[number], StoredTicket(*row))
        for number, partition in restored.items():
            for tenant in self._run(_PICTURE_TENANTS, (number,)).fetchall():
                restore_tenant(partition, *tenant)
        return admission


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _answer(ticket: Ticket, row: Any) -> None:
    """Write a decision into its ticket."""
    state, arrival, granted, ended, reason, foreseen, waiting, capacity = row
    ticket.state = state
    ticket.arrival = arrival
    if granted is not None:
        ticket.granted = granted
    if ended is not None:
        ticket.ended = ended
    if reason is not None:
        ticket.reason = reason
        ticket.outlook = Outlook(foreseen, waiting, capacity)


def _as_text(rules: Rules) -> str:
    rate = rules.rate and [rules.rate.n, rules.rate.per, rules.rate.burst]
    return json.dumps(
        [rules.limit, rules.max_waiting, rules.order, rate, rules.max_keys, rules.revision],
        separators=(",", ":"),
    )


def _as_rules(text: str) -> Rules:
    limit, max_waiting, order, rate, max_keys, revision = json.loads(text)
    return restore_rules(revision, limit, max_waiting, order, max_keys, rate)
