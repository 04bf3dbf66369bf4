"""Guards on a cluster whose slots move, and whose nodes end."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot
from valkey_cluster import Cluster, Node, running_cluster, until

from asyncguard import AsyncGuard, BackendUnavailable
from asyncguard.backends.redis_rules import RedisRules
from asyncguard.testing.conformance._scene import Line, soon
from asyncguard.testing.conformance._scene import until as until_seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from asyncguard.guard import Guard

HOLD = 0.3


class Place:
    """A namespace of its own on a cluster, two clients of it, and where their guards are."""

    def __init__(self, cluster: Cluster, query: str) -> None:
        self.cluster = cluster
        self.namespace = uuid.uuid4().hex
        self.ags = [AsyncGuard(f"{cluster.url}?{query}", namespace=self.namespace) for _ in range(2)]

    def guards(self, name: str = "report") -> list[Guard]:
        """Have both declare a guard."""
        return [ag.guard(name, max_wait=None) for ag in self.ags]

    def base(self, guard: Guard) -> str:
        return RedisRules(self.namespace, "", 0).base(guard.name)

    def neighbour(self, guard: Guard, *, same: bool) -> str:
        """Find a name for a guard that is on the same node, or another."""
        node = self.cluster.node_of(self.base(guard))
        rules = RedisRules(self.namespace, "", 0)
        return next(name for name in "abcdefghij" if (self.cluster.node_of(rules.base(name)) is node) == same)

    def elsewhere(self, guard: Guard) -> int:
        """Choose a node that has nothing to do with a guard."""
        source = self.cluster.node_of(self.base(guard))
        return next(i for i, node in enumerate(self.cluster.masters) if node is not source)


@pytest.fixture
async def place(redis_cluster: Cluster) -> AsyncIterator[Place]:
    place = Place(redis_cluster, "lease=3")
    yield place
    for ag in place.ags:
        await ag.aclose()


@pytest.fixture(scope="module")
def cluster_with_replicas() -> Iterator[Cluster]:
    options = ("--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0")
    with running_cluster(*options, replicas=True) as cluster:
        yield cluster


async def test_a_courier_serves_each_node_that_is_in_use(place: Place) -> None:
    before = set(threading.enumerate())
    guards = [place.ags[0].guard(f"report {i}") for i in range(20)]
    for guard in guards:
        async with guard:
            pass
    async with asyncio.timeout(10):
        # Two for each node, and the watch; those that asked where all is have gone.
        while len(set(threading.enumerate()) - before) != 2 * 3 + 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for guard in guards:
        assert (await guard.inspect()).granted == 1


async def test_who_waits_by_another_client_hears_of_its_turn(place: Place) -> None:
    for name in ("a", "b", "c", "d"):
        one, other = place.guards(name)
        holds = await one.acquire()
        line = Line(other)
        await line.join("next")
        released = time.monotonic()
        await holds.release()
        assert await line.order() == ["next"]
        assert time.monotonic() - released < 0.5  # and not when it is looked for, which it is each second


async def test_a_slot_takes_its_guards_along_with_all_who_hold_and_wait(place: Place) -> None:
    one, other = place.guards()
    holds = await one.acquire()
    line = Line(one)
    for i in range(6):
        await line.join(f"{i}", hold=0.05, via=(one, other)[i % 2])
    there = place.cluster.masters[await asyncio.to_thread(place.elsewhere, one)]
    await asyncio.to_thread(place.cluster.move, place.base(one), there)
    assert await asyncio.to_thread(place.cluster.node_of, place.base(one)) is there
    await asyncio.sleep(4)  # more than a lease
    assert not holds.lost
    await holds.release()
    assert await line.order() == ["0", "1", "2", "3", "4", "5"]
    async with other as permit:
        assert permit.token > holds.token
    for guard in (one, other):
        assert (await guard.inspect()).granted == 8


async def test_notices_come_from_the_node_that_a_slot_has_moved_to(place: Place) -> None:
    one, other = place.guards()
    there = place.cluster.masters[await asyncio.to_thread(place.elsewhere, one)]
    holds = await one.acquire()
    line = Line(other)
    await line.join("first")
    await asyncio.to_thread(place.cluster.move, place.base(one), there)
    await asyncio.sleep(1.5)  # by now it was looked for
    began = time.monotonic()
    await line.join("second")
    await holds.release()
    assert await line.order() == ["first", "second"]
    assert time.monotonic() - began < 0.5


async def _use(guard: Guard) -> None:
    async with guard:
        pass


async def test_a_guard_rests_while_its_slot_moves_and_others_do_not(place: Place) -> None:
    one, other = place.guards()
    holds = await one.acquire()
    neighbour = place.ags[1].guard(await asyncio.to_thread(place.neighbour, one, same=True))
    await _use(neighbour)
    cluster, base = place.cluster, place.base(one)
    there = cluster.masters[await asyncio.to_thread(place.elsewhere, one)]
    source = await asyncio.to_thread(cluster.begin_to_move, base, there)
    try:
        assert await asyncio.to_thread(cluster.move_keys, base, source, there, 2) == 2  # some of them
        waits = asyncio.create_task(other.acquire())
        async with asyncio.timeout(0.4):
            for _ in range(10):
                await _use(neighbour)
        assert not waits.done()
        while await asyncio.to_thread(cluster.move_keys, base, source, there):
            pass
    finally:
        await asyncio.to_thread(cluster.end_to_move, base, there)
    await until_seen(one, lambda seen: seen.waiting == 1)
    assert not waits.done()
    await holds.release()
    permit = await soon(waits)
    assert permit.token > holds.token
    await permit.release()


async def test_a_slot_that_does_not_arrive_in_time_is_out_of_reach(place: Place) -> None:
    one, other = place.guards()
    holds = await one.acquire()
    waits = asyncio.create_task(other.acquire())
    await until_seen(one, lambda seen: seen.waiting)
    cluster, base = place.cluster, place.base(one)
    there = cluster.masters[await asyncio.to_thread(place.elsewhere, one)]
    await asyncio.to_thread(cluster.begin_to_move, base, there)
    try:
        with pytest.raises(BackendUnavailable, match="nobody has all of the guard's slot for now"):
            await soon(other.acquire())
        with pytest.raises(BackendUnavailable):
            await soon(waits)
        assert not holds.lost
        await soon(holds.lost.wait())  # it can't be renewed
    finally:
        await asyncio.to_thread(cluster.move, base, there)
    await soon(_use(other))


async def test_a_cluster_that_is_down_is_out_of_reach_and_comes_back(place: Place) -> None:
    one, other = place.guards()
    holds = await one.acquire()
    waits = asyncio.create_task(other.acquire())
    await until_seen(one, lambda seen: seen.waiting)
    master = await asyncio.to_thread(place.cluster.node_of, place.base(one))
    # By default all slots are needed; of one of another's the node would soon be told that it is there.
    lost = await asyncio.to_thread(_slot_beside, master, place.base(one))
    await asyncio.to_thread(master.ask, "CLUSTER", "DELSLOTS", lost)
    try:
        with pytest.raises(BackendUnavailable, match="nobody has all .*cluster is down"):
            await soon(other.acquire())
        with pytest.raises(BackendUnavailable):
            await soon(waits)
    finally:
        await asyncio.to_thread(_give_back, place.cluster, lost, master)
    await holds.release()
    await soon(_use(other))


def _slot_beside(node: Node, base: str) -> int:
    """Find a slot of a node's in which the guard isn't."""
    ranges = [
        (first, last) for first, last, (_, port, *_), *_ in node.ask("CLUSTER", "SLOTS") if port == node.port
    ]
    return int(next(slot for slot in ranges[0] if slot != key_slot(base.encode())))


def _give_back(cluster: Cluster, slot: int, owner: Node) -> None:
    for node in (owner, *(node for node in cluster.masters if node is not owner)):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", owner.id)
    until(lambda: all(node.knows("cluster_state") == "ok" for node in cluster.masters))


async def test_a_replica_takes_over_and_who_waits_keeps_the_place(cluster_with_replicas: Cluster) -> None:
    place = Place(cluster_with_replicas, "lease=10&timeout=2")
    one, other = place.guards()
    holds = await one.acquire()
    line = Line(one)
    for i in range(4):
        await line.join(f"{i}", hold=0.02, via=(one, other)[i % 2])
    master = await asyncio.to_thread(cluster_with_replicas.node_of, place.base(one))
    assert await asyncio.to_thread(master.ask, "WAIT", 1, 1000) == 1
    neighbour = place.ags[0].guard(await asyncio.to_thread(place.neighbour, one, same=False))
    await _use(neighbour)
    await asyncio.to_thread(master.end)
    replica = place.cluster.replicas[place.cluster.masters.index(master)]
    promoted = asyncio.create_task(asyncio.to_thread(until, lambda: replica.ask("ROLE")[0] == b"master"))
    while not promoted.done():
        async with asyncio.timeout(2):
            await _use(neighbour)
        await asyncio.sleep(0.05)
    await promoted
    seen = await _as_soon_as_it_answers(one)
    assert len(seen) == 4, "who waited, waits"
    assert not holds.lost
    await holds.release()
    assert await line.order() == ["0", "1", "2", "3"]
    async with other as permit:
        assert permit.token > holds.token
    for ag in place.ags:
        await ag.aclose()


async def _as_soon_as_it_answers(guard: Guard) -> list[str]:
    async with asyncio.timeout(20):
        while True:
            try:
                return [waiter.label for waiter in (await guard.inspect()).queue]
            except BackendUnavailable:
                await asyncio.sleep(0.05)


async def test_one_node_alone_says_which_url_it_takes(redis_cluster: Cluster) -> None:
    ag = AsyncGuard(redis_cluster.masters[0].url)
    with pytest.raises(BackendUnavailable, match=r"it is one node of a cluster.*redis\+cluster://"):
        await asyncio.gather(*(_use(ag.guard(name)) for name in "abcdefgh"))  # some of them are there
    await ag.aclose()
