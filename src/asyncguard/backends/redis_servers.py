"""The servers that a URL names, and which of them has a guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from asyncguard.backends.redis_cluster import Cluster
from asyncguard.backends.redis_sentinel import SentinelServer
from asyncguard.backends.redis_url import FAULTS, RedisServer, unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncguard.backends.courier import Server


class Servers(Protocol):
    """One server, or the nodes of a cluster. One that is alone is all of them, and has all guards."""

    name: str
    """What people know them by; no password."""
    place: object
    """What is equal for the same servers, as far as a URL tells."""
    rests_on: str
    """What is assumed of them."""
    lease: int
    margin: int
    in_cluster: bool
    version: int
    """Changes when keys have turned out to be elsewhere."""

    def of(self, key: str) -> Server:
        """Tell which server has a key, as far as that is known; no I/O."""
        ...

    def all(self) -> Sequence[Server]:
        """List those that have keys; may ask."""
        ...


def find_keys(servers: Servers, pattern: str) -> list[bytes]:
    """Look through all keys of all servers, which may take a while; they go on meanwhile.

    Raises:
        BackendUnavailable: one can't be asked.
    """
    try:
        return [key for server in servers.all() for key in _keys_of(server, pattern)]
    except FAULTS as fault:
        raise unavailable(servers.name, fault) from fault


def _keys_of(server: Server, pattern: str) -> list[bytes]:
    connection = server.connect()
    found: list[bytes] = []
    cursor = 0
    try:
        while True:
            connection.send_command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            cursor, keys = connection.read_response()
            found += keys
            if not int(cursor):
                return found
    finally:
        connection.disconnect()


def open_servers(url: str) -> Servers:
    """Read a URL; nothing is connected yet.

    Raises:
        ValueError: it isn't as its scheme has it.
    """
    kind = url.partition(":")[0].lower().partition("+")[2]
    if kind == "cluster":
        return Cluster(url)
    return SentinelServer(url) if kind == "sentinel" else RedisServer(url)
