"""Redis under trouble: requests lost, late and twice, and servers that are gone, slow, full or forgetful."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis
from meddling import MeddlingProxy
from valkey_server import ValkeyServer, own_server

from asyncguard import AsyncGuard, BackendUnavailable, PermitLost

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from asyncguard import Guard, Permit
    from asyncguard.statistics import Snapshot

LEASE = 1.5
TIMEOUT = LEASE / 5
"""What follows from it."""
SOON = 5.0
HOLDS_OR_WAITS = """
import asyncio, sys
from asyncguard import AsyncGuard

async def main():
    guard = AsyncGuard(sys.argv[1], namespace=sys.argv[2]).guard("report", max_wait=None)
    task = asyncio.create_task(guard.acquire(label=sys.argv[3]))
    while True:
        picture = await guard.inspect()
        if any(ticket.label == sys.argv[3] for ticket in (*picture.holders, *picture.queue)):
            break
    print(sys.argv[3], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ValkeyServer]:
    """One for tests after which it is as before."""
    with own_server("--enable-debug-command", "yes") as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """One that the test may kill."""
    with own_server("--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0") as server:
        yield server
        with contextlib.suppress(ProcessLookupError):
            server.send(signal.SIGCONT)


@pytest.fixture
def proxy(shared_server: ValkeyServer) -> Iterator[MeddlingProxy]:
    with MeddlingProxy(shared_server.url) as proxy:
        yield proxy


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Guard]]:
    """Make a guard of an AsyncGuard of its own, which shares its permits with the others of the test."""
    namespace = uuid.uuid4().hex
    made: list[AsyncGuard] = []
    before = threading.enumerate()

    def make(url: str, query: str = f"lease={LEASE}", **options: Any) -> Guard:
        ag = AsyncGuard(f"{url}?{query}", namespace=namespace)
        made.append(ag)
        return ag.guard("report", **{"max_wait": None, "max_waiting": None, **options})

    yield make
    for ag in made:
        await ag.aclose()
    del made[:]
    gc.collect()
    await nothing_is_left(before)


async def nothing_is_left(before: list[threading.Thread]) -> None:
    end = time.monotonic() + SOON
    while names := [
        each.name
        for each in threading.enumerate()
        if each not in before and each.name.startswith("asyncguard:")
    ]:
        assert time.monotonic() < end, f"threads are left: {names}"
        await asyncio.sleep(0.05)
        gc.collect()  # what one of them used just before


async def until(guard: Guard, fits: Callable[[Snapshot], object], within: float = SOON) -> Snapshot:
    end = time.monotonic() + within
    while True:
        picture = await guard.inspect()
        if fits(picture):
            return picture
        assert time.monotonic() < end, f"it must become otherwise: {picture}"
        await asyncio.sleep(0.005)


async def join(guard: Guard, label: str) -> asyncio.Task[Permit]:
    """Have one more wait, and wait until the server knows."""
    task = asyncio.create_task(guard.acquire(label=label))
    await until(guard, lambda seen: task.done() or label in [each.label for each in seen.queue])
    return task


async def pass_on(tasks: dict[str, asyncio.Task[Permit]]) -> list[str]:
    """Release what each was granted; tell in which order they were."""
    order, left = [], dict(tasks)
    async with asyncio.timeout(SOON):
        while left:
            await asyncio.wait(left.values(), return_when=asyncio.FIRST_COMPLETED)
            for label in [label for label, task in left.items() if task.done()]:
                order.append(label)
                await left.pop(label).result().release()
    return order


async def nobody_is_left(guard: Guard) -> None:
    await until(guard, lambda seen: not seen.holders and not seen.queue)


async def ask(server: ValkeyServer, *command: object) -> Any:
    """Have a server execute a command, on a connection of its own."""
    return await asyncio.to_thread(server.ask, *command)


async def restart(server: ValkeyServer, *options: str) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start, *options)


def a_port_on_which_nothing_listens() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


# --- requests that are lost, late, sent twice -----------------------------------------------------


async def test_an_enter_whose_reply_was_lost_is_sent_again_and_gets_its_first_answer(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url), make(shared_server.url)
    async with guard:
        pass
    before = (await direct.inspect()).granted
    sent = proxy.seen.count("enter")
    proxy.loses_replies = True
    task = asyncio.create_task(guard.acquire())
    await until(direct, lambda seen: seen.holders)
    proxy.loses_replies = False
    proxy.cut()
    permit = await task
    picture = await direct.inspect()
    assert [holder.token for holder in picture.holders] == [permit.token]
    assert picture.granted == before + 1
    assert proxy.seen.count("enter") >= sent + 2
    await permit.release()
    await nobody_is_left(direct)


async def test_an_enter_that_arrives_after_its_own_leave_holds_nothing(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url), make(shared_server.url)
    async with guard:
        pass
    before = proxy.seen.count("enter")
    proxy.stall()
    task = asyncio.create_task(guard.acquire())
    await proxy.sent("enter", before + 1)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await proxy.sent("leave", 2)
    await asyncio.sleep(2 * TIMEOUT)  # for it to arrive: on another connection
    assert (await direct.inspect()).holders == ()
    proxy.deliver()
    await asyncio.sleep(1)
    picture = await direct.inspect()
    assert (picture.holders, picture.queue) == ((), ())
    await (await direct.acquire(timeout=1)).release()


@pytest.mark.parametrize("fault", ["cut", "lost replies", "doubled requests", "notices cut"])
async def test_work_goes_on_one_at_a_time_and_in_order_of_tokens_whatever_the_network_does(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard], fault: str
) -> None:
    guards = [make(proxy.url), make(proxy.url), make(shared_server.url)]
    inside = most = 0
    tokens: list[int] = []

    async def work(number: int) -> None:
        nonlocal inside, most
        for _ in range(10):
            async with guards[number % 3] as permit:
                inside += 1
                most = max(most, inside)
                tokens.append(permit.token)
                await asyncio.sleep(0.001)
                inside -= 1

    async def meddle() -> None:
        for number in itertools.count():
            await asyncio.sleep(0.05)
            if fault == "cut":
                proxy.cut()
            elif fault == "notices cut":
                proxy.cut(notices_only=True)
            elif fault == "lost replies":
                proxy.loses_replies = number % 8 == 0

    proxy.doubles_requests = fault == "doubled requests"
    meddling = asyncio.create_task(meddle())
    await asyncio.gather(*(work(number) for number in range(15)))
    meddling.cancel()
    proxy.loses_replies = False
    assert most == 1
    assert len(tokens) == 150
    assert tokens == sorted(set(tokens))
    await nobody_is_left(guards[2])


async def test_who_is_cancelled_at_any_moment_on_a_slow_network_leaves_nothing_behind(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url), make(shared_server.url)
    async with guard:
        pass
    proxy.delay = 0.005
    for busy in (False, True):
        for milliseconds in range(0, 30, 2):
            permit = await direct.acquire() if busy else None
            task = asyncio.create_task(guard.acquire())
            await asyncio.sleep(milliseconds / 1000)
            if permit is not None and milliseconds % 4:
                await permit.release()
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                await task.result().release()
            if permit is not None:
                await permit.release()
            await (await direct.acquire(timeout=1)).release()
    await nobody_is_left(direct)


async def test_leaving_can_be_cancelled_and_takes_place(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url), make(shared_server.url)
    for milliseconds in (0, 5, 15):
        proxy.delay = 0
        permit = await guard.acquire()
        proxy.delay = 0.02
        task = asyncio.create_task(permit.release())
        await asyncio.sleep(milliseconds / 1000)
        task.cancel()
        await asyncio.wait([task])
        await (await direct.acquire(timeout=1)).release()


# --- leases ---------------------------------------------------------------------------------------


async def test_a_handler_that_blocks_its_loop_for_three_leases_keeps_its_permit(
    shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, other = make(shared_server.url, "lease=1"), make(shared_server.url, "lease=1")
    until_then = threading.Event()
    tokens: list[int] = []

    def wait_elsewhere() -> None:
        async def wait() -> None:
            async with other as permit:
                tokens.append(permit.token)

        asyncio.run(wait())

    async with guard as permit:
        thread = threading.Thread(target=wait_elsewhere)
        thread.start()
        until_then.wait(3)  # on the loop, on purpose
        assert tokens == []
        assert not permit.lost
    await asyncio.to_thread(thread.join)
    assert tokens > [permit.token]


@pytest.mark.parametrize("fault", ["black hole", "gone", "replies lost"])
@pytest.mark.parametrize("busy", [False, True])
async def test_one_cut_off_is_told_before_its_lease_ends_and_its_successor_runs_only_then(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard], fault: str, busy: bool
) -> None:
    guard, direct = make(proxy.url), make(shared_server.url)
    ended: list[float] = []

    async def hold(began: asyncio.Event) -> None:
        try:
            async with guard:
                began.set()
                await asyncio.sleep(60)
        finally:
            ended.append(time.monotonic())

    async def ask_again_and_again() -> None:
        while True:
            with contextlib.suppress(BackendUnavailable):
                await guard.acquire(timeout=0.01)
            await asyncio.sleep(0.01)

    for phase in range(3):
        began = asyncio.Event()
        holder = asyncio.create_task(hold(began))
        await began.wait()
        asking = asyncio.create_task(ask_again_and_again()) if busy else None
        successor = await join(direct, "next")
        await asyncio.sleep(phase * LEASE / 10)
        cut_off = time.monotonic()
        if fault == "black hole":
            proxy.is_black_hole = True
        elif fault == "replies lost":
            proxy.loses_replies = True
        else:
            proxy.refuses = True
            proxy.cut()
        permit = await asyncio.wait_for(successor, 3 * LEASE)
        granted = time.monotonic()
        assert ended, "it works on"
        assert ended.pop() < granted
        if fault != "replies lost":
            assert granted - cut_off < LEASE + 0.5
        with pytest.raises(PermitLost):
            await holder
        if asking is not None:
            asking.cancel()
        proxy.is_black_hole = proxy.loses_replies = proxy.refuses = False
        proxy.cut()
        await permit.release()
        await nobody_is_left(direct)


async def test_one_cut_off_that_is_only_notified_finds_its_permit_lost(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url, on_lost="notify"), make(shared_server.url)
    async with guard as permit:
        successor = await join(direct, "next")
        proxy.is_black_hole = True
        await asyncio.wait_for(permit.lost.wait(), 2 * LEASE)
        assert not successor.done()
        await (await asyncio.wait_for(successor, 2 * LEASE)).release()
        proxy.is_black_hole = False
    await nobody_is_left(direct)


async def test_a_holder_outlives_an_outage_that_is_shorter_than_what_is_left_of_its_lease(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url), make(shared_server.url)
    async with guard as permit:
        await asyncio.sleep(LEASE / 2)
        for _ in range(3):
            proxy.is_black_hole = True
            await asyncio.sleep(0.55 * LEASE)
            proxy.is_black_hole = False
            await asyncio.sleep(0.4 * LEASE)
        assert not permit.lost
        assert [holder.token for holder in (await direct.inspect()).holders] == [permit.token]


def in_a_process(url: str, namespace: str, label: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS_OR_WAITS, url, namespace, label], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == label.encode()
    process.stdout.close()
    return process


async def test_dead_holders_and_waiters_hold_up_nobody_for_longer_than_a_lease(
    shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard = make(shared_server.url)
    namespace = guard._hub.namespace
    url = f"{shared_server.url}?lease={LEASE}"
    processes = [
        await asyncio.to_thread(in_a_process, url, namespace, label)
        for label in ("holds", "waits", "waits, too")
    ]
    try:
        task = await join(guard, "lives")
        for process in processes:
            process.kill()
        killed = time.monotonic()
        permit = await asyncio.wait_for(task, SOON)
        took = time.monotonic() - killed
        assert 0.5 * LEASE < took < LEASE + 0.3
        await permit.release()
    finally:
        for process in processes:
            process.kill()
            await asyncio.to_thread(process.wait)


# --- reconnecting ---------------------------------------------------------------------------------


async def test_waiters_keep_their_places_when_their_connection_ends(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url), make(shared_server.url)
    permit = await direct.acquire()
    tasks = {"a": await join(guard, "a"), "b": await join(direct, "b"), "c": await join(guard, "c")}
    proxy.cut()
    tasks["d"] = await join(direct, "d")
    await permit.release()
    assert await pass_on(tasks) == ["a", "b", "c", "d"]


async def test_connections_may_end_as_often_as_they_like(
    proxy: MeddlingProxy, make: Callable[..., Guard]
) -> None:
    guard = make(proxy.url)
    for _ in range(150):
        async with guard:
            pass
        proxy.cut()
    await (await guard.acquire()).release()


@pytest.mark.parametrize("waiters", [0, 1])
async def test_who_comes_back_asks_at_once_what_was_lost(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard], waiters: int
) -> None:
    guard, direct = make(proxy.url, "lease=30"), make(shared_server.url, "lease=30")
    permit = await guard.acquire(label="holds")
    waiting = [await join(guard, "waits") for _ in range(waiters)]
    proxy.refuses = True
    proxy.cut()
    (holder,) = (await direct.inspect()).holders
    assert await direct.evict(holder.id)
    await asyncio.sleep(0.3)
    assert not permit.lost, "nobody could tell"
    proxy.refuses = False
    await asyncio.wait_for(permit.lost.wait(), 1.5)
    for task in waiting:
        await (await asyncio.wait_for(task, 1.5)).release()
    await nobody_is_left(direct)


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_when_all_data_is_lost_holders_are_told_and_waiters_keep_their_order(
    server: ValkeyServer, make: Callable[..., Guard], how: str
) -> None:
    guards = [make(server.url, "lease=3") for _ in range(3)]
    permit = await guards[0].acquire(label="holds")
    labels = ["a", "b", "c", "d"]
    tasks = {label: await join(guards[number % 3], label) for number, label in enumerate(labels)}
    if how == "flushed":
        await ask(server, "FLUSHALL")
    else:
        await restart(server)
    lost = time.monotonic()
    await asyncio.wait_for(permit.lost.wait(), 3)
    took = time.monotonic() - lost
    assert took < (1.5 if how == "flushed" else 1.0)
    await until(guards[0], lambda seen: seen.in_use == 1 and seen.waiting == 3)
    first, *others = await pass_on(tasks)
    assert others == [label for label in labels if label != first], "the one that was back first was let in"
    assert min(task.result().token for task in tasks.values()) > permit.token


async def test_a_server_that_kept_its_data_goes_on_where_it_was(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    await restart(server, "--appendonly", "yes", "--appendfsync", "always")
    guards = [make(server.url) for _ in range(2)]
    permit = await guards[0].acquire()
    tasks = {"a": await join(guards[1], "a"), "b": await join(guards[0], "b")}
    await restart(server, "--appendonly", "yes", "--appendfsync", "always")
    await until(guards[1], lambda seen: seen.in_use == 1 and seen.waiting == 2)
    assert not permit.lost
    await permit.release()
    assert await pass_on(tasks) == ["a", "b"]


# --- notices and scripts that are lost --------------------------------------------------------------


@pytest.mark.parametrize("how", ["held back", "killed"])
async def test_a_grant_whose_notice_is_lost_is_noticed_within_a_second(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard], how: str
) -> None:
    guard, direct = make(proxy.url, "lease=10"), make(shared_server.url, "lease=10")
    for _ in range(3):
        permit = await direct.acquire()
        task = await join(guard, "waits")
        if how == "held back":
            proxy.holds_notices = True
        else:
            await ask(shared_server, "CLIENT", "KILL", "TYPE", "pubsub")
        await permit.release()
        released = time.monotonic()
        permit = await asyncio.wait_for(task, SOON)
        assert time.monotonic() - released < 1.5
        proxy.holds_notices = False
        await permit.release()


async def test_scripts_that_a_server_forgot_are_loaded_again(
    shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guards = [make(shared_server.url) for _ in range(3)]
    done = 0

    async def work(number: int) -> None:
        nonlocal done
        for _ in range(10):
            async with guards[number % 3]:
                await asyncio.sleep(0.001)
            done += 1

    async def forget() -> None:
        while True:
            await ask(shared_server, "SCRIPT", "FLUSH")
            await asyncio.sleep(0.01)

    forgetting = asyncio.create_task(forget())
    await asyncio.gather(*(work(number) for number in range(12)))
    forgetting.cancel()
    assert done == 120


# --- a server that is slow, full, read-only, loading, or says no -----------------------------------


async def test_a_server_that_is_stopped_for_a_while_costs_waiters_their_wait_and_holders_nothing(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard = make(server.url)
    async with guard as permit:
        task = await join(guard, "waits")
        server.send(signal.SIGSTOP)
        stopped = time.monotonic()
        with pytest.raises(BackendUnavailable):
            await task
        assert time.monotonic() - stopped < LEASE / 3 + 2 * TIMEOUT, "found out by the next look or renewal"
        with pytest.raises(BackendUnavailable, match="can't be asked"):
            await guard.acquire()
        server.send(signal.SIGCONT)
        await asyncio.sleep(LEASE)
        assert not permit.lost
    await nobody_is_left(guard)


async def test_a_server_that_is_slow_is_waited_for_as_long_as_that_may_take(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard = make(server.url, "lease=10")
    async with guard as permit:
        sleeping = asyncio.create_task(ask(server, "DEBUG", "SLEEP", "0.7"))
        await asyncio.sleep(0.1)
        task = asyncio.create_task(guard.acquire())
        await sleeping
        await until(guard, lambda seen: seen.waiting == 1)
        assert not permit.lost
    await (await task).release()


async def test_a_server_that_is_busy_with_a_script_says_so(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard = make(server.url)
    async with guard:
        pass
    await ask(server, "CONFIG", "SET", "busy-reply-threshold", 20)
    busy = asyncio.create_task(ask(server, "EVAL", "while true do end", 0))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="busy running a script"):
        await guard.acquire()
    assert TIMEOUT <= time.monotonic() - began < 3 * TIMEOUT
    await ask(server, "SCRIPT", "KILL")
    with pytest.raises(redis.ResponseError, match="killed"):
        await busy
    await (await guard.acquire()).release()


async def test_a_full_server_lets_nobody_in_and_says_why_but_holders_stay_and_leave(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, other = make(server.url, limit=2), make(server.url, limit=2)
    permit, leaves = await guard.acquire(), await other.acquire()
    await ask(server, "CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", 1)
    with pytest.raises(BackendUnavailable, match="command not allowed when used memory > 'maxmemory'"):
        await other.acquire()
    await leaves.release()
    picture = await guard.inspect()
    assert [holder.token for holder in picture.holders] == [permit.token], "leaving works"
    await asyncio.sleep(1.5 * LEASE)
    assert not permit.lost, "a holder's lease is renewed"
    await ask(server, "CONFIG", "SET", "maxmemory", 0)
    await (await other.acquire()).release()
    await permit.release()
    await nobody_is_left(guard)


async def test_on_a_replica_nobody_is_let_in_and_it_says_why(
    server: ValkeyServer, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    await ask(server, "REPLICAOF", "127.0.0.1", shared_server.port)
    guard = make(server.url)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="read only replica"):
        await guard.acquire()
    assert TIMEOUT <= time.monotonic() - began < 3 * TIMEOUT


async def test_a_demoted_master_takes_no_permit_at_once_and_is_used_again_when_it_is_one(
    server: ValkeyServer, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard = make(server.url, "lease=5&timeout=0.5")
    permit = await guard.acquire()
    task = await join(guard, "waits")
    await ask(server, "REPLICAOF", "127.0.0.1", a_port_on_which_nothing_listens())
    with pytest.raises(BackendUnavailable):
        await asyncio.wait_for(task, 2)
    assert not permit.lost
    statistics = await ask(server, "INFO", "stats")
    assert statistics["total_connections_received"] < 100, "it isn't asked all the time"
    await ask(server, "REPLICAOF", "NO", "ONE")
    await asyncio.sleep(4)
    assert not permit.lost
    await permit.release()
    await (await guard.acquire()).release()


async def test_a_server_that_loads_its_data_is_waited_for_and_then_said_to_do_so(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    await ask(server, "DEBUG", "POPULATE", 3000, "key", 1000)
    await ask(server, "SAVE")
    await asyncio.to_thread(server.kill)
    slowly = ("--key-load-delay", "700", "--loading-process-events-interval-bytes", "1024")
    await asyncio.to_thread(server.start, *slowly, wait=False)
    guard = make(server.url)
    await asyncio.sleep(0.2)
    with pytest.raises(BackendUnavailable, match=r"[Ll]oading"):
        await guard.acquire()
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(BackendUnavailable):
                await (await guard.acquire()).release()
                break


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("-evalsha", "no permissions to run the 'evalsha' command"),
        ("-time", "no permissions to run the 'time' command"),
        ("-script", "no permissions to run the 'script|load' command"),
        ("resetkeys ~other", "o permissions to access "),  # a key, or in Redis 7.0 one of the keys
    ],
)
async def test_what_an_acl_denies_is_said_at_once(
    server: ValkeyServer, make: Callable[..., Guard], rules: str, said: str
) -> None:
    user = ("on", ">secret", "allkeys", "allchannels", "+@all")
    await ask(server, "ACL", "SETUSER", "app", *user, *rules.split())
    guard = make(server.url.replace("redis://", "redis://app:secret@"), "lease=10")
    began = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        await guard.acquire()
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert time.monotonic() - began < 0.5


async def test_where_an_acl_denies_notices_that_is_logged_once_and_grants_are_looked_for(
    server: ValkeyServer, make: Callable[..., Guard], caplog: pytest.LogCaptureFixture
) -> None:
    await ask(server, "ACL", "SETUSER", "app", "on", ">secret", "allkeys", "resetchannels", "+@all")
    guard = make(server.url.replace("redis://", "redis://app:secret@"), "lease=10")
    direct = make(server.url)
    permit = await direct.acquire()
    task = await join(guard, "waits")
    await permit.release()
    await (await asyncio.wait_for(task, 2)).release()
    await asyncio.sleep(0.5)
    assert (await ask(server, "INFO", "stats"))["total_connections_received"] < 30
    logged = [record for record in caplog.records if "permission" in record.getMessage()]
    assert len(logged) == 1
    assert "within a second" in logged[0].getMessage()


@pytest.mark.parametrize("user", ["", "app:wrong@"])
async def test_a_wrong_password_and_none_are_said_at_once(
    server: ValkeyServer, make: Callable[..., Guard], user: str
) -> None:
    await ask(server, "ACL", "SETUSER", "app", "on", ">secret", "allkeys", "allchannels", "+@all")
    await ask(server, "CONFIG", "SET", "requirepass", "secret")
    guard = make(server.url.replace("redis://", f"redis://{user}"), "lease=10")
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match=r"[Aa]uthentication required|invalid username-password"):
        await guard.acquire()
    assert time.monotonic() - began < 0.5


# --- a server that isn't there ----------------------------------------------------------------------


async def test_an_unreachable_server_is_said_to_be_so_within_two_seconds(
    proxy: MeddlingProxy, make: Callable[..., Guard]
) -> None:
    proxy.is_black_hole = True
    guard = make(proxy.url, "")
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="can't be asked"):
        await guard.acquire()
    assert 1.5 < time.monotonic() - began < 2.5


async def test_waiters_are_told_within_two_seconds_of_the_next_look_that_their_server_is_gone(
    proxy: MeddlingProxy, shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard, direct = make(proxy.url, ""), make(shared_server.url)
    permit = await direct.acquire()
    task = await join(guard, "waits")
    proxy.is_black_hole = True
    began = time.monotonic()
    with pytest.raises(BackendUnavailable):
        await task
    assert time.monotonic() - began < 1 + 2 + 0.5
    proxy.is_black_hole = False
    await permit.release()
    await nobody_is_left(direct)


async def test_where_nothing_listens_at_first_it_is_used_once_something_does(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    await asyncio.to_thread(server.kill)
    guard = make(server.url)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="refused"):
        await guard.acquire()
    assert TIMEOUT <= time.monotonic() - began < 3 * TIMEOUT
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(SOON):
        while True:
            with contextlib.suppress(BackendUnavailable):
                await (await guard.acquire()).release()
                break


# --- threads, loops, processes ----------------------------------------------------------------------


async def test_one_that_is_dropped_unclosed_leaves_no_threads_and_no_connections(
    server: ValkeyServer,
) -> None:
    before = threading.enumerate()

    async def use() -> None:
        ag = AsyncGuard(f"{server.url}?lease={LEASE}")
        async with ag.guard("report"):
            pass

    for _ in range(5):
        await use()
    gc.collect()
    await nothing_is_left(before)
    end = time.monotonic() + SOON
    while len(await ask(server, "CLIENT LIST")) > 1:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def test_a_forked_child_is_a_client_of_its_own_and_its_parent_goes_on(
    shared_server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    guard = make(shared_server.url)
    async with guard as permit:
        waiting = await join(guard, "waits")
        child = os.fork()
        if not child:
            code = 1
            try:
                asyncio.set_event_loop(None)
                asyncio._set_running_loop(None)
                signal.alarm(20)

                async def use() -> None:
                    async with guard.permit(label="child"):
                        pass

                asyncio.run(use())
                code = 0
            finally:
                os._exit(code)
        await until(guard, lambda seen: [each.label for each in seen.queue] == ["waits", "child"])
        owners = {each.owner for each in (await guard.inspect()).queue}
        assert len(owners) == 2
        await asyncio.sleep(LEASE)
        assert not permit.lost
    await (await asyncio.wait_for(waiting, SOON)).release()
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    async with guard:
        pass
    await nobody_is_left(guard)


def test_loops_and_threads_share_a_client(shared_server: ValkeyServer) -> None:
    ag = AsyncGuard(f"{shared_server.url}?lease={LEASE}", namespace=uuid.uuid4().hex)
    guard = ag.guard("report", max_wait=None)
    inside = most = done = 0

    def note(by: int) -> None:
        nonlocal inside, most, done
        inside += by
        most = max(most, inside)
        done += by < 0

    async def work() -> None:
        async with guard:
            note(1)
            await asyncio.sleep(0.001)
            note(-1)

    def on_many_loops() -> None:
        for _ in range(10):  # as a TestClient does that isn't entered: a loop for each request
            asyncio.run(work())

    def block() -> None:
        for _ in range(10):
            with guard.blocking():
                note(1)
                threading.Event().wait(0.001)
                note(-1)

    threads = [threading.Thread(target=target) for target in (on_many_loops, block) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most, done) == (1, 60)
    assert len(ag.clients) <= 4
    asyncio.run(ag.aclose())


async def test_ten_thousand_waiters_are_renewed_in_batches_while_their_loop_goes_on(
    server: ValkeyServer, make: Callable[..., Guard]
) -> None:
    many = 10_000
    guard, direct = make(server.url, "lease=12"), make(server.url, "lease=12")
    permit = await direct.acquire()
    tasks = [asyncio.create_task(guard.acquire()) for _ in range(many)]
    async with asyncio.timeout(40):
        while (await direct.inspect()).waiting < many:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
        await ask(server, "CONFIG", "RESETSTAT")
        lag, end = 0.0, time.monotonic() + 12
        while (now := time.monotonic()) < end:
            await asyncio.sleep(0.005)
            lag = max(lag, time.monotonic() - now - 0.005)
        calls = (await ask(server, "INFO", "commandstats"))["cmdstat_evalsha"]["calls"]
    renewals, looks = 3 * many / 500, 12
    print(f"evalsha in one lease: {calls}; longest lag of the loop {lag * 1000:.1f} ms")
    assert not any(task.done() for task in tasks)
    assert calls < 1.5 * renewals + 2 * looks + 10
    assert lag < 0.2
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await permit.release()
    async with asyncio.timeout(15):
        await (await direct.acquire()).release()
