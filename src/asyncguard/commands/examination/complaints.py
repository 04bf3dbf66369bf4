"""What a server, or the way to it, complains of: in words, and what to do about it."""

from __future__ import annotations

from typing import Final

import redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
)

GIVE_RIGHTS: Final = "Give it the rights that docs/redis.md lists"
_REASONS: Final[tuple[tuple[type[Exception], str, str, str], ...]] = (
    (
        AuthenticationError,
        "",
        "it doesn't take the name and password",
        "See to them in the URL: redis://user:password@host:6379/0",
    ),
    (BusyLoadingError, "", "it is loading its data", "Wait until it has, and look again"),
    (InvalidResponse, "", "what answers there isn't Redis or Valkey", "See to host and port in the URL"),
    (
        redis.ConnectionError,
        "SSL",
        "TLS failed",
        "Use rediss:// where it has TLS, redis:// where not; ssl_ca_certs=FILE names a CA of your own",
    ),
    (
        redis.ConnectionError,
        "max number of clients",
        "as many clients are connected as it allows",
        "Raise maxclients, or find out who they are: CLIENT LIST",
    ),
    *(
        (
            redis.ConnectionError,
            text,
            "it hung up",
            "See to host and port, to whether it wants TLS (rediss://), and to its log",
        )
        for text in ("closed", "reset")
    ),
    (
        redis.TimeoutError,
        "",
        "it doesn't answer",
        "See that it runs, that no firewall is between, and that it has TLS if the URL says rediss://",
    ),
    (redis.ConnectionError, "", "it can't be reached", "See that it runs, and to host and port in the URL"),
    (NoPermissionError, "", "it denies a command", GIVE_RIGHTS),
    (OutOfMemoryError, "", "it is full, and lets nobody in", "Raise maxmemory, or find out what fills it"),
    (ReadOnlyError, "", "it takes no writes, as it is a replica", "Use the primary's URL"),
    (redis.ResponseError, "ACL failure", "it denies a command", GIVE_RIGHTS),
    (redis.ResponseError, "can't run this command", "it denies a command", GIVE_RIGHTS),  # Redis 7.0's words
    (
        redis.ResponseError,
        "MISCONF",
        "it takes no writes, as it can't write to its disk",
        "See what its log says",
    ),
    (
        redis.ResponseError,
        "NOREPLICAS",
        "it takes no writes, as it has fewer replicas than min-replicas-to-write",
        "See that its replicas run",
    ),
    (redis.ResponseError, "CLUSTERDOWN", "its cluster is down", "See that each slot is on a node that runs"),
    (redis.ResponseError, "BUSY", "a script keeps it busy", "See which, in SLOWLOG; end it by SCRIPT KILL"),
    (redis.ResponseError, "DB index", "it has no database of that number", "See to the number in the URL"),
    (redis.RedisError, "", "it answers with an error", "See what its log says"),
)
"""Of which class an error is, what it says, and what that means, and what to do about it."""


def is_moved(error: redis.ResponseError) -> bool:
    """Tell whether another node of a cluster has the key; older drivers have no class for that here."""
    return isinstance(error, MovedError) or str(error).startswith("MOVED ")


def explain(error: redis.RedisError) -> tuple[str, str]:
    """Say what an error means, and what to do about it."""
    if isinstance(error, redis.ResponseError) and is_moved(error):
        return f"another node has this guard ({error})", "Use a URL that begins with redis+cluster://"
    for kind, text, said, advice in _REASONS:
        if isinstance(error, kind) and text in str(error):
            return f"{said} ({error})", advice
    raise error
