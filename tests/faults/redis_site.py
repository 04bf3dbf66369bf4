"""A Redis or Valkey server for a fault run, behind a proxy, and what is done to both."""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, final

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where is what all tests share

from meddling import MeddlingProxy
from valkey_server import ValkeyServer

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

Fault = Literal["cut", "notices", "outage", "replies", "doubles", "restart", "wipe", "promote", "clock"]
"""What is done: see `RedisSite.inflict`."""
_HOUR: Final = 3600 * 1_000_000
_KEEPS: Final = ("--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0")
_IN_STEP_WITHIN: Final = 10.0


@final
class RedisSite:
    """Where the guards of a run live: a server, its replica if that is to be promoted, and the way there."""

    def __init__(self, directory: Path, lease: float, chance: random.Random, *, replica: bool) -> None:
        self._lease = lease
        self._chance = chance
        self.servers = [self._make(directory / "server")]
        if replica:
            self.servers.append(self._make(directory / "replica"))
        self._proxy = MeddlingProxy(self.servers[0].url)
        self._between = MeddlingProxy(self.servers[0].url)
        """What goes from the server to its replica."""
        self.clock = directory / "clock"
        """Holds by how many microseconds the server's clock is wrong; workers read it."""
        self._endings: list[tuple[float, Callable[[], None]]] = []
        self.done: list[tuple[Fault, int]] = []
        """What was done, and when it was over: nanoseconds of the monotonic clock."""

    def start(self) -> None:
        """Have it run."""
        self.clock.write_text(f"{0:+020d}")
        self._proxy.__enter__()
        self._between.__enter__()
        self.servers[0].start()
        if len(self.servers) > 1:
            self.servers[1].start()
            self._follow()

    @property
    def url(self) -> str:
        """What workers use."""
        return f"{self._proxy.url}?lease={self._lease}"

    @property
    def url_past_the_proxy(self) -> str:
        """What leads there, whatever is done to the network."""
        return f"{self.servers[0].url}?lease={self._lease}"

    @property
    def counts(self) -> Counter[Fault]:
        """How often each was done."""
        return Counter(fault for fault, _ in self.done)

    def inflict(self, fault: Fault) -> None:
        """Do one thing; what lasts ends by itself, if `see_to_endings` is called now and then."""
        proxy, chance = self._proxy, self._chance
        lasts = 0.0
        if fault == "cut":
            proxy.cut()
        elif fault == "notices":
            proxy.holds_notices = True
            lasts = chance.uniform(0.1, 1.0)
        elif fault == "outage":
            proxy.is_black_hole = True
            lasts = chance.uniform(0.05, 1.2) * self._lease
        elif fault == "replies":
            proxy.loses_replies = True
            lasts = chance.uniform(0.01, 0.1)
        elif fault == "doubles":
            proxy.doubles_requests = True
            lasts = chance.uniform(0.1, 0.5)
        elif fault == "restart":
            self._restart()
        elif fault == "wipe":
            self._wipe()
        elif fault == "promote":
            self._promote()
        else:
            with self.clock.open("r+") as file:  # which is never empty so
                file.write(f"{chance.choice((-_HOUR, 0, _HOUR)):+020d}")
        self._endings.append((time.monotonic() + lasts, lambda: self._end(fault)))

    def see_to_endings(self, now: float) -> None:
        """End what has lasted for long enough."""
        for ending in [ending for ending in self._endings if ending[0] <= now]:
            self._endings.remove(ending)
            ending[1]()

    def heal(self) -> None:
        """End all that lasts."""
        self.see_to_endings(float("inf"))

    def close(self) -> None:
        """End it."""
        for proxy in (self._proxy, self._between):
            proxy.__exit__()
        for server in self.servers:
            server.kill()

    # --- what is done --------------------------------------------------------------------------

    @staticmethod
    def _make(directory: Path) -> ValkeyServer:
        directory.mkdir()
        return ValkeyServer(directory, *_KEEPS)

    def _end(self, fault: Fault) -> None:
        proxy = self._proxy
        if fault == "notices":
            proxy.holds_notices = False
        elif fault == "outage":
            proxy.is_black_hole = False
        elif fault == "replies":
            proxy.loses_replies = False
            proxy.cut()
        elif fault == "doubles":
            proxy.doubles_requests = False
        self.done.append((fault, time.monotonic_ns()))

    def _restart(self) -> None:
        """Kill the server; another one starts with all the data that was acknowledged."""
        self.servers[0].kill()
        time.sleep(self._chance.uniform(0, 0.3))
        self.servers[0].start()

    def _wipe(self) -> None:
        """Kill the server; another one starts with nothing."""
        self.servers[0].kill()
        self._forget(self.servers[0])
        self.servers[0].start()

    def _promote(self) -> None:
        """Have the replica lag, kill the server, and have all use the replica from now on."""
        server, replica = self.servers
        self._between.is_black_hole = True
        time.sleep(self._chance.uniform(0.05, 0.5))
        server.kill()
        self._between.cut()
        replica.ask("REPLICAOF", "NO", "ONE")
        self._proxy.target = ("127.0.0.1", replica.port)
        self._proxy.cut()
        self._between.is_black_hole = False
        self._forget(server)
        server.start()
        self.servers = [replica, server]
        self._follow()

    def _follow(self) -> None:
        """Have the replica copy the server, through the proxy between them, and wait until it does."""
        server, replica = self.servers
        self._between.target = ("127.0.0.1", server.port)
        replica.ask("REPLICAOF", "127.0.0.1", int(self._between.url.rpartition(":")[2].partition("/")[0]))
        until = time.monotonic() + _IN_STEP_WITHIN
        while replica.ask("INFO", "replication")["master_link_status"] != "up":
            assert time.monotonic() < until, "the replica doesn't follow"
            time.sleep(0.01)

    @staticmethod
    def _forget(server: ValkeyServer) -> None:
        for kept in server.directory.iterdir():
            if kept.is_dir():
                shutil.rmtree(kept)
            else:
                kept.unlink()
