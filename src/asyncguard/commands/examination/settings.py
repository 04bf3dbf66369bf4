"""What a server's INFO and CONFIG say, for guards; pure, and each function judges one matter.

`info` and `config` are what the server told, as redis-py reads it; empty where it isn't allowed to be asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asyncguard.commands.examination import Finding, unseen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncguard.commands.examination import Verdict

    Info = Mapping[str, Any]
    Config = Mapping[str, str]

_LEAST: Final = {"Redis": (7, 0), "Valkey": (8, 0)}
_LIKE_REDIS: Final = ("dragonfly_version", "garnet_version")
"""What others tell, that say they are some Redis too."""
_NEARLY: Final = 0.8
_SHORT_TIMEOUT: Final = 30
"""Seconds."""
_SHORT_SCRIPT: Final = 1000
"""Milliseconds."""
_SMALL_BUFFER: Final = 1 << 20
_MEGABYTE: Final = 1_000_000


def version(info: Info, _: Config) -> Finding:
    """See that scripts find what they need."""
    if not info:
        return unseen("version", "INFO")
    brand = "Valkey" if "valkey_version" in info else "Redis"
    number = str(info.get("valkey_version") or info.get("redis_version", ""))
    least = ".".join(map(str, _LEAST[brand]))
    if not number or any(name in info for name in _LIKE_REDIS):
        said = "it isn't Redis or Valkey: guards weren't tried on it"
        return Finding("version", "warning", said, "See what the test grant below says")
    if tuple(int(part) for part in number.split(".") if part.isdigit()) >= _LEAST[brand]:
        return Finding("version", "ok", f"{brand} {number}")
    if brand == "Valkey":
        said = f"Valkey {number}: guards were tried on {least} and newer"
        return Finding("version", "warning", said, "Update it")
    said = f"Redis {number}: scripts need what Redis has from {least} on"
    return Finding("version", "wrong", said, f"Update it to Redis {least}, or to Valkey")


def role(info: Info, _: Config) -> Finding:
    """See that it takes writes."""
    if "role" not in info:
        return unseen("role", "INFO")
    if info["role"] == "master":
        return Finding("role", "ok", "it is the primary, and takes writes")
    primary = f"{info.get('master_host')}:{info.get('master_port')}"
    said = f"it is a replica of {primary}, which takes no writes: nothing can be granted"
    return Finding("role", "wrong", said, "Use the primary's URL, or one that follows it")


def eviction(info: Info, config: Config) -> Finding:
    """See that nothing is forgotten because memory is short."""
    policy = info.get("maxmemory_policy") or config.get("maxmemory-policy")
    if policy is None:
        return unseen("eviction", "INFO")
    if policy == "noeviction":
        said = "maxmemory-policy is noeviction: a full server refuses, and forgets nothing"
        return Finding("eviction", "ok", said)
    said = f"maxmemory-policy is {policy}: when memory is short the server forgets "
    advice = "Set maxmemory-policy noeviction, or use a server of its own for guards"
    if policy.startswith("volatile-"):
        said += "which tickets have left, so that one whose request to enter comes late could be let in"
        return Finding("eviction", "warning", said, advice)
    said += "who holds and who waits"
    if not info.get("maxmemory"):
        return Finding("eviction", "warning", f"{said}; it has no maxmemory by now", advice)
    return Finding("eviction", "wrong", said, advice)


def memory(info: Info, _: Config) -> Finding:
    """See that there is room."""
    used, most = info.get("used_memory"), info.get("maxmemory")
    if used is None or most is None:
        return unseen("memory", "INFO")
    if not most:
        return Finding("memory", "ok", f"{_size(used)} are used; there is no maxmemory")
    said = f"{_size(used)} of maxmemory {_size(most)} are used ({used / most:.0%})"
    if used < _NEARLY * most:
        return Finding("memory", "ok", said)
    advice = "Raise maxmemory, or find out what fills it: a ticket takes less than a kilobyte"
    verdict: Verdict = "wrong" if used >= most else "warning"
    return Finding("memory", verdict, f"{said}: a full server lets nobody in", advice)


def persistence(info: Info, config: Config) -> Finding:
    """See what a restart would lose."""
    appends = config.get("appendonly", {0: "no", 1: "yes"}.get(info.get("aof_enabled", -1)))
    if appends is None:
        return unseen("persistence", "INFO")
    for name in ("aof_last_write_status", "rdb_last_bgsave_status"):
        if info.get(name, "ok") != "ok":
            said = f"it can't write to its disk ({name} is {info[name]}), and may refuse writes"
            return Finding("persistence", "wrong", said, "See its log, and whether its disk is full")
    if appends == "yes":
        return _appending(config.get("appendfsync"))
    save = config.get("save")
    if save:
        said = f"appendonly no, save {save}: a restart loses the permits since the last snapshot"
    elif save is None:
        said = "appendonly no: a restart loses the permits since the last snapshot, if there are any"
    else:
        said = "nothing is written to disk: a restart loses all permits"
    said += ", whose holders are told at their next renewal, while others may hold already; tokens grow on"
    return Finding("persistence", "warning", said, "Set appendonly yes")


def _appending(sync: str | None) -> Finding:
    if sync is None:
        said = (
            "appendonly yes: a restart keeps guards; when it syncs couldn't be seen, as CONFIG isn't allowed"
        )
        return Finding("persistence", "ok", said)
    said = f"appendonly yes, appendfsync {sync}: a restart keeps guards; when its host fails, "
    if sync == "always":
        return Finding("persistence", "ok", f"{said}nothing is lost")
    if sync == "everysec":
        return Finding("persistence", "ok", f"{said}grants of the last seconds may be lost")
    said += "grants of the last half minute may be lost"
    return Finding("persistence", "warning", said, "Set appendfsync everysec")


def replication(info: Info, config: Config) -> Finding:
    """See what a failover would lose."""
    replicas = info.get("connected_slaves")
    if replicas is None:
        return unseen("replication", "INFO")
    if not replicas:
        return Finding("replication", "ok", "it has no replicas: there is nothing to fail over to")
    s = "" if replicas == 1 else "s"
    said = f"{replicas} replica{s} may lag behind: a failover may lose the last grants"
    least = config.get("min-replicas-to-write")
    if least is None:
        return Finding("replication", "unseen", f"{said}; min-replicas-to-write couldn't be seen")
    if least == "0":
        said += ", and a primary that is cut off from them grants on, beside the new one"
        return Finding(
            "replication", "warning", said, "Set min-replicas-to-write 1, and min-replicas-max-lag"
        )
    lag = config.get("min-replicas-max-lag")
    said += f"; without {least} that answered within {lag} s it takes no writes"
    return Finding("replication", "ok", said)


def limits(info: Info, config: Config) -> Finding:
    """See that connections are kept, and scripts let run."""
    if not config:
        which = ": timeout, busy-reply-threshold, client-output-buffer-limit, maxclients"
        return unseen("limits", "CONFIG", which)
    said, advice = [], []
    idle = int(config.get("timeout", 0))
    if 0 < idle < _SHORT_TIMEOUT:
        said.append(f"timeout {idle}: a connection that is idle for that many seconds is cut, and made anew")
        advice.append("timeout 0")
    busy = int(config.get("lua-time-limit", 0))
    if 0 < busy < _SHORT_SCRIPT:
        said.append(f"busy-reply-threshold {busy}: others get errors when a script takes that many ms")
        advice.append("busy-reply-threshold 5000")
    words = config.get("client-output-buffer-limit", "").split()
    hard = int(words[words.index("pubsub") + 1]) if "pubsub" in words else 0
    if 0 < hard < _SMALL_BUFFER:
        said.append(f"client-output-buffer-limit pubsub {_size(hard)}: who is told much at once is cut")
        advice.append('client-output-buffer-limit "pubsub 32mb 8mb 60"')
    clients, most = info.get("connected_clients", 0), int(config.get("maxclients", 0))
    if most and clients >= _NEARLY * most:
        said.append(f"{clients} clients of maxclients {most} are connected")
        advice.append("a larger maxclients")
    if said:
        return Finding("limits", "warning", "; ".join(said), f"Set {', '.join(advice)}")
    return Finding("limits", "ok", "timeouts, buffers and the number of clients are no hindrance")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= _MEGABYTE else f"{count / 1e3:,.1f} KB"
