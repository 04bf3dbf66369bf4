"""Guards on a service that sentinels watch over, and what becomes of them when another server takes over."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from valkey_cluster import until
from valkey_sentinel import SERVICE, Watched, running_sentinels

from asyncguard import AsyncGuard, BackendUnavailable
from asyncguard.testing.conformance._scene import Line, soon
from asyncguard.testing.conformance._scene import until as until_seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from valkey_sentinel import Server

    from asyncguard.guard import Guard

QUERY = "lease=10&timeout=2"


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with running_sentinels() as watched:
        yield watched


@pytest.fixture
async def guards(watched: Watched) -> AsyncIterator[list[Guard]]:
    """Have two clients declare one guard, in a namespace of its own."""
    namespace = uuid.uuid4().hex
    ags = [AsyncGuard(f"{watched.url}?{QUERY}", namespace=namespace) for _ in range(2)]
    yield [ag.guard("report", max_wait=None) for ag in ags]
    for ag in ags:
        await ag.aclose()


async def _come(guards: list[Guard], count: int) -> Line:
    line = Line(guards[0])
    for i in range(count):
        await line.join(f"{i}", hold=0.02, via=guards[i % 2])
    return line


def _await_replica(watched: Watched) -> None:
    """Wait until the other server has all, and the sentinels know it."""
    replica = next(server for server in watched.servers if server is not watched.master())
    until(lambda: replica.ask("ROLE")[0] == b"slave" and replica.ask("ROLE")[3] == b"connected")
    until(lambda: watched.master().ask("WAIT", 1, 100) == 1)


def _fail_over(watched: Watched, former: Server) -> None:
    """Have the replica take over, as an operator may."""
    until(lambda: bool(watched.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)))
    until(lambda: watched.master() is not former)


async def test_a_replica_takes_over_and_who_holds_and_waits_goes_on(
    watched: Watched, guards: list[Guard]
) -> None:
    one, other = guards
    holds = await one.acquire()
    line = await _come(guards, 4)
    await asyncio.to_thread(_await_replica, watched)
    former = await asyncio.to_thread(watched.master)
    await asyncio.to_thread(_fail_over, watched, former)
    await asyncio.sleep(2)
    picture = await soon(until_seen(one, lambda seen: seen.waiting == 4))
    assert [waiter.label for waiter in picture.queue] == ["0", "1", "2", "3"]
    assert not await asyncio.to_thread(_clients_of, former)
    now = await asyncio.to_thread(watched.master)
    assert len(await asyncio.to_thread(_clients_of, now)) == 4  # of both, who asks and who listens
    assert not holds.lost
    await holds.release()
    assert await line.order() == ["0", "1", "2", "3"]
    async with other as permit:
        assert permit.token > holds.token
    line = Line(other)
    async with one:
        await line.join("told")
        released = time.monotonic()
    assert await line.order() == ["told"]
    assert time.monotonic() - released < 0.5  # notices come from the new master


def _clients_of(server: Server) -> list[bytes]:
    clients = [client for client in server.ask("CLIENT", "LIST").splitlines() if b"=sentinel-" not in client]
    return [client for client in clients if b"cmd=evalsha" in client or b" flags=P" in client]


async def test_a_master_that_stops_is_followed_by_the_replica(watched: Watched, guards: list[Guard]) -> None:
    one, other = guards
    holds = await one.acquire()
    line = await _come(guards, 2)
    await asyncio.to_thread(_await_replica, watched)
    former = await asyncio.to_thread(watched.master)
    former.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.to_thread(until, lambda: watched.master() is not former)
        async with asyncio.timeout(10):
            while True:
                try:
                    await one.inspect()
                except BackendUnavailable:
                    continue
                break
        assert not holds.lost
        await holds.release()
        order = await _order_of_those_who_still_wait(line)
        assert order == sorted(order)
        async with other as permit:
            assert permit.token > holds.token
    finally:
        former.process.send_signal(signal.SIGCONT)


async def _order_of_those_who_still_wait(line: Line) -> list[str]:
    """Leave out those who were told that nobody answers, as that took too long."""
    try:
        return await line.order()
    except BackendUnavailable:
        return []


async def test_without_sentinels_it_is_said_what_each_answered(watched: Watched) -> None:
    server = watched.servers[0].port
    ag = AsyncGuard(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{server}/{SERVICE}?lease=1")
    with pytest.raises(
        BackendUnavailable, match=r"no sentinel says.*'guards'.*127\.0\.0\.1:1: .*refused.*unknown"
    ):
        async with ag.guard("report"):
            pass
    await ag.aclose()


async def test_a_service_that_sentinels_do_not_know_is_named(watched: Watched) -> None:
    ag = AsyncGuard(watched.url.replace("/guards/", "/gards/") + "?lease=1")
    with pytest.raises(BackendUnavailable, match=r"master of 'gards' .*knows no such service"):
        async with ag.guard("report"):
            pass
    await ag.aclose()
