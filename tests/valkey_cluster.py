"""A cluster for tests: nodes on this host, that nobody else uses, and what operators do to one."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

import redis
from redis.crc import key_slot
from valkey_server import SERVER, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SLOTS = 16_384
_SETTLES_WITHIN = 30.0


class Node:
    """One of its servers."""

    def __init__(self, port: int, bus: int, directory: str, *options: str) -> None:
        self.port, self.bus = port, bus
        self.url = f"redis://127.0.0.1:{port}"
        command = [
            *(SERVER, "--port", str(port), "--bind", "127.0.0.1", "--save", ""),
            *("--appendonly", "no", "--dir", directory, "--cluster-enabled", "yes"),
            *("--cluster-config-file", f"{port}.conf", "--cluster-port", str(bus), *options),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.id = ""

    def answers(self) -> bool:
        """Tell whether it has started, and learn by what name the others know it."""
        self.id = self.ask("CLUSTER", "MYID").decode()
        return True

    def ask(self, *command: object) -> Any:
        """Have it do something."""
        with contextlib.closing(connect(self.url)) as connection:
            return connection.execute_command(*command)

    def knows(self, field: str) -> str:
        """Tell what it says of the cluster."""
        with contextlib.closing(connect(self.url)) as connection:
            return str(connection.cluster("INFO")[field])

    def slots(self) -> int:
        """Count the slots that have a master, as far as it has heard."""
        ranges = self.ask("CLUSTER", "SLOTS")
        return sum(last + 1 - first for first, last, *_ in ranges)

    def end(self) -> None:
        """Have it gone at once."""
        self.process.kill()  # there is nothing to be saved
        self.process.wait()


class Cluster:
    """Three masters, and a replica of each if there are to be."""

    def __init__(self, directory: str, *, replicas: bool, options: tuple[str, ...]) -> None:
        self.directory = directory
        self.nodes: list[Node] = []
        self.masters: list[Node] = []
        self.replicas: list[Node] = []
        self._options = options
        self._has_replicas = replicas

    def start(self) -> None:
        ports = free_ports(12 if self._has_replicas else 6)
        for port, bus in zip(ports[::2], ports[1::2], strict=True):
            self.nodes.append(Node(port, bus, self.directory, *self._options))
            until(self.nodes[-1].answers)
        self.masters, self.replicas = self.nodes[:3], self.nodes[3:]
        share = _SLOTS // 3
        for i, node in enumerate(self.masters):
            last = _SLOTS - 1 if i == 2 else (i + 1) * share - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", i * share, last)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self.nodes[0].bus)
        until(lambda: all(node.knows("cluster_known_nodes") == str(len(self.nodes)) for node in self.nodes))
        for replica, master in zip(self.replicas, self.masters, strict=False):
            replica.ask("CLUSTER", "REPLICATE", master.id)
        until(lambda: all(node.slots() == _SLOTS for node in self.nodes))
        until(lambda: all(node.knows("cluster_state") == "ok" for node in self.nodes))
        until(lambda: all(replica.ask("ROLE")[3] == b"connected" for replica in self.replicas))

    @property
    def url(self) -> str:
        """What an AsyncGuard is given; it names two of the nodes."""
        return f"redis+cluster://127.0.0.1:{self.masters[0].port},127.0.0.1:{self.masters[1].port}/"

    def node_of(self, key: str) -> Node:
        """Find who has a key's slot."""
        slot = key_slot(key.encode())
        for node in self.nodes:
            if node.process.poll() is None:
                for first, last, (_, port, *_), *_ in node.ask("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return next(node for node in self.nodes if node.port == port)
        raise AssertionError("nobody has it")

    def begin_to_move(self, key: str, target: Node) -> Node:
        """Have a key's slot be about to move; give the node that has it until then."""
        slot, source = key_slot(key.encode()), self.node_of(key)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        return source

    def move_keys(self, key: str, source: Node, target: Node, most: int = 1000) -> int:
        """Move keys of a slot that is about to move, as `redis-cli --cluster reshard` does."""
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", key_slot(key.encode()), most)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_to_move(self, key: str, target: Node) -> None:
        """Have a slot be another node's: first that one hears of it."""
        slot = key_slot(key.encode())
        for node in [target, *(node for node in self.masters if node is not target)]:
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move(self, key: str, target: Node) -> None:
        """Move a slot, with all that is in it."""
        source = self.begin_to_move(key, target)
        while self.move_keys(key, source, target):
            pass
        self.end_to_move(key, target)

    def end(self) -> None:
        for node in self.nodes:
            node.end()


@contextlib.contextmanager
def running_cluster(*options: str, replicas: bool = False) -> Iterator[Cluster]:
    """Have a cluster of three masters run meanwhile."""
    with tempfile.TemporaryDirectory(prefix="asyncguard-cluster-") as directory:
        cluster = Cluster(directory, replicas=replicas, options=options)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.end()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what servers tell each other."""
    end = time.monotonic() + _SETTLES_WITHIN
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if condition():
                return
        assert time.monotonic() < end, "the servers didn't settle in time"
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in free]
