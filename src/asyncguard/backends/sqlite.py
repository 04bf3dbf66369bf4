"""One host, many processes: partitions in an SQLite file, decided upon by the rules in `sqlite.sql`."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import secrets
import socket
import sqlite3
import stat
import threading
import weakref
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, final
from urllib.parse import quote

from asyncguard.admission import KEEP
from asyncguard.backends.bell import Bell
from asyncguard.backends.lives import Lives
from asyncguard.backends.porter import FAULTS, PATIENCE, Porter, unavailable
from asyncguard.backends.sqlite_store import BITS, Store, StoreBusy
from asyncguard.backends.system import boot_id, mounts, process_namespace
from asyncguard.clock import TICKS, ClockElsewhere
from asyncguard.errors import BackendUnavailable
from asyncguard.permit import Permit
from asyncguard.ticket import Outlook

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Awaitable, Callable, Iterable

    from asyncguard.admission import Setting
    from asyncguard.clock import Clock
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Declaration, Rules, Ticket

T = TypeVar("T")
_log = logging.getLogger("asyncguard")
_MOMENT: Final = 0.001
"""Seconds for which an event loop waits for the file's lock."""
_STEPS_TO_TIDY: Final = 64
"""Steps after which what was written is moved from SQLite's log into the file."""
_DISTANT: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "afs", "fuse.sshfs"}
)
_ESCAPES: Final = {ord(character): f"\\{ord(character):03o}" for character in " \t\n\\#"}
"""How the system writes the names of places where something is mounted."""
_BUSY: Final = "others keep it busy"
_FORKED: Final = (
    "this process was forked from one that had used it already: use the guard only after the fork, or spawn "
    "the process"
)
_SPOILT: Final = (
    "its files with -wal or -shm were deleted or replaced while it was in use: start this process anew"
)
_LONGEST_OPENING: Final = 1.0
"""Seconds for which `acquire_nowait` waits for the file to be opened, where it comes first."""
_CLIENT_BITS: Final = 62 - BITS


@final
class Place:
    """A partition, as its tickets know it."""

    __slots__ = ("_backend", "gated", "guard", "key")

    def __init__(self, backend: SqliteBackend, guard: int, key: str | None) -> None:
        self._backend = backend
        self.guard = guard
        self.key = key
        self.gated = False
        """Whether time alone may advance it: then the backend hears of each ticket that waits."""

    def is_full_for(self, ticket: Ticket) -> bool:
        """Whether the permits that are held keep a ticket out, and not a pause or the pace."""
        try:
            return self._backend.do(
                lambda store: store.is_full_for(self.guard, self.key, ticket.terms.permits)
            )
        except (StoreBusy, BackendUnavailable):
            return False


def check_file_system(file: Path) -> None:
    """Refuse files of other hosts, whose locks can't be relied upon, and those mounted by themselves.

    Raises:
        ValueError: it is one.
    """
    mounted = mounts()
    if not mounted:  # nothing tells
        return
    device = file.parent.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    kinds = {mount[mount.index("-") + 1] for mount in mounted if mount[2] == number}
    if kinds & _DISTANT:
        raise ValueError(
            f"it is on a network file system ({', '.join(sorted(kinds))}): put it on a disk of this host, or "
            "use a backend for several hosts"
        )
    name = str(file).translate(_ESCAPES)
    if any(mount[4] == name for mount in mounted):
        raise ValueError("it is mounted without the files beside it, such as its log: mount its directory")


def _inode_now(name: str) -> tuple[int, int] | None:
    try:
        seen = os.stat(name)  # noqa: PTH116 - in half the time
    except FileNotFoundError:
        return None
    return seen.st_dev, seen.st_ino


def _check_names(file: Path) -> None:
    """Refuse a file that goes by other names, too, and one that this process can't use.

    Raises:
        ValueError: it is one.
    """
    seen = file.stat()
    if not stat.S_ISREG(seen.st_mode):
        raise ValueError("it isn't a file")
    if seen.st_nlink > 1:
        raise ValueError(
            "it has several names (hard links), and who opens it by another has a log of its own: remove all "
            "names but one"
        )
    why = _barred.get(str(file)) or _barred.get((seen.st_dev, seen.st_ino))
    if why:
        raise ValueError(why)


def _way_out(client: int, lives: Lives, clock: Clock, ours: Store) -> Callable[[Store], Iterable[int]]:
    """Make the end of a client, which knows nothing of its backend: that may be gone."""

    def move_out(store: Store) -> Iterable[int]:
        try:
            return store.bury(client, clock.now(), client << BITS)
        finally:
            lives.let_go(client)
            ours.close()

    return move_out


@final
class SqliteBackend:
    """A client of the file: this process, as far as one AsyncGuard goes.

    Operations are one statement each, and take some 20 us on the event loop. Where another process is
    inside one for longer than a millisecond, as when it was stopped there, a thread waits instead: the
    porter, which also watches the other processes, and hears the doorbell for several loops.
    """

    lease = 0
    answers_at_once = True

    def __init__(self, path: str, clock: Clock, namespace: str) -> None:
        self.path = Path(path)
        self._name = path
        self.namespace = namespace
        self.place: object = ("sqlite", path, namespace)
        self.assumptions = (
            f"sqlite: guards all processes of this host that use {self.path} in namespace {namespace!r}; a "
            "process keeps its permits while it lives, however long it is stopped"
        )
        self._system = clock
        self._lock = threading.RLock()
        self.clock: Clock = ClockElsewhere(clock)
        self._start_anew()
        _live.add(self)

    def _start_anew(self) -> None:
        """Be nobody yet; also in a forked child, where connections and tickets are the parent's."""
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        self.tickets: dict[int | str, Ticket] = {}
        """Those that hold or wait, or whose answer is on its way."""
        self._strays: set[int] = set()
        """Tickets in the file that were none of ours at the last look."""
        self._has_news = False
        """Whether a step of ours decided upon other tickets of ours."""
        self._inside = False
        """Whether the lock is held; seen by a signal handler that interrupts whoever has it."""
        self._store: Store | None = None
        self._inode: tuple[int, int] | None = None
        self._log: dict[str, tuple[int, int] | None] = {}
        """The files of SQLite's log, without which the file is not what we know."""
        self._porter: Porter | None = None
        self.client = secrets.randbits(_CLIENT_BITS) or 1
        """Our number: the first part of our tickets' ids."""
        self._numbers: dict[Declaration, int] = {}
        self._counter = itertools.count(1)
        self._steps = 0
        self._alarms: dict[tuple[int, str | None, asyncio.AbstractEventLoop], int] = {}

    # --- opening and closing -------------------------------------------------------------------

    def _hire(self) -> Porter:
        """Find the porter, who opens the file."""
        if self._name in _barred:
            raise unavailable(self.path, _barred[self._name])
        with self._lock:
            if self._porter is None:
                self._porter = Porter(self)
                self._porter.start()
            return self._porter

    def open(self, porter: Porter) -> Store:
        """Open the file, in the porter's thread; what results is the porter's own connection.

        Raises:
            OSError, sqlite3.Error, ValueError: it can't be used.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = Path(os.path.realpath(self._name))  # SQLite's log goes by that, too
        check_file_system(path)
        with contextlib.suppress(FileExistsError):  # one that is there isn't opened: to close it drops locks
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        _check_names(path)
        self._lives = Lives.of(Path(f"{path}-lives"))
        store = porter.insist(lambda: Store(path, epoch=self._system.epoch, patience=PATIENCE))
        boot = boot_id()
        porter.insist(lambda: store.begin(boot, self._lives, self._system.epoch, self._system.now()))
        self.clock.epoch = store.epoch
        ours = porter.insist(lambda: Store(path, epoch=store.epoch, patience=_MOMENT))
        porter.bell = Bell(Path(f"{path}-bells"), self.client)
        process = os.getpid(), process_namespace()
        porter.insist(lambda: store.register(self.client, self.owner, process, self._lives.hold))
        porter.move_out = _way_out(self.client, self._lives, self._system, ours)
        with self._lock:
            self._store = ours
            self._inode = _inode_now(self._name)
            self._log = {name: _inode_now(name) for name in (f"{path}-wal", f"{path}-shm")}
        return store

    def _check_file(self, *, with_log: bool = False) -> None:
        """See that the file is the one that was opened: whoever opens another knows nothing of this one.

        Raises:
            ValueError: it was deleted or replaced: all permits are lost, and the next call opens it anew.
        """
        if self._inode is None:  # another has noticed it before
            raise ValueError("it was deleted or replaced; try again")
        if _inode_now(self._name) == self._inode:
            if not with_log or all(_inode_now(name) == inode for name, inode in self._log.items()):
                return
            _barred[self._inode] = _SPOILT  # what is opened here would go by the old one
        raise self._begin_anew(
            "it was deleted or replaced, or its log was, so permits taken until now are lost; try again"
        )

    def _begin_anew(self, why: str) -> ValueError:
        """Leave a file that knows us no more as it is; the log says why before anybody is told."""
        _log.warning("%s", unavailable(self.path, why))
        with self._lock:
            porter = self._porter
            _of_others.append(self._store)  # to close it would drop this process's locks on its successor
            self._lose_all()
        if porter is not None:
            porter.move_out = None
            porter.stop()
        return ValueError(why)

    def _lose_all(self) -> None:
        """Begin anew, and tell whoever holds or waits; who is about to enter, the porter tells."""
        lost = [ticket for ticket in list(self.tickets.values()) if ticket.state in ("held", "waiting")]
        self._start_anew()
        for ticket in lost:
            ticket.state = "lost" if ticket.state == "held" else "refused"
            ticket.reason = "unavailable"
            ticket.outlook = Outlook(None, 0, ticket.terms.guard.rules.limit)
            ticket.ended = self._system.now()
            ticket.notify()

    @property
    def is_used(self) -> bool:
        """Whether tickets of ours wait, or hold, which only a look at the file tells that it was replaced."""
        return bool(self.tickets or self._strays)

    def dismiss(self, porter: Porter) -> None:
        """Have another one come, who may find the file in a better state."""
        with self._lock:
            if self._porter is porter:
                self._lose_all()

    async def aclose(self) -> None:
        porter = self._porter
        if porter is None or self.tickets:  # permits stay with their holders
            return
        with contextlib.suppress(BackendUnavailable):
            if await asyncio.wrap_future(porter.call(self._end)):
                await asyncio.wrap_future(porter.ended)

    def _end(self, store: Store) -> bool:
        with self._lock:
            if self.tickets or self._porter is None:
                return False
            porter, client = self._porter, self.client
            self._start_anew()
        porter.insist(lambda: store.bury(client, self._system.now(), client << BITS))
        porter.stop()
        return True

    # --- how it is asked -----------------------------------------------------------------------

    def do(self, work: Callable[[Store], T]) -> T:
        """Do one step, now.

        Raises:
            StoreBusy: another process is inside one for too long, or the file isn't open yet.
            BackendUnavailable: the file can't be used.
        """
        with self._lock:
            store, porter = self._store, self._porter
            # What comes later mustn't overtake.
            if store is None or porter is None or self._inside or porter.is_busy:
                raise StoreBusy
            self._inside = True
            self._steps += 1
            try:
                return work(store)
            except FAULTS as fault:
                raise unavailable(self.path, fault) from fault
            finally:
                self._inside = False
                if self._steps % _STEPS_TO_TIDY == 0:
                    with contextlib.suppress(sqlite3.Error, OSError, StoreBusy):
                        self._lives.alone(store.tidy)
                if self._has_news:
                    self._has_news = False
                    self.hear()

    def _now_or_later(self, work: Callable[[Store], object]) -> Awaitable[Any] | None:
        """Do one step; what results, if anything, can be awaited to know that it was done."""
        try:
            self.do(work)
        except StoreBusy:
            future = self._hire().call(work)
        else:
            return None
        try:
            answer = asyncio.wrap_future(future, loop=asyncio.get_running_loop())
        except RuntimeError:  # no loop runs here
            return None
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # not all are awaited
        return answer

    async def _ask(self, work: Callable[[Store], T]) -> T:
        try:
            return self.do(work)
        except StoreBusy:
            return await asyncio.wrap_future(self._hire().call(work))

    def step(self) -> int:
        """Choose an id for a step that is no ticket's."""
        return self.client << BITS | next(self._counter)

    def _number(self, store: Store, declaration: Declaration) -> int:
        number = self._numbers.get(declaration)
        if number is None:
            number = self._declare(store, declaration)
            self._numbers[declaration] = number
        return number

    def _declare(self, store: Store, declaration: Declaration) -> int:
        number, rules = self._send(store, declaration)
        if rules != declaration.rules and rules.revision == declaration.rules.revision:
            _log.warning(
                "guard %r: others declared it as %s, and this process as %s, both with revision %d: theirs "
                "stands until they have ended; if this one is to stand at once, give it a higher "
                "AsyncGuard(revision=...)",
                declaration.name,
                rules,
                declaration.rules,
                rules.revision,
            )
        return number

    def _send(self, store: Store, declaration: Declaration, *, force: bool = False) -> tuple[int, Rules]:
        stored = dataclasses.replace(declaration, name=self._stored(declaration.name))
        step = self.step()
        declared = store.declare(stored, self._system.now(), step, force=force)
        self._ring(store.decided(step, self._system.now()))
        return declared

    def _stored(self, guard: str) -> str:
        return f"{quote(self.namespace)}\n{guard}"  # quoted: it may have lines, too

    # --- the operations ------------------------------------------------------------------------

    def new_id(self) -> int:
        return self.step()

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        if not wait and self._store is None:  # it comes first, and can't be answered without the file
            try:
                self._hire().call(Store.clients).result(_LONGEST_OPENING)
            except TimeoutError:
                raise unavailable(self.path, _BUSY) from None
        with self._lock:
            if int(ticket.id) >> BITS != self.client:
                ticket.id = self.step()
            self.tickets[ticket.id] = ticket

        loop = asyncio._get_running_loop()  # noqa: SLF001 - None where none runs

        def enter(store: Store) -> None:
            self._check_file()
            guard = self._number(store, ticket.terms.guard)
            place = Place(self, guard, ticket.key)
            ticket.partition = place  # type: ignore[assignment]
            self._ring(store.enter(ticket, guard, self._system.now(), wait))
            if self._porter is not None:
                self._porter.attend()
            if ticket.state == "waiting":
                place.gated = store.is_paced(guard)
                self._expect_news(loop)
            elif ticket.state in ("refused", "new"):
                self.tickets.pop(ticket.id, None)
                store.forget([ticket])

        def enter_later(store: Store) -> None:
            enter(store)
            if ticket.state == "waiting":
                self._wait_in(store, ticket)
            else:
                ticket.notify()

        try:
            self.do(enter)
        except StoreBusy:
            if not wait:
                self.tickets.pop(ticket.id, None)
                raise unavailable(self.path, _BUSY) from None
            answer = self._hire().call(enter_later)
            answer.add_done_callback(lambda done: self._see(ticket, done))
            return asyncio.wrap_future(answer)
        except BackendUnavailable as error:
            self._could_not_enter(ticket, error)
            raise
        return None

    def _see(self, ticket: Ticket, done: concurrent.futures.Future[Any]) -> None:
        """See whether a ticket could enter."""
        if not done.cancelled() and (error := done.exception()) is not None:
            self._could_not_enter(ticket, error)

    def _could_not_enter(self, ticket: Ticket, error: BaseException) -> None:
        self.tickets.pop(ticket.id, None)
        if isinstance(error, BackendUnavailable):
            error.guard = ticket.terms.guard.name
            error.key = ticket.key

    def leave(
        self, ticket: Ticket, reason: Reason | None = None, *, finished: bool = True
    ) -> Awaitable[None] | None:
        if self.tickets.pop(ticket.id, None) is None:
            return None

        porter = self._hire()
        try:
            return self._now_or_later(self._leaving(porter, ticket, None, reason, finished))
        except BackendUnavailable:
            porter.attend()
            raise

    def abandon(self, ticket: Ticket) -> None:
        porter = self._porter
        if self.tickets.pop(ticket.id, None) is not None and porter is not None:
            porter.call(self._leaving(porter, ticket, self._system.now(), None, False))

    def _leaving(
        self, porter: Porter, ticket: Ticket, at: int | None, reason: Reason | None, finished: bool
    ) -> Callable[[Store], None]:
        """Make the step by which a ticket leaves; if that fails, the porter tries again."""

        def leave(store: Store) -> None:
            now = self._system.now() if at is None else at
            try:
                self._ring(store.leave(ticket, now, reason, finished=finished))
            except FAULTS:
                porter.failed.append(leave)
                raise
            if ticket.state in ("refused", "lost"):
                store.forget([ticket])

        return leave

    def held(self, guard: str) -> list[Ticket]:
        return [
            ticket
            for ticket in list(self.tickets.values())
            if ticket.state == "held" and ticket.terms.guard.name == guard
        ]

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        def look(store: Store) -> Snapshot:
            self._number(store, declaration)
            return store.inspect(self._stored(declaration.name), key, self._system.now())

        picture = await self._ask(look)
        return dataclasses.replace(picture, guard=declaration.name)

    async def configure(
        self, declaration: Declaration, key: str | None, *, limit: Setting = KEEP, paused: bool | None = None
    ) -> None:
        def configure(store: Store) -> None:
            guard, step = self._number(store, declaration), self.step()
            decided = store.configure(guard, key, self._system.now(), step, limit=limit, paused=paused)
            self._ring(decided)
            self._rearm(store)

        await self._ask(configure)

    async def evict(self, declaration: Declaration, ticket_id: str) -> bool:
        if not ticket_id.isdecimal() or int(ticket_id) >> BITS >> _CLIENT_BITS:
            return False

        def evict(store: Store) -> bool:
            guard, step = self._number(store, declaration), self.step()
            decided = store.evict(guard, int(ticket_id), self._system.now(), step)
            self._ring(decided)
            return bool(decided)

        return await self._ask(evict)

    def redeclare(self, declaration: Declaration) -> None:
        def redeclare(store: Store) -> None:
            self._numbers[declaration] = self._send(store, declaration, force=True)[0]
            self._rearm(store)

        self._now_or_later(redeclare)

    async def guards(self) -> list[Declaration]:
        """List the guards of the namespace that anybody declared since the host's last boot, by name."""
        declared = await self._ask(lambda store: store.guards(self._stored("")))
        return [dataclasses.replace(each, name=each.name.partition("\n")[2]) for each in declared]

    # --- what comes of it for others -----------------------------------------------------------

    def _ring(self, clients: Iterable[int]) -> None:
        porter = self._porter
        if porter is None or porter.bell is None:
            return
        for client in clients:
            if client == self.client and get_ident() != porter.ident:
                self._has_news = True
            else:
                porter.bell.ring(client)

    def _expect_news(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is not None:
            self._hire().hear_on(loop)

    def hear(self) -> None:
        """Read the news on an event loop, or have the porter do so if that takes long."""
        try:
            self.do(self.read_news)
        except StoreBusy:
            self._hire().call(self.read_news)
        except BackendUnavailable as error:  # the porter, who looks each second, has the last word
            _log.warning("%s", error)

    def recheck(self, store: Store) -> None:
        """See what is so, whatever one was told, or not told."""
        self._check_file(with_log=True)
        self.read_news(store)
        self._leave_strays(store)
        self._tell_again()
        self._rearm(store)

    def _tell_again(self) -> None:
        """Tell who waits for what was read already: whoever read it may have been interrupted."""
        for ticket in list(self.tickets.values()):
            future = ticket.future if isinstance(ticket, Permit) else None
            is_decided = ticket.state not in ("new", "waiting")
            if is_decided and future is not None and not future.done() and not ticket.notify():
                self.abandon(ticket)

    def _leave_strays(self, store: Store) -> None:
        """Leave for whoever was interrupted when it had forgotten its ticket, and not left yet."""
        strays = {ticket for ticket in store.present(self.client) if ticket not in self.tickets}
        for ticket in strays & self._strays:  # what is new may be about to leave
            self._ring(store.drop(ticket, self._system.now()))
        self._strays = strays

    def read_news(self, store: Store) -> None:
        """See what the steps of others decided upon tickets of ours."""
        self._check_file()
        with self._lock:
            changed = store.news(self.client, self.tickets)
            final = [ticket for ticket in changed if ticket.state in ("refused", "lost")]
            for ticket in final:
                self.tickets.pop(ticket.id, None)
        for ticket in changed:  # first, as what follows may find the file busy, and isn't done again
            if not ticket.notify():
                self.abandon(ticket)
        store.forget(final)

    def look_around(self, store: Store) -> None:
        """Watch who came, and bury who is dead."""
        porter, ours = self._porter, self.client
        if porter is None or porter.ident != get_ident():
            return
        clients = store.clients()
        if ours not in clients:
            raise self._begin_anew(
                "this process was taken for dead, so its permits are lost: does it open and close the file "
                "with -lives by itself? That drops the lock that says that it lives"
            )
        for client in porter.watched - clients.keys():
            porter.forget(client)
        for client, process in clients.items():
            if client == ours:
                continue
            is_watched = porter.watch(client, *process)
            if not self._lives.is_alive(client):
                self._ring(store.bury(client, self._system.now(), self.step()))
                porter.forget(client)
            elif not is_watched:
                porter.looks_around = True

    # --- what time brings ----------------------------------------------------------------------

    def waits(self, ticket: Ticket) -> None:
        if ticket.state == "waiting":
            self._now_or_later(lambda store: self._wait_in(store, ticket))

    def _wait_in(self, store: Store, ticket: Ticket) -> None:
        """Have the loop of a ticket that waits advance its partition when that is due."""
        queue = _queue_of(ticket)
        if queue is not None:
            self._arm(store, *queue)

    def _rearm(self, store: Store) -> None:
        for queue in dict.fromkeys(map(_queue_of, list(self.tickets.values()))):
            if queue is not None:
                self._arm(store, *queue)

    def _arm(self, store: Store, guard: int, key: str | None, loop: asyncio.AbstractEventLoop) -> None:
        if not store.is_paced(guard):
            return
        # With the same moment for both, nothing can become due in between.
        now = self._system.now()
        partition = store.partition(guard, key)
        if partition is not None:
            self._ring(store.advance(partition, now, self.step()))
        due = store.due(guard, key, now)
        if due is None or self._alarms.get((guard, key, loop), due + 1) <= due:
            return
        self._alarms[guard, key, loop] = due
        with contextlib.suppress(RuntimeError):  # closed just now
            loop.call_soon_threadsafe(self._set_alarm, guard, key, loop, due)

    def _set_alarm(self, guard: int, key: str | None, loop: asyncio.AbstractEventLoop, due: int) -> None:
        left = max(0, due - self._system.now()) / TICKS
        self._system.call_later(loop, left, self._alarm, guard, key, loop, due)

    def _alarm(self, guard: int, key: str | None, loop: asyncio.AbstractEventLoop, due: int) -> None:
        if self._alarms.get((guard, key, loop)) == due:
            del self._alarms[guard, key, loop]
        self._now_or_later(lambda store: self._arm(store, guard, key, loop))


def _queue_of(ticket: Ticket) -> tuple[int, str | None, asyncio.AbstractEventLoop] | None:
    """Tell where a ticket waits, and on which loop; None where it doesn't."""
    if not isinstance(ticket, Permit) or ticket.state != "waiting" or ticket.future is None:
        return None
    place = cast("Any", ticket.partition)
    return place.guard, place.key, ticket.row.loop


_live: weakref.WeakSet[SqliteBackend] = weakref.WeakSet()
_of_others: list[Any] = []
"""Connections that must not be closed: those of a forked child's parent, and to files that were replaced."""


_barred: dict[str | tuple[int, int] | None, str] = {}
"""Files that this process can't use, by name or identity, and why. Those that its parent had opened when it
forked: SQLite goes by locks that only that one has. And those whose log it has and others haven't."""


def _forget_the_parent() -> None:
    for backend in list(_live):
        backend._lock = threading.RLock()  # noqa: SLF001 - another thread of the parent may have held it
        if backend._porter is not None:  # noqa: SLF001
            name = backend._name  # noqa: SLF001
            _barred.update(dict.fromkeys((name, os.path.realpath(name), backend._inode), _FORKED))  # noqa: SLF001
        _of_others.append((backend._store, backend._porter))  # noqa: SLF001
        backend._start_anew()  # noqa: SLF001


os.register_at_fork(after_in_child=_forget_the_parent)
