"""Fences: what a permit guards takes writes from its newest holder alone, by the permits' tokens.

No lease can stop a holder that was paused and runs on, so the store itself has to turn it away. That helps
only once the store has seen the newer token: so the first act under a permit is to open the fence, before
anything is read, and each write is made on condition that the fence is still open for this token.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, final

from asyncguard.checks import check_text, check_whole
from asyncguard.errors import PermitLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis
    import redis.asyncio

_SCRIPT: Final = resources.files("asyncguard").joinpath("fence.lua").read_text("utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_PREFIX: Final = "asyncguard:fence:"
_MOST_WORDS: Final = 7000
"""Of a command: Lua has room for some 8000 values."""
_LARGEST: Final = 2**53


class StaleToken(PermitLost):
    """A newer permit was granted and has opened the fence: end this work, and write nothing more."""

    def __init__(self, key: str, token: int, seen: int) -> None:
        super().__init__(
            f"{key}: token {token} is stale, as the fence has seen {seen}: another permit was granted since. "
            "End this work without writing; to try again, take a new permit"
        )
        self.token = token
        """The one that came too late."""
        self.seen = seen
        """The newest that the fence was opened for."""


class FenceLost(PermitLost):
    """The server forgot that the fence was opened: end this work, and begin anew under a new permit."""

    def __init__(self, key: str, token: int, seen: int | None) -> None:
        super().__init__(
            f"{key}: the fence was opened for token {token}, and the server now knows of "
            f"{'none' if seen is None else seen}: it lost data. End this work; to go on, take a new permit"
        )
        self.token = token
        """The one that the fence was opened for."""
        self.seen = seen
        """What it knows instead; None: nothing."""


@final
class RedisFence:
    """A fence in your Redis or Valkey, around what is stored there: `await fence.open(permit.token)`.

    `client` is yours, of `redis.asyncio`; its time limits and retries apply. `name` is the key that is
    guarded, or any name where there are several. On a cluster all of them have to be in one hash slot: have
    each contain the same part in braces, and the name too, as in `{report:alice}`.
    """

    def __init__(self, client: redis.asyncio.Redis | redis.asyncio.RedisCluster, name: str) -> None:
        _check_client(client, is_async=True)
        self.key: Final = _key_of(name)
        """Where it remembers the newest token, in the hash slot of `name`; without it, all is forgotten."""
        self._client: Any = client

    async def open(self, token: int) -> Fenced:
        """Open it for a permit, before anything is read; who opened it before can't write any more.

        Raises:
            StaleToken: it was opened for a newer one.
            redis.RedisError: the server can't be asked, or refuses.
        """
        _check_token(token)
        _read(self.key, token, await self._run([token], [self.key]))
        return Fenced(self, token)

    async def _run(self, words: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
        from redis.exceptions import NoScriptError  # noqa: PLC0415 - only who has a client needs the driver

        sent = len(keys), *keys, *words
        try:
            answer: list[Any] = await self._client.evalsha(_SHA, *sent)
        except NoScriptError:
            answer = await self._client.eval(_SCRIPT, *sent)
        return answer


@final
class Fenced:
    """What a fence was opened for: writes that are made only while no newer permit has opened it."""

    def __init__(self, fence: RedisFence, token: int) -> None:
        self._fence = fence
        self.token: Final = token

    async def write(self, *commands: Sequence[Any]) -> list[Any]:
        """Run commands in one step, as `("SET", "report:alice", text)`; the second word is the key.

        The answers are the server's own. Nobody sees a state in between; but if the server refuses one of
        several commands, say as its key is of another type, those before it are done.

        Raises:
            StaleToken: a newer permit has opened the fence; nothing was written.
            FenceLost: the server forgot that it was opened; nothing was written.
            redis.RedisError: the server can't be asked, or refuses.
        """
        words, keys = _flatten(self.token, commands)
        return _read(self._fence.key, self.token, await self._fence._run(words, [self._fence.key, *keys]))  # noqa: SLF001

    async def set(self, key: str | bytes, value: Any, *, ex: int | None = None) -> None:
        """Set a key, for `ex` seconds or for good. Raises what `write` does."""
        await self.write(_set(key, value, ex))

    async def hset(self, key: str | bytes, mapping: Mapping[Any, Any]) -> int:
        """Set fields of a hash, and count those that are new. Raises what `write` does."""
        (added,) = await self.write(_hset(key, mapping))
        return int(added)

    async def delete(self, *keys: str | bytes) -> int:
        """Delete keys, and count those that were there. Raises what `write` does."""
        return sum(await self.write(*(("DEL", key) for key in keys)))


@final
class BlockingRedisFence:
    """The same with a blocking client: `fence.open(permit.token)`, under `guard.blocking`."""

    def __init__(self, client: redis.Redis | redis.RedisCluster, name: str) -> None:
        _check_client(client, is_async=False)
        self.key: Final = _key_of(name)
        """As `RedisFence.key`."""
        self._client: Any = client

    def open(self, token: int) -> BlockingFenced:
        """Open it, as `RedisFence.open` does."""
        _check_token(token)
        _read(self.key, token, self._run([token], [self.key]))
        return BlockingFenced(self, token)

    def _run(self, words: Sequence[Any], keys: Sequence[Any]) -> list[Any]:
        from redis.exceptions import NoScriptError  # noqa: PLC0415 - as above

        sent = len(keys), *keys, *words
        try:
            answer: list[Any] = self._client.evalsha(_SHA, *sent)
        except NoScriptError:
            answer = self._client.eval(_SCRIPT, *sent)
        return answer


@final
class BlockingFenced:
    """What a fence was opened for, as `Fenced`."""

    def __init__(self, fence: BlockingRedisFence, token: int) -> None:
        self._fence = fence
        self.token: Final = token

    def write(self, *commands: Sequence[Any]) -> list[Any]:
        """Run commands in one step, as `Fenced.write` does."""
        words, keys = _flatten(self.token, commands)
        return _read(self._fence.key, self.token, self._fence._run(words, [self._fence.key, *keys]))  # noqa: SLF001

    def set(self, key: str | bytes, value: Any, *, ex: int | None = None) -> None:
        """Set a key, for `ex` seconds or for good. Raises what `write` does."""
        self.write(_set(key, value, ex))

    def hset(self, key: str | bytes, mapping: Mapping[Any, Any]) -> int:
        """Set fields of a hash, and count those that are new. Raises what `write` does."""
        (added,) = self.write(_hset(key, mapping))
        return int(added)

    def delete(self, *keys: str | bytes) -> int:
        """Delete keys, and count those that were there. Raises what `write` does."""
        return sum(self.write(*(("DEL", key) for key in keys)))


# --- what is sent, and what comes back -------------------------------------------------------------


def _check_client(client: Any, *, is_async: bool) -> None:
    execute = getattr(client, "execute_command", None)
    if execute is None or iscoroutinefunction(execute) is not is_async:
        expected = "redis.asyncio.Redis" if is_async else "redis.Redis"
        other = "BlockingRedisFence" if is_async else "RedisFence"
        hint = "" if execute is None else f" (which {other} takes)"
        raise TypeError(f"client: expected a {expected}, got {client!r}{hint}")


def _key_of(name: str) -> str:
    """Name the fence's key so that it is in the same hash slot as a key called `name`."""
    if not check_text("name", name):
        raise ValueError("name: expected 1 to 512 characters, got 0")
    opening = name.find("{")
    closing = name.find("}", opening + 1)
    if 0 <= opening < closing - 1:
        return _PREFIX + name
    if "}" in name:
        raise ValueError(
            f"name: expected a part in braces, as in {{report:alice}}, or no braces; got {name!r}"
        )
    return f"{_PREFIX}{{{name}}}"


def _check_token(token: int) -> None:
    if not isinstance(token, int) or isinstance(token, bool):
        raise TypeError(f"token: expected a permit's, which is an int, got {token!r}")
    if not 0 < token <= _LARGEST:
        raise ValueError(f"token: expected a permit's, from 1 to 2**53, got {token}")


def _flatten(token: int, commands: Sequence[Sequence[Any]]) -> tuple[list[Any], list[Any]]:
    """Put commands one behind the other, each with its length; and list the keys, each once."""
    words: list[Any] = [token]
    keys: dict[Any, None] = {}
    for command in commands:
        if isinstance(command, str | bytes) or len(command) < 2:  # noqa: PLR2004 - a name, and a key
            raise TypeError(f'command: expected one such as ("SET", "report:alice", text), got {command!r}')
        if len(command) > _MOST_WORDS:
            raise ValueError(
                f"command: expected at most {_MOST_WORDS} words, got {len(command)}: write in parts"
            )
        words += [len(command), *command]
        keys[command[1]] = None
    if not commands:
        raise TypeError("commands: expected at least one, got none")
    return words, list(keys)


def _set(key: str | bytes, value: Any, ex: int | None) -> tuple[Any, ...]:
    return ("SET", key, value) if ex is None else ("SET", key, value, "EX", check_whole("ex", ex, least=1))


def _hset(key: str | bytes, mapping: Mapping[Any, Any]) -> tuple[Any, ...]:
    if not mapping:
        raise ValueError("mapping: expected at least one field, got none")
    return ("HSET", key, *(word for field in mapping.items() for word in field))


def _read(key: str, token: int, answer: list[Any]) -> list[Any]:
    """Read what a step answered: the answers to its commands.

    Raises:
        StaleToken, FenceLost: the fence isn't open for this token.
    """
    seen = int(answer[0]) if answer[0] else None
    if seen is not None and seen > token:
        raise StaleToken(key, token, seen)
    if seen != token:
        raise FenceLost(key, token, seen)
    answers: list[Any] = answer[1]
    return answers
