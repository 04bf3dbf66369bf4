"""What is wrong with a Redis or Valkey server, for guards: looked up, measured, and tried.

An application's own user may be allowed little. So whatever can be tried is tried with what the backend sends
too, and what only INFO and CONFIG tell is `unseen` where they are denied.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import statistics
import time
import uuid
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, NoScriptError
from redis.retry import Retry

from asyncguard.backends.redis_rules import SCRIPT, SHA, Answer, Call, RedisRules, Row
from asyncguard.backends.redis_url import SCHEMES, RedisServer
from asyncguard.clock import TICKS
from asyncguard.commands.examination import Finding, settings, unseen
from asyncguard.commands.examination.complaints import GIVE_RIGHTS, explain, is_moved
from asyncguard.ticket import Declaration, Rules, Terms, new_ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_CLUSTER: Final = "redis+cluster"
_OF_THE_BACKEND: Final = ("lease", "timeout")
"""Options of a URL that the driver doesn't know."""
_CONNECT, _ANSWER = 2.0, 5.0
"""Seconds."""
_LEASE: Final = 10 * TICKS
_EXAMINATION: Final = (
    resources.files("asyncguard.commands.examination").joinpath("server.lua").read_text("utf-8")
)
_EXAMINATION_SHA: Final = hashlib.sha1(_EXAMINATION.encode(), usedforsecurity=False).hexdigest()
_SAMPLES: Final = 300
_FOR: Final = 2.0
"""Seconds after which no more samples are taken of one thing."""
_SLOW, _OFF = 0.1, 1.0
"""Seconds from which on it is a warning: of a round trip, and between two clocks."""
_PLACES: Final = 200
"""Names that are tried for a guard on this node of a cluster."""

SCRIPTED: Final = (
    ("GET", "g"),
    ("MGET", "g"),
    ("SET", "g", "v"),
    ("SETRANGE", "r", "0", "v"),
    ("DEL", "g"),
    ("HGET", "c", "f"),
    ("HMGET", "c", "f"),
    ("HGETALL", "c"),
    ("HSET", "c", "f", "v"),
    ("HDEL", "c", "f"),
    ("HINCRBY", "c", "f", "1"),
    ("ZADD", "k", "1", "m"),
    ("ZREM", "k", "m"),
    ("ZCARD", "k"),
    ("ZCOUNT", "k", "0", "1"),
    ("ZRANGE", "k", "0", "1"),
    ("ZRANGEBYLEX", "k", "-", "+"),
    ("ZRANGEBYSCORE", "k", "0", "1"),
    ("ZRANK", "k", "m"),
    ("ZSCORE", "k", "m"),
)
"""What `redis.lua` runs, `TIME` and messages aside, with a key's end in the second place."""
_LEFT: Final = ("g", "c", "r", "k", "i", "x", "p:", "q:", "l:")
"""What a guard without keys may leave; besides, tickets leave tombstones."""


def examine(url: str, namespace: str) -> Iterator[Finding]:
    """Examine the server that a URL names, with a guard of its own in a namespace; nothing is left behind.

    Raises:
        ValueError: it isn't a URL of a server.
    """
    client = _connect(url)
    try:
        yield from _Examination(client, url, namespace).run()
    finally:
        client.close()


def public(url: str) -> str:
    """Write a URL without the name and password in it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[?#]', rest.rpartition('@')[2])[0]}"


def _connect(url: str) -> Any:
    parts = urlsplit(url)
    scheme = parts.scheme.lower().replace(_CLUSTER, "redis")
    expected = f"as in redis://host:6379/0, got {public(url)!r}"
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError(
            f"url: expected /, ? and # in a name or password to be written %2F, %3F and %23, {expected}"
        )
    if not parts.hostname:
        raise ValueError(f"url: expected a host, {expected}")
    if not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError(f"url: expected the number of a database, {expected}")
    RedisServer(urlunsplit((scheme, *parts[1:])))  # refuses what the backend does
    options = [(name, value) for name, value in parse_qsl(parts.query) if name not in _OF_THE_BACKEND]
    client: Any = redis.Redis.from_url(
        urlunsplit((SCHEMES[scheme], parts.netloc, parts.path, urlencode(options), "")),
        socket_connect_timeout=_CONNECT,
        socket_timeout=_ANSWER,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
    try:
        client.connection_pool.make_connection()  # which connects nowhere, but knows all options
    except TypeError as error:
        client.close()
        raise ValueError(f"url: {public(url)}: {error}") from None
    return client


@final
class _Examination:
    """One examination of one server."""

    def __init__(self, client: Any, url: str, namespace: str) -> None:
        self._client = client
        self._url = url
        self._namespace = namespace
        self._of_cluster = urlsplit(url).scheme.lower() == _CLUSTER
        self._user = unquote(urlsplit(url).username or "default")

    def run(self) -> Iterator[Finding]:
        """Check one thing after another; without a connection there is nothing else to be seen."""
        name = public(self._url)
        try:
            with contextlib.suppress(NoPermissionError):  # which the rights tell of
                self._client.ping()
            info, config = self._look_up()
        except redis.RedisError as error:
            said, advice = explain(error)
            yield Finding("connection", "wrong", f"{name}: {said}", advice)
            return
        yield Finding("connection", "ok", f"{name} answers the user {self._user!r}")
        yield settings.version(info, config)
        yield settings.role(info, config)
        yield self._cluster(info)
        yield settings.eviction(info, config)
        yield settings.memory(info, config)
        yield settings.persistence(info, config)
        yield settings.replication(info, config)
        yield settings.limits(info, config)
        yield self._tried("clock", self._clock)
        rights = self._tried("rights", self._rights)
        yield rights
        yield self._tried("latency", self._latency)
        if rights.verdict == "wrong":  # then nobody could delete what is left of it
            yield Finding("grant", "unseen", "it wasn't tried, as rights are missing")
        else:
            yield self._tried("grant", self._grant)

    def _tried(self, name: str, check: Callable[[], Finding]) -> Finding:
        try:
            return check()
        except redis.RedisError as error:
            return Finding(name, "wrong", *explain(error))

    # --- what is looked up -------------------------------------------------------------------------

    def _look_up(self) -> tuple[dict[str, Any], dict[str, str]]:
        info: dict[str, Any] = {}
        config: dict[str, str] = {}
        with contextlib.suppress(redis.ResponseError):  # it isn't allowed, or not known
            info = self._client.info()
        with contextlib.suppress(redis.ResponseError):
            config = self._client.config_get("*")
        return info, config

    def _cluster(self, info: dict[str, Any]) -> Finding:
        enabled = info.get("cluster_enabled")
        if enabled is None:
            return unseen("cluster", "INFO")
        if enabled and self._of_cluster:
            return self._state_of_cluster()
        if enabled:
            said = "it is one node of a cluster: it has only some of the guards, and sends the others away"
            return Finding("cluster", "wrong", said, "Use a URL that begins with redis+cluster://")
        if self._of_cluster:
            return Finding("cluster", "wrong", "it is in no cluster", "Use a URL that begins with redis://")
        return Finding("cluster", "ok", "it is no node of a cluster")

    def _state_of_cluster(self) -> Finding:
        try:
            state = self._client.execute_command("CLUSTER INFO")
        except redis.RedisError:
            return unseen("cluster", "CLUSTER INFO")
        if state.get("cluster_state") != "ok":
            said = f"the cluster's state is {state.get('cluster_state')!r}, so nothing can be granted"
            return Finding("cluster", "wrong", said, "See that each slot is on a node that runs")
        size = state.get("cluster_size")
        return Finding("cluster", "ok", f"the cluster of {size} serves all slots; only this node is examined")

    # --- what is measured --------------------------------------------------------------------------

    def _clock(self) -> Finding:
        best: tuple[float, float] | None = None
        for _ in range(7):
            sent = time.time()
            began = time.perf_counter()
            seconds, microseconds = self._client.time()
            took = time.perf_counter() - began
            if best is None or took < best[0]:
                best = took, seconds + microseconds / 1e6 - sent - took / 2
        assert best is not None  # noqa: S101 - for type checkers
        took, ahead = best
        said = (
            f"its clock is {abs(ahead) * 1e3:,.1f} ms {'ahead of' if ahead > 0 else 'behind'} this host's, "
            f"give or take {took / 2 * 1e3:,.1f}"
        )
        if abs(ahead) - took / 2 > _OFF:
            said += ": leases rest on its rate alone, but tokens are its microseconds, also after a failover"
            return Finding("clock", "warning", said, "Have NTP set the clocks of its hosts, and of this one")
        return Finding("clock", "ok", said)

    def _rights(self) -> Finding:
        rules = RedisRules(self._namespace, "doctor", 0, cluster=self._of_cluster)
        base = rules.base(_new_name())
        ring, hear = ("SPUBLISH", "SSUBSCRIBE") if self._of_cluster else ("PUBLISH", "SUBSCRIBE")
        channel = f"{base}:c:doctor"
        asked: list[tuple[str, ...]] = [
            ("PING",),
            ("TIME",),
            ("EVALSHA", SHA, "1", f"{base}:g"),
            ("SCRIPT", "LOAD", "return 1"),
            (hear, channel),
            (ring, channel, "text"),
            *((name, f"{base}:{end}", *rest) for name, end, *rest in SCRIPTED),
        ]
        words = [word for command in asked for word in (len(command), *command)]
        user = f"the user {self._user!r}"
        try:
            denied = [asked[int(place)] for place in self._call(_EXAMINATION, [], words)]
        except NoPermissionError as error:  # of EVALSHA, or of SCRIPT LOAD
            return Finding("rights", "wrong", f"{user} may not run scripts: {error}", GIVE_RIGHTS)
        except redis.ResponseError as error:
            return Finding("rights", "unseen", f"what {user} may do couldn't be seen: {error}")
        if not denied:
            return Finding("rights", "ok", f"{user} may do all that the backend does")
        names = ", ".join(" ".join(each[:2]) if each[0] == "SCRIPT" else each[0] for each in denied)
        said = f"{user} may not run {names} on the keys and channels asyncguard:*"
        return Finding("rights", "wrong", said, GIVE_RIGHTS)

    def _latency(self) -> Finding:
        rules = RedisRules(self._namespace, "doctor", 0, cluster=self._of_cluster)
        pings = _samples(self._client.ping)
        declaration = Declaration(_new_name(), Rules())
        try:
            declaration = self._placed(rules, declaration)
            call = rules.is_full(declaration, None, 1)
            steps = _samples(lambda: self._run(call))
        except redis.ResponseError as error:
            return Finding("latency", "unseen", f"PING {_times(pings)}; no script could be run: {error}")
        said = f"PING {_times(pings)}; a step of the rules {_times(steps)}"
        if statistics.median(steps) > _SLOW:
            said += ": whoever takes a permit waits for two of these, and so does the next in line"
            return Finding("latency", "warning", said, "Use a server that is nearer, or less busy")
        if _quantile(steps) > _SLOW:
            said += ": now and then it stalls"
            return Finding("latency", "warning", said, "See SLOWLOG, LATENCY DOCTOR, and what its host does")
        return Finding("latency", "ok", said)

    # --- what is tried -----------------------------------------------------------------------------

    def _grant(self) -> Finding:
        one, two = (RedisRules(self._namespace, name, 0, cluster=self._of_cluster) for name in ("one", "two"))
        declaration = self._placed(one, Declaration(_new_name(), Rules(limit=1)))
        base = one.base(declaration.name)
        listening = self._client.pubsub()
        try:
            if self._of_cluster:
                listening.ssubscribe(two.channel(declaration.name))
            else:
                listening.subscribe(two.channel(declaration.name))
            problem = self._hand_over(declaration, one, two, listening)
        finally:
            listening.close()
            left = [f"{base}:{end}" for end in (*_LEFT, "t:one.1", "t:two.1")]
            with contextlib.suppress(redis.RedisError):
                self._call(_EXAMINATION, left, [])
        if problem:
            return Finding("grant", "wrong", problem, "Report it, please, with the lines above")
        return Finding("grant", "ok", "a permit was granted, waited for, handed over, told of, and released")

    def _hand_over(self, declaration: Declaration, one: RedisRules, two: RedisRules, listening: Any) -> str:
        """Have one client hold, and another wait and get the permit; say what went wrong."""
        self._heard(listening, _ANSWER)  # that it listens
        first, second = (
            new_ticket(f"{client.client}.1", Terms(declaration, "doctor", lease=_LEASE), None)
            for client in (one, two)
        )
        held = self._ask(one, one.enter(first)).rows[0]
        waits = self._ask(two, two.enter(second)).rows[0]
        if (held.state, waits.state) != ("held", "waiting"):
            return f"of two that enter a guard of limit 1, one {held.state} and one {waits.state}"
        self._ask(one, one.leave(first))
        told = self._told(two, listening)
        taken = self._ask(two, two.enter(second)).rows[0]
        self._ask(two, two.leave(second))
        if taken.state != "held":
            return f"a permit that was released isn't handed to the next, which is {taken.state}"
        if taken.granted <= held.granted:
            return f"the second token, {taken.granted}, isn't above the first, {held.granted}"
        if [(row.id, row.state) for row in told] != [(second.id, "held")]:
            return f"who waited wasn't told by a message within a second (but {told})"
        return ""

    def _told(self, client: RedisRules, listening: Any) -> list[Row]:
        message = self._heard(listening, 1.0)
        return [] if message is None else client.read_message(message["data"])

    def _heard(self, listening: Any, seconds: float) -> Any:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if (message := listening.get_message(timeout=left)) is not None:
                return message
        return None

    def _placed(self, rules: RedisRules, declaration: Declaration) -> Declaration:
        """Find a name for a guard that is on this node."""
        for _ in range(_PLACES):
            try:
                self._run(rules.is_full(declaration, None, 1))
            except redis.ResponseError as error:
                if not self._of_cluster or not is_moved(error):
                    raise
                declaration = Declaration(_new_name(), declaration.rules)
            else:
                break
        return declaration

    def _ask(self, rules: RedisRules, call: Call) -> Answer:
        return rules.read(call, self._run(call))

    def _run(self, call: Call) -> Any:
        return self._call(SCRIPT, [call.key], call.args)

    def _call(self, script: str, keys: Sequence[str], words: Sequence[Any]) -> Any:
        sent = len(keys), *keys, *words
        try:
            return self._client.evalsha(_digest(script), *sent)
        except NoScriptError:
            return self._client.evalsha(self._client.script_load(script), *sent)


def _digest(script: str) -> str:
    return SHA if script is SCRIPT else _EXAMINATION_SHA


def _new_name() -> str:
    return f"asyncguard-doctor-{uuid.uuid4()}"


def _samples(what: Callable[[], object]) -> list[float]:
    """Measure what takes a round trip, in seconds, some hundred times or for some seconds."""
    took: list[float] = []
    until = time.perf_counter() + _FOR
    while len(took) < _SAMPLES and (began := time.perf_counter()) < until:
        what()
        took.append(time.perf_counter() - began)
    return took


def _quantile(took: list[float]) -> float:
    return sorted(took)[len(took) * 99 // 100]


def _times(took: list[float]) -> str:
    return f"{statistics.median(took) * 1e3:.2f} ms (99 % within {_quantile(took) * 1e3:.2f})"
