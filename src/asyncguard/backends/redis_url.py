"""What a URL says of a Redis or Valkey server, and how connections are made by it."""

from __future__ import annotations

import math
from typing import Any, Final, final
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from asyncguard.clock import TICKS
from asyncguard.errors import BackendUnavailable

SCHEMES: Final = {"redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss"}
"""Those known here, and as which redis-py knows them."""
_LEASE: Final = 10.0
_TIMEOUT: Final = 2.0
_LEAST_LEASE, _LONGEST_LEASE = 0.1, 86_400.0
_PER_LEASE: Final = 5
"""How often a timeout fits into a lease, at least; see `RedisServer`."""
_MARGIN: Final = 20
"""The part of a lease that is kept for telling the work that it is over."""


def unavailable(name: str, fault: object) -> BackendUnavailable:
    """Say what is wrong with a server."""
    error = BackendUnavailable(f"the server {name} can't be asked: {fault}")
    if isinstance(fault, BaseException):
        error.__cause__ = fault
    return error


@final
class RedisServer:
    """One server, as a URL such as rediss://user:password@host:6379/0?lease=10&timeout=2 names it.

    `lease` is for how many seconds the server believes in a client that it doesn't hear from, and
    `timeout` how long it may take to be reached. A lease is renewed each third of it. That may fail, and
    then there are twice `timeout` for another attempt, before 0.99 of the lease and a margin of a
    twentieth have passed: lease / 3 + 2 x timeout <= 0.94 x lease, so `lease` is at least 5 x `timeout`
    to be safe. Where only `lease` is given, `timeout` follows.

    Raises:
        ValueError: it isn't such a URL, or the two don't go together.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
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
        unknown = [name for name in query if not name.startswith("ssl_")]
        if parts.fragment:
            raise ValueError(
                "url: expected no # in it; in a password it is written %23 (from ASYNCGUARD_URL or "
                "AsyncGuard(url))"
            )
        if unknown:
            raise ValueError(
                f"url: unknown option {unknown[0]!r}; known: lease and timeout, in "
                "seconds, as in redis://host:6379/0?lease=10&timeout=2, and redis-py's ssl_... for rediss://"
            )
        if parts.path.strip("/") and not parts.path[1:].isdecimal():
            raise ValueError(
                "url: expected the number of a database after the host, as in redis://host:6379/0, got "
                f"{parts.path!r}"
            )
        self.lease = round(lease * TICKS)
        self.margin = self.lease // _MARGIN
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        scheme = SCHEMES[parts.scheme.lower()]
        try:
            pool = redis.ConnectionPool.from_url(
                urlunsplit((scheme, parts.netloc, parts.path, urlencode(query, doseq=True), "")),
                socket_timeout=self.timeout / 2,
                socket_connect_timeout=self.timeout / 2,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError as error:
            raise ValueError(f"url: {error} (from ASYNCGUARD_URL or AsyncGuard(url))") from None
        self._make: Any = pool.connection_class  # the pool itself stops when it has made a hundred
        self._options = options = pool.connection_kwargs
        self.place: object = (
            "redis",
            options.get("host", "localhost"),
            options.get("port", 6379),
            options.get("db", 0),
        )
        """What is equal for the same server, as far as a URL tells."""

    def connect(self) -> Any:
        """Make a connection of redis-py, and connect it."""
        connection = self._make(**self._options)
        connection.connect()
        return connection

    def find_keys(self, pattern: str) -> list[bytes]:
        """Look through all keys of the server, which may take a while; it goes on meanwhile.

        Raises:
            BackendUnavailable: it can't be asked.
        """
        found, cursor = [], 0
        try:
            connection = self.connect()
            try:
                while True:
                    connection.send_command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                    cursor, keys = connection.read_response()
                    found += keys
                    if not int(cursor):
                        return found
            finally:
                connection.disconnect()
        except (redis.RedisError, OSError) as fault:
            raise unavailable(self.name, fault) from fault


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
