"""What a URL says of Redis or Valkey servers, and how connections are made by it."""

from __future__ import annotations

import math
from typing import Any, Final, Self, final
from urllib.parse import parse_qs, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from asyncguard.clock import TICKS
from asyncguard.errors import BackendUnavailable

SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
"""Those known here, and as which redis-py knows them."""
_PORT: Final = 6379
_LEASE: Final = 10.0
_TIMEOUT: Final = 2.0
_LEAST_LEASE, _LONGEST_LEASE = 0.1, 86_400.0
_PER_LEASE: Final = 5
"""How often a timeout fits into a lease, at least; see `RedisUrl`."""
_MARGIN: Final = 20
"""The part of a lease that is kept for telling the work that it is over."""
FAULTS: Final = (redis.RedisError, OSError)
"""What is wrong with a server, as it shows."""


def unavailable(name: str, fault: object) -> BackendUnavailable:
    """Say what is wrong with a server."""
    error = BackendUnavailable(f"the server {name} can't be asked: {fault}")
    if isinstance(fault, BaseException):
        error.__cause__ = fault
    return error


@final
class RedisUrl:
    """A URL such as rediss://user:password@host:6379/0?lease=10&timeout=2, or of several hosts.

    `lease` is for how many seconds a server believes in a client that it doesn't hear from, and
    `timeout` how long it may take to be reached. A lease is renewed each third of it. That may fail, and
    then there are twice `timeout` for another attempt, before 0.99 of the lease and a margin of a
    twentieth have passed: lease / 3 + 2 x timeout <= 0.94 x lease, so `lease` is at least 5 x `timeout`
    to be safe. Where only `lease` is given, `timeout` follows.

    `options` names those that only some kinds of URL know.

    Raises:
        ValueError: it isn't such a URL, or the two don't go together.
    """

    def __init__(self, url: str, *, port: int = _PORT, options: tuple[str, ...] = ()) -> None:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ValueError(f"url: {error} (from ASYNCGUARD_URL or AsyncGuard(url))") from None
        query = parse_qs(parts.query, keep_blank_values=True)
        lease = _seconds(query.pop("lease", None), "lease", _LEASE)
        usual = min(_TIMEOUT, lease / _PER_LEASE)
        self.timeout = _seconds(query.pop("timeout", None), "timeout", usual)
        if self.timeout * _PER_LEASE > lease * (1 + 1e-9):
            raise ValueError(
                f"url: expected a lease of at least {_PER_LEASE} times the timeout, so that a renewal that "
                f"failed can be sent again in time, got lease={lease:g} and timeout={self.timeout:g}: use "
                f"lease={self.timeout * _PER_LEASE:g} or timeout={lease / _PER_LEASE:g}"
            )
        self.options = {name: query.pop(name)[-1] for name in options if name in query}
        unknown = [name for name in query if not name.startswith("ssl_")]
        if parts.fragment:
            raise ValueError(
                "url: expected no # in it; in a password it is written %23 (from ASYNCGUARD_URL or "
                "AsyncGuard(url))"
            )
        if unknown:
            more = "".join(f", {name}" for name in options)
            raise ValueError(
                f"url: unknown option {unknown[0]!r}; known: lease and timeout, in seconds, as in "
                f"redis://host:6379/0?lease=10&timeout=2{more}, and redis-py's ssl_... for rediss://"
            )
        self.lease = round(lease * TICKS)
        self.margin = self.lease // _MARGIN
        user, at, hosts = parts.netloc.rpartition("@")
        self.name = f"{parts.scheme}://{hosts}{parts.path}"
        """What people know it by; no password."""
        self.addresses = [_address(host, port) for host in hosts.split(",")]
        self.path = [unquote(part) for part in parts.path.split("/") if part]
        scheme = SCHEMES[parts.scheme.partition("+")[0]]
        try:
            pool = redis.ConnectionPool.from_url(
                urlunsplit((scheme, f"{user}{at}localhost", "", urlencode(query, doseq=True), "")),
                socket_timeout=self.timeout / 2,
                socket_connect_timeout=self.timeout / 2,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError as error:
            raise ValueError(f"url: {error} (from ASYNCGUARD_URL or AsyncGuard(url))") from None
        self._make: Any = pool.connection_class  # the pool itself counts what it makes, and ends at a hundred
        self._options: dict[str, Any] = pool.connection_kwargs

    def connect(self, address: tuple[str, int], **options: Any) -> Any:
        """Make a connection of redis-py to a server, with these options, and connect it."""
        host, port = address
        connection = self._make(**{**self._options, "host": host, "port": port, **options})
        connection.connect()
        return connection


class OneServer:
    """What is so of a server that has all guards, wherever it is."""

    in_cluster = False
    version = 0

    def __init__(self, known: RedisUrl) -> None:
        self._url = known
        self.lease, self.margin = known.lease, known.margin
        self.timeout, self.name = known.timeout, known.name

    def of(self, key: str) -> Self:
        """Tell which server has a key: this one."""
        del key
        return self

    def all(self) -> list[Self]:
        """List them: it is alone."""
        return [self]

    def has_moved(self, connection: Any) -> bool:
        """It doesn't."""
        del connection
        return False

    def look_again(self, connection: Any) -> None:
        """There is nothing to be found out: nothing is remembered of where it is."""


@final
class RedisServer(OneServer):
    """One server, on its own: redis://host:6379/0."""

    rests_on = "the server keeping what it acknowledged"

    def __init__(self, url: str) -> None:
        super().__init__(known := RedisUrl(url))
        if len(known.addresses) > 1 or len(known.path) > 1:
            raise ValueError(
                f"url: expected one server, such as redis://host:6379/0, got {known.name!r}: several are "
                "redis+cluster://host:6379,host2:6379/ or redis+sentinel://host:26379,host2:26379/service/0"
            )
        self._address = known.addresses[0]
        self._db = database(known.name, known.path)
        self.place: object = ("redis", *self._address, self._db)
        """What is equal for the same server, as far as a URL tells."""

    def connect(self) -> Any:
        """Make a connection of redis-py, and connect it."""
        return self._url.connect(self._address, db=self._db)


def database(name: str, path: list[str]) -> int:
    """Read the number of a database, the last part of a URL's path.

    Raises:
        ValueError: it isn't one.
    """
    text = path[-1] if path else "0"
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"url: expected the number of a database at the end of {name!r}, got {text!r}")
    return int(text)


def _address(text: str, usual: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname or "localhost", parts.port or usual
    except ValueError:
        raise ValueError(
            f"url: expected hosts such as host:{usual} or [::1]:{usual}, separated by commas, got {text!r}"
        ) from None
    return host, port


def _seconds(given: list[str] | None, name: str, usual: float) -> float:
    if given is None:
        return usual
    try:
        seconds = float(given[-1])
    except ValueError:
        seconds = math.nan
    if len(given) > 1 or not _LEAST_LEASE / _PER_LEASE <= seconds <= _LONGEST_LEASE:
        raise ValueError(
            f"url: expected {name} to be a number of seconds from {_LEAST_LEASE / _PER_LEASE:g} to "
            f"{_LONGEST_LEASE:g}, got {', '.join(map(repr, given))}"
        )
    return seconds
