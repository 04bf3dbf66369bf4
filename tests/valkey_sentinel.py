"""A master, its replica, and sentinels that watch over them: of this host, and nobody else's."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valkey_cluster import free_ports, until
from valkey_server import SERVER, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "guards"


class Server:
    """One of them."""

    def __init__(self, port: int, *command: str) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [SERVER, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def ask(self, *command: object) -> Any:
        """Have it do something."""
        with contextlib.closing(connect(f"redis://127.0.0.1:{self.port}")) as connection:
            return connection.execute_command(*command)

    def answers(self) -> bool:
        """Tell whether it has started."""
        return bool(self.ask("PING"))

    def end(self) -> None:
        """Have it gone at once, also where it was stopped."""
        self.process.kill()
        self.process.wait()


class Watched:
    """The servers, one of which is the master, and the sentinels."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: list[Server] = []
        self.sentinels: list[Server] = []

    def start(self) -> None:
        ports = free_ports(5)
        for port in ports[:2]:
            follows = ["--replicaof", f"127.0.0.1 {ports[0]}"] if self.servers else []
            usual = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory)]
            server = Server(port, *usual, "--repl-diskless-sync-delay", "0", *follows)
            self.servers.append(server)
            until(server.answers)
        until(lambda: self.servers[1].ask("ROLE")[3] == b"connected")
        for port in ports[2:]:
            file = self.directory / f"{port}.conf"
            file.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {self.directory}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} 500\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            self.sentinels.append(Server(port, str(file), "--sentinel"))
        until(lambda: all(_sees_all(sentinel) for sentinel in self.sentinels))

    @property
    def url(self) -> str:
        """What an AsyncGuard is given; first a sentinel that isn't there."""
        addresses = [f"127.0.0.1:{port}" for port in (1, *(sentinel.port for sentinel in self.sentinels))]
        return f"redis+sentinel://{','.join(addresses)}/{SERVICE}/0"

    def master(self) -> Server:
        """Ask a sentinel which it is."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def end(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.end()


def _sees_all(sentinel: Server) -> bool:
    seen = sentinel.ask("SENTINEL", "MASTER", SERVICE)
    told = dict(zip(seen[::2], seen[1::2], strict=True))
    return (int(told[b"num-slaves"]), int(told[b"num-other-sentinels"])) == (1, 2)


@contextlib.contextmanager
def running_sentinels() -> Iterator[Watched]:
    """Have a master, a replica and three sentinels run meanwhile."""
    with tempfile.TemporaryDirectory(prefix="asyncguard-sentinel-") as directory:
        watched = Watched(Path(directory))
        try:
            watched.start()
            yield watched
        finally:
            watched.end()
