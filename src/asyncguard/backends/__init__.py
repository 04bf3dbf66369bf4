"""Where partitions live: the protocol that every backend keeps, and how a URL names one."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol, cast
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from asyncguard.admission import Setting
    from asyncguard.clock import Clock
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Declaration, Ticket


_LEAST_SQLITE: Final = (3, 40)
_WITH_SQLITE: Final = ("linux", "darwin")
REDIS_SCHEMES: Final = ("redis", "rediss", "valkey", "valkeys")
_KINDS_OF_REDIS: Final = ("", "sentinel", "cluster")
"""What may follow one of these, after a plus sign: how several servers belong together."""


class Backend(Protocol):
    """What a guard asks of the place where its partitions live.

    A backend decides by the rules of `asyncguard.admission`. It answers by writing the ticket's
    `state`, with what belongs to it; where it decides later, it then calls `ticket.notify()`. The
    times that it writes are of its `clock`.
    """

    clock: Clock
    owner: str
    """Host and process of this client, for people to read."""
    lease: int
    """Ticks for which a client unheard of is believed in; 0 where the backend sees who is alive."""
    answers_at_once: bool
    """Whether `enter(wait=False)` and `leave` return None, also in threads in which no event loop runs."""
    place: object
    """Where the partitions are: equal for those whose guards of one name have the same permits."""
    assumptions: str
    """What its guarantee rests on, in a sentence."""

    def new_id(self) -> int | str:
        """Choose an id that no other ticket of this backend has."""
        ...

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        """Grant, queue or refuse; sent again, a ticket gets its first answer again.

        With `wait=False` a ticket that can't be granted at once leaves no trace and stays new.
        None says that the ticket has its answer; else it has one once the awaitable is done, which
        raises `BackendUnavailable` if the backend can't be asked.
        """

    def waits(self, ticket: Ticket) -> None:
        """Hear that a queued ticket's client is ready to be told."""

    def leave(
        self, ticket: Ticket, reason: Reason | None = None, *, finished: bool = True
    ) -> Awaitable[None] | None:
        """Release or withdraw; idempotent, and also beats an `enter` still on its way.

        It is sent before this returns, whatever happens to the caller; what is returned, if
        anything, can be awaited to know that it arrived. `reason` is why a waiting ticket gives up;
        `finished` says that the work ended by itself.
        """

    def abandon(self, ticket: Ticket) -> None:
        """Leave, from where no lock may be taken: a finaliser, a coroutine that is being closed."""

    def held(self, guard: str) -> list[Ticket]:
        """List this client's tickets that hold permits of a guard."""
        ...

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        """Picture one key; None: the guard with all its keys."""
        ...

    async def configure(
        self,
        declaration: Declaration,
        key: str | None,
        *,
        limit: Setting = "keep",
        paused: bool | None = None,
    ) -> None:
        """Set an operator's override for one key; None: for the whole guard."""

    async def evict(self, declaration: Declaration, ticket_id: str) -> bool:
        """Take a ticket out, waiting or held; False where it isn't there."""
        ...

    def redeclare(self, declaration: Declaration) -> None:
        """Have new rules stand for a guard's name, in this process at once."""

    async def aclose(self) -> None:
        """Give back what the backend holds of the system."""


class Opener(Protocol):
    """Whatever makes a backend for an AsyncGuard, once: `AsyncGuard(backend=...)`."""

    def __call__(self, clock: Clock, namespace: str, /) -> Backend:
        """Make it; guards of other namespaces have permits of their own, whatever their names."""
        ...


def open_backend(url: str | None, *, clock: Clock, namespace: str) -> Backend:
    """Open the backend that a URL names; None: this process's memory, which others may not know of.

    Raises:
        TypeError: it isn't a str.
        ValueError: no backend goes by its scheme, or it isn't there on this system.
    """
    if url is not None and not isinstance(url, str):
        raise TypeError(f"url: expected a str, got {url!r}")
    scheme = scheme_of(url)
    if scheme == "memory":
        from asyncguard.backends.memory import MemoryBackend  # noqa: PLC0415

        return MemoryBackend(clock, None if url else namespace)
    if scheme == "sqlite":
        check_sqlite()
        from asyncguard.backends.sqlite import SqliteBackend  # noqa: PLC0415

        return SqliteBackend(path_of(cast("str", url)), clock, namespace)
    which, _, kind = scheme.partition("+")
    if which in REDIS_SCHEMES and kind in _KINDS_OF_REDIS:
        if find_spec("redis") is None or find_spec("hiredis") is None:
            raise ValueError(f"url: {scheme}:// needs redis-py with hiredis: install `asyncguard[redis]`")
        from asyncguard.backends.redis import RedisBackend  # noqa: PLC0415

        return RedisBackend(cast("str", url), clock, namespace)
    raise ValueError(
        f"url: no backend is known for the scheme {scheme!r} (from ASYNCGUARD_URL or AsyncGuard(url)); "
        "known: memory: (this process alone), sqlite:///path/guards.db (all processes of this host), and "
        "redis://host:6379/0, rediss:// or valkey:// (all hosts), and of several servers "
        "redis+sentinel://host:26379/service/0 and redis+cluster://host:6379/"
    )


def check_sqlite() -> None:
    """See that this system has what the sqlite backend needs.

    Raises:
        ValueError: it hasn't; the message says what is missing and what to use instead.
    """
    import sqlite3  # noqa: PLC0415 - some Pythons have none, and most guards need none

    instead = "use memory: (ASYNCGUARD_URL=memory:), which guards one process alone"
    if not sys.platform.startswith(_WITH_SQLITE):
        system = "Windows" if sys.platform == "win32" else sys.platform
        raise ValueError(
            f"url: the sqlite backend needs the locks and sockets of Linux or macOS, and this is {system}: "
            f"several processes can't share guards here. Here, {instead}"
        )
    if sqlite3.sqlite_version_info < _LEAST_SQLITE:
        raise ValueError(
            f"url: the sqlite backend needs SQLite 3.40, and this Python has {sqlite3.sqlite_version}: use "
            f"another Python, or {instead}"
        )


def scheme_of(url: str | None) -> str:
    """Tell which backend a URL names; without one it is this process's memory."""
    return url.partition(":")[0].lower() if url else "memory"


def path_of(url: str) -> str:
    """Find the path in a URL such as sqlite:///var/lib/shop/guards.db.

    Raises:
        ValueError: there is none, or more than that.
    """
    _, _, rest = url.partition(":")
    path = rest.removeprefix("//")
    if not rest.startswith("///") or len(path) < 2 or "?" in path or "#" in path:  # noqa: PLR2004
        raise ValueError(
            "url: expected sqlite:///path/guards.db, with three slashes and an absolute path (from "
            f"ASYNCGUARD_URL or AsyncGuard(url)), got {url!r}"
        )
    return unquote(path)
