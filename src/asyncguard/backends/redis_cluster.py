"""A cluster of Redis or Valkey: which of its nodes has a guard, as the nodes themselves say."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Final, final

import redis
from redis.crc import key_slot

from asyncguard.backends.redis_url import FAULTS, RedisUrl

_SLOTS: Final = 16_384


@final
class Node:
    """One of a cluster's servers."""

    in_cluster = True

    def __init__(self, cluster: Cluster, address: tuple[str, int]) -> None:
        self.address = address
        self.name = f"{address[0]}:{address[1]} of {cluster.name}"
        self.timeout = cluster.timeout
        self._cluster = cluster

    def connect(self) -> Any:
        """Make a connection of redis-py, and connect it."""
        try:
            return self._cluster.connect_to(self.address)
        except FAULTS:
            self._cluster.ask_others(self.address)  # a replica may have its slots by now
            raise

    def has_moved(self, connection: Any) -> bool:
        """It doesn't: its slots do, and it says so when it is asked."""
        del connection
        return False

    def look_again(self, connection: Any) -> None:
        """Have this node say where the slots are."""
        self._cluster.look_again(connection)


@final
class Cluster:
    """redis+cluster://user:password@host:6379,host2:6379/, of which any node that answers will do.

    What isn't known yet is asked of the cluster as such: of whichever node it is that answers. With that
    it becomes known which node has which slots.
    """

    in_cluster = True
    rests_on = (
        "nodes keeping what they acknowledged, also when a replica takes over (one that lagged has "
        "forgotten the last grants, and may make them again)"
    )

    def __init__(self, url: str) -> None:
        self._url = known = RedisUrl(url)
        self.lease, self.margin, self.timeout, self.name = (
            known.lease,
            known.margin,
            known.timeout,
            known.name,
        )
        if known.path not in ([], ["0"]):
            raise ValueError(
                "url: expected redis+cluster://host:6379,host2:6379/ without a path, as a cluster has one "
                f"database, got {known.name!r}"
            )
        self.place: object = ("redis+cluster", *sorted(known.addresses))
        """What is equal for the same cluster, as far as a URL tells."""
        self.version = 0
        """Counts how often slots have turned out to be elsewhere."""
        self._noting = threading.Lock()
        self._known: dict[tuple[str, int], Node] = {}
        self._nodes: dict[tuple[str, int], Node] = {}
        """Those of them that have slots."""
        self._slots: list[Node | None] = [None] * _SLOTS

    def of(self, key: str) -> Node | Cluster:
        """Tell which node has a key, as far as that is known."""
        return self._slots[key_slot(key.encode())] or self

    def all(self) -> list[Node]:
        """List the nodes that have slots; they are asked for.

        Raises:
            redis.ConnectionError: no node says.
        """
        self._ask_any().disconnect()
        return list(self._nodes.values())

    def connect(self) -> Any:
        """Connect to whichever node answers first, and learn from it where the others are."""
        return self._ask_any()

    def connect_to(self, address: tuple[str, int]) -> Any:
        """Make a connection of redis-py to a node, and connect it."""
        return self._url.connect(address)

    def has_moved(self, connection: Any) -> bool:
        """It doesn't: its slots do, and it says so when it is asked."""
        del connection
        return False

    def look_again(self, connection: Any) -> None:
        """Have a node say where the slots are."""
        connection.send_command("CLUSTER SLOTS", check_health=False)
        self._note(connection.read_response(), connection.host)

    def ask_others(self, address: tuple[str, int]) -> None:
        """Find out where the slots of a node are by now; if no other can be asked, all stays as it was."""
        with contextlib.suppress(redis.ConnectionError):
            self._ask_any(address).disconnect()

    def _ask_any(self, other_than: tuple[str, int] | None = None) -> Any:
        """Ask one node after the other, until one says where the slots are; give the connection to it."""
        faults = []
        for address in dict.fromkeys([*self._nodes, *self._url.addresses]):
            if address == other_than:
                continue
            try:
                connection = self.connect_to(address)
            except FAULTS as fault:
                faults.append(f"{address[0]}:{address[1]}: {fault}")
                continue
            try:
                self.look_again(connection)
            except FAULTS as fault:
                faults.append(f"{address[0]}:{address[1]}: {fault}")
                connection.disconnect()
            else:
                return connection
        raise redis.ConnectionError(f"no node says where the slots are ({'; '.join(faults)})")

    def _note(self, ranges: list[Any], asked: str) -> None:
        """Note which nodes have which slots; one that doesn't know its own host is where it was asked."""
        slots: list[Node | None] = [None] * _SLOTS
        with self._noting:
            nodes = {}
            for first, last, (host, port, *_), *_ in ranges:
                address = ((host or b"").decode() or asked, int(port))
                node = nodes[address] = self._known.setdefault(address, Node(self, address))
                slots[first : last + 1] = [node] * (last + 1 - first)
            self._nodes = nodes
            if slots != self._slots:
                self._slots = slots
                self.version += 1
