"""Fences around what is stored on a real server: late writers are turned away, at the fence and at each write."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis
import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import OutOfMemoryError, RedisClusterException
from valkey_server import connect, started_server

from asyncguard import AsyncGuard, PermitLost
from asyncguard.fence import BlockingRedisFence, FenceLost, RedisFence, StaleToken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

MOST = 2**53


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def blocking_client(redis_url: str) -> Iterator[Any]:
    with contextlib.closing(connect(redis_url)) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"report:{uuid.uuid4()}"


@pytest.fixture
def own_server() -> Iterator[str]:
    with started_server() as url:
        yield url


@pytest.fixture
def cluster() -> Iterator[str]:
    """Have a cluster of one node."""
    with started_server("--cluster-enabled", "yes") as url, contextlib.closing(connect(url)) as node:
        node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        while node.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            time.sleep(0.01)
        yield url


@pytest.fixture
def fence(client: Any, key: str) -> RedisFence:
    return RedisFence(client, key)


# --- who may write ---------------------------------------------------------------------------------


async def test_a_late_writer_is_turned_away_by_each_kind_of_write(
    client: Any, fence: RedisFence, key: str
) -> None:
    late = await fence.open(5)
    newer = await fence.open(6)
    await newer.set(key, "newer")
    writes: list[Callable[[], Any]] = [
        lambda: late.set(key, "late"),
        lambda: late.delete(key),
        lambda: late.hset(key, {"who": "late"}),
        lambda: late.write(("APPEND", key, "late"), ("EXPIRE", key, 5)),
    ]
    for write in writes:
        with pytest.raises(StaleToken, match="token 5 is stale, as the fence has seen 6"):
            await write()
    assert await client.get(key) == b"newer"
    assert await client.ttl(key) == -1


async def test_a_late_opener_is_told_both_tokens_and_leaves_no_trace(client: Any, fence: RedisFence) -> None:
    await fence.open(MOST)
    with pytest.raises(StaleToken, match="take a new permit") as told:
        await fence.open(MOST - 1)
    assert (told.value.token, told.value.seen) == (MOST - 1, MOST)
    assert await client.get(fence.key) == str(MOST).encode()


async def test_opened_again_for_the_same_permit_it_stays_open(fence: RedisFence, key: str) -> None:
    first = await fence.open(5)
    again = await fence.open(5)
    await first.set(key, "one")
    await again.set(key, "two")
    assert again.token == 5


async def test_tokens_are_compared_to_the_last_digit(fence: RedisFence, key: str) -> None:
    opened = [await fence.open(token) for token in (MOST - 2, MOST - 1, MOST)]
    for late in opened[:-1]:
        with pytest.raises(StaleToken):
            await late.set(key, "late")
    await opened[-1].set(key, "newest")


async def test_of_two_that_race_the_newer_one_has_the_last_word(client: Any, key: str) -> None:
    for _ in range(50):
        token = 1_800_000_000_000_000
        fence = RedisFence(client, f"{{{key}}}:{uuid.uuid4()}")
        kept: list[int] = []
        bounced: list[StaleToken] = []

        async def work(
            token: int, fence: RedisFence = fence, kept: list[int] = kept, bounced: list[StaleToken] = bounced
        ) -> None:
            try:
                opened = await fence.open(token)
                for _ in range(3):
                    await opened.write(("RPUSH", f"{fence.key}:list", token))
                    kept.append(token)
            except StaleToken as stale:
                bounced.append(stale)

        await asyncio.gather(work(token), work(token + 1))
        written = [int(each) for each in await client.lrange(f"{fence.key}:list", 0, -1)]
        assert written == sorted(written)
        assert sorted(written) == sorted(kept)
        assert written.count(token + 1) == 3
        assert {(each.token, each.seen) for each in bounced} <= {(token, token + 1)}


async def test_permits_of_a_guard_open_it_in_turn(client: Any, fence: RedisFence, key: str) -> None:
    guard = AsyncGuard().guard("report", on_lost="notify")
    async with guard as permit:
        late = await fence.open(permit.token)
        await late.set(key, "first")
        await guard.evict((await guard.inspect()).holders[0].id)
        async with guard as newer:
            await (await fence.open(newer.token)).set(key, "second")
        with pytest.raises(PermitLost):  # which is answered on HTTP as a lost permit is
            await late.set(key, "late")
    assert await client.get(key) == b"second"


# --- what is written -------------------------------------------------------------------------------


async def test_what_is_written_is_there(client: Any, fence: RedisFence, key: str) -> None:
    opened = await fence.open(5)
    await opened.set(key, "text", ex=60)
    assert await client.get(key) == b"text"
    assert 0 < await client.ttl(key) <= 60
    await opened.set(key, b"\x00\xff")
    assert await client.get(key) == b"\x00\xff"
    assert await client.ttl(key) == -1
    assert await opened.delete(key, f"{key}:none") == 1
    assert await opened.hset(key, {"name": "alice", "rows": 7}) == 2
    assert await opened.hset(key, {"rows": 8}) == 0
    assert await client.hgetall(key) == {b"name": b"alice", b"rows": b"8"}


async def test_commands_are_one_step_and_each_has_its_answer(
    client: Any, fence: RedisFence, key: str
) -> None:
    opened = await fence.open(5)
    answers = await opened.write(
        ("SET", key, 1), ("GET", f"{key}:none"), ["INCRBY", key, 2], ("LRANGE", f"{key}:list", 0, -1)
    )
    assert answers == [b"OK", None, 3, []]


async def test_if_one_of_several_is_refused_those_before_it_are_done(
    client: Any, fence: RedisFence, key: str
) -> None:
    opened = await fence.open(5)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE|wrong kind of value"):
        await opened.write(("SET", key, "done"), ("LPUSH", key, "refused"))
    assert await client.get(key) == b"done"


async def test_a_client_that_decodes_answers_will_do(redis_url: str, key: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as client:
        fence = RedisFence(client, key)
        opened = await fence.open(5)
        assert await opened.write(("SET", key, "text"), ("GET", key)) == ["OK", "text"]
        await fence.open(6)
        with pytest.raises(StaleToken):
            await opened.set(key, "late")


async def test_the_script_is_sent_again_to_a_server_that_forgot_it(
    client: Any, fence: RedisFence, key: str
) -> None:
    opened = await fence.open(5)
    await client.script_flush()
    await opened.set(key, "text")
    assert await client.get(key) == b"text"


def test_other_loops_and_threads_are_turned_away_too(redis_url: str, key: str) -> None:
    async def write(token: int, text: str) -> None:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            await (await RedisFence(client, key).open(token)).set(key, text)

    bounced: list[StaleToken] = []

    def late() -> None:
        try:
            asyncio.run(write(5, "late"))
        except StaleToken as stale:
            bounced.append(stale)

    asyncio.run(write(6, "newer"))
    thread = threading.Thread(target=late)
    thread.start()
    thread.join()
    assert [each.seen for each in bounced] == [6]


def test_blocking_clients_have_the_same(blocking_client: Any, key: str) -> None:
    fence = BlockingRedisFence(blocking_client, key)
    blocking_client.script_flush()
    late = fence.open(5)
    late.set(key, "text", ex=60)
    assert late.delete(key) == 1
    assert late.hset(key, {"name": "alice"}) == 1
    assert late.write(("HGET", key, "name")) == [b"alice"]
    newer = fence.open(6)
    assert newer.token == 6
    with pytest.raises(StaleToken):
        late.delete(key)
    with pytest.raises(StaleToken):
        fence.open(5)
    blocking_client.delete(fence.key)
    with pytest.raises(FenceLost):
        newer.hset(key, {"name": "bob"})
    assert blocking_client.hgetall(key) == {b"name": b"alice"}


# --- a server that forgets -------------------------------------------------------------------------


async def test_after_a_loss_of_data_nobody_writes_who_had_opened_it_before(
    client: Any, fence: RedisFence, key: str
) -> None:
    late, newer = await fence.open(5), await fence.open(6)
    await client.delete(fence.key)  # as FLUSHALL does, which would hit other tests
    for opened in (late, newer):
        with pytest.raises(FenceLost, match="now knows of none: it lost data"):
            await opened.set(key, "before")
    await (await fence.open(7)).set(key, "after")
    assert await client.get(key) == b"after"


async def test_after_a_step_back_the_newer_one_is_told(client: Any, fence: RedisFence, key: str) -> None:
    """As where a replica that lags behind is promoted."""
    late, newer = await fence.open(5), await fence.open(6)
    await client.set(fence.key, 5)
    with pytest.raises(FenceLost, match="knows of 5") as told:
        await newer.set(key, "newer")
    assert (told.value.token, told.value.seen) == (6, 5)
    await late.set(key, "which was last, for all that the server knows")


async def test_a_user_needs_few_rights_for_it(own_server: str) -> None:
    admin: Any = redis.asyncio.Redis.from_url(own_server)
    async with admin:
        rights = "on >SECRET ~asyncguard:fence:* ~report:* +eval +evalsha +get +set"
        await admin.execute_command("ACL SETUSER", "writer", *rights.split())
    url = own_server.replace("redis://", "redis://writer:SECRET@")
    async with redis.asyncio.Redis.from_url(url) as client:
        opened = await RedisFence(client, "report:alice").open(5)
        await opened.set("report:alice", "text", ex=60)
        with pytest.raises(redis.ResponseError, match="ACL failure|can't run this command"):
            await opened.delete("report:alice")


async def test_a_key_that_isnt_a_fences_is_left_alone(client: Any, fence: RedisFence) -> None:
    await client.set(fence.key, "7 apples")
    with pytest.raises(redis.ResponseError, match="expected a token, got 7 apples"):
        await fence.open(5)
    assert await client.get(fence.key) == b"7 apples"


async def test_a_full_server_says_so_and_nothing_is_written(own_server: str, key: str) -> None:
    async with redis.asyncio.Redis.from_url(own_server) as client:
        opened = await RedisFence(client, key).open(5)
        await client.config_set("maxmemory", "1mb")
        with pytest.raises(OutOfMemoryError):
            await opened.set(key, "text")
        assert await client.get(key) is None


# --- where it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["report:alice", "{alice}:report", "a{b", "x{tag}y{z}", "report:{alice}", "é {", "{{a}"]
)
async def test_it_is_in_the_slot_of_what_it_is_named_after(client: Any, name: str) -> None:
    assert key_slot(RedisFence(client, name).key.encode()) == key_slot(name.encode())


@pytest.mark.parametrize("name", ["", "a}b", "{}", "{}x{a}", "}{", "x" * 513, "\ud800"])
async def test_a_name_whose_slot_it_couldnt_share_is_refused(client: Any, name: str) -> None:
    with pytest.raises(ValueError, match="name: "):
        RedisFence(client, name)


async def test_on_a_cluster_all_keys_of_a_step_are_in_one_slot(cluster: str) -> None:
    async with redis.asyncio.RedisCluster.from_url(cluster) as client:
        fence = RedisFence(client, "{report:alice}")
        opened = await fence.open(5)
        await opened.write(("SET", "{report:alice}:text", "text"), ("SADD", "{report:alice}:seen", "today"))
        assert await client.get("{report:alice}:text") == b"text"
        bob = await RedisFence(client, "report:bob").open(5)
        await bob.set("report:bob", "text")
        with pytest.raises(RedisClusterException, match="same key slot"):
            await opened.set("report:bob", "text")
        await fence.open(6)
        with pytest.raises(StaleToken):
            await opened.delete("{report:alice}:text")


# --- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [0, -1, MOST + 1])
async def test_a_token_that_no_permit_has_is_refused(fence: RedisFence, token: int) -> None:
    with pytest.raises(ValueError, match="token: "):
        await fence.open(token)


@pytest.mark.parametrize("token", ["5", 5.0, True, None])
async def test_a_token_of_another_type_is_refused(fence: RedisFence, token: Any) -> None:
    with pytest.raises(TypeError, match="token: "):
        await fence.open(token)


@pytest.mark.parametrize("commands", [(), ("SET",), (("PING",),), (b"SET x y",), ((),)])
async def test_what_is_no_command_is_refused(fence: RedisFence, commands: Any) -> None:
    opened = await fence.open(5)
    with pytest.raises(TypeError, match="command"):
        await opened.write(*commands)


async def test_other_mistakes_are_named(fence: RedisFence, key: str) -> None:
    opened = await fence.open(5)
    with pytest.raises(ValueError, match="mapping: "):
        await opened.hset(key, {})
    with pytest.raises(ValueError, match="ex: "):
        await opened.set(key, "text", ex=0)
    with pytest.raises(ValueError, match="command: expected at most 7000 words, got 8002"):
        await opened.hset(key, dict.fromkeys(range(4000), "x"))
    assert await opened.hset(key, dict.fromkeys(range(3499), "x")) == 3499
    with pytest.raises(TypeError, match="commands: "):
        await opened.delete()


async def test_the_other_kind_of_client_is_named(blocking_client: Any, client: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a redis\.asyncio\.Redis, got .* \(which Blocking"):
        RedisFence(blocking_client, "report")
    with pytest.raises(TypeError, match=r"expected a redis\.Redis, got .* \(which RedisFence takes\)"):
        BlockingRedisFence(client, "report")
    with pytest.raises(TypeError, match=r"expected a redis\.asyncio\.Redis, got 'redis://'$"):
        RedisFence("redis://", "report")  # type: ignore[arg-type]
