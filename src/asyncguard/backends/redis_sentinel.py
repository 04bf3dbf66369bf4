"""The master of a service that sentinels watch over: whichever server that is when one connects."""

from __future__ import annotations

from typing import Any, Final, final

import redis

from asyncguard.backends.redis_url import FAULTS, OneServer, RedisUrl, database

_PORT: Final = 26379
_OF_SENTINELS: Final = {"sentinel_username": "username", "sentinel_password": "password"}
"""Options of a URL that are for the sentinels: user and password in it are for the servers."""


@final
class SentinelServer(OneServer):
    """redis+sentinel://user:password@host:26379,host2:26379/service/0.

    Each new connection asks the sentinels anew. After a failover the old master is gone, or answers that it
    is READONLY, or the sentinels name another than the one that one is connected to: they are asked each
    second, as they tell a master that still works only after some ten that it isn't one any more.
    """

    rests_on = (
        "masters keeping what they acknowledged, also when a replica takes over (one that lagged has "
        "forgotten the last grants, and may make them again)"
    )

    def __init__(self, url: str) -> None:
        super().__init__(known := RedisUrl(url, port=_PORT, options=(*_OF_SENTINELS,)))
        if not 1 <= len(known.path) <= 2:  # noqa: PLR2004
            raise ValueError(
                "url: expected sentinels and the service that they watch over, as in "
                f"redis+sentinel://host:26379,host2:26379/service/0, got {known.name!r}"
            )
        self._service = known.path[0]
        self._db = database(known.name, known.path[1:])
        self._sentinels = known.addresses
        self._login = {"username": None, "password": None, "db": 0} | {
            _OF_SENTINELS[name]: value for name, value in known.options.items()
        }
        self.place: object = ("redis+sentinel", self._service, self._db, *sorted(known.addresses))
        """What is equal for the same service, as far as a URL tells."""

    def connect(self) -> Any:
        """Make a connection of redis-py to the master, and connect it."""
        return self._url.connect(self._find_master(), db=self._db)

    def has_moved(self, connection: Any) -> bool:
        """Tell whether another is the master by now: one that was deposed may not know that for seconds."""
        try:
            return self._find_master() != (connection.host, connection.port)
        except redis.ConnectionError:
            return False

    def _find_master(self) -> tuple[str, int]:
        faults = []
        for sentinel in self._sentinels:
            try:
                found = self._ask(sentinel)
            except FAULTS as fault:
                faults.append(f"{sentinel[0]}:{sentinel[1]}: {fault}")
                continue
            if found is not None:  # this one is asked first the next time
                self._sentinels = [sentinel, *(other for other in self._sentinels if other != sentinel)]
                return found
            faults.append(f"{sentinel[0]}:{sentinel[1]} knows no such service")
        raise redis.ConnectionError(
            f"no sentinel says which is the master of {self._service!r} ({'; '.join(faults)})"
        )

    def _ask(self, sentinel: tuple[str, int]) -> tuple[str, int] | None:
        connection = self._url.connect(sentinel, **self._login)
        try:
            connection.send_command("SENTINEL", "get-master-addr-by-name", self._service, check_health=False)
            answer = connection.read_response()
        finally:
            connection.disconnect()
        return None if answer is None else (answer[0].decode(), int(answer[1]))
