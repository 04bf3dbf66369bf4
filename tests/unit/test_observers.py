"""Observers hear of each ticket how it came and how it ended: once, in order, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import (
    AsyncGuard,
    Event,
    Guard,
    GuardError,
    PermitLost,
    Rate,
    Refused,
    WouldBlock,
    WouldDeadlock,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_LIVES = re.compile(r"entered( granted( released| lost)| refused| withdrawn)")


class Witness:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def lives(self) -> list[str]:
        """What happened to each ticket."""
        lives = defaultdict(list)
        for event in self.events:
            lives[event.ticket].append(event.kind)
        return [" ".join(life) for life in lives.values()]


@pytest.fixture
def witness(hub: AsyncGuard) -> Iterator[Witness]:
    witness = Witness()
    hub.observe(witness)
    yield witness
    for life in witness.lives():
        assert _LIVES.fullmatch(life), life


async def block(guard: Any) -> None:
    async with guard:
        await asyncio.sleep(2)


async def entry(guard: Any) -> None:
    async with guard.permit(key=7, label="it"):
        await asyncio.sleep(2)


async def by_hand(guard: Any) -> None:
    permit = await guard.acquire()
    await asyncio.sleep(2)
    await permit.release()
    await permit.release()


async def at_once(guard: Any) -> None:
    permit = guard.acquire_nowait()
    await asyncio.sleep(2)
    await permit.release()


async def decorated(guard: Guard) -> None:
    @guard
    async def work() -> None:
        await asyncio.sleep(2)

    await work()


@pytest.mark.parametrize("way", [block, entry, by_hand, at_once, decorated])
async def test_a_ticket_enters_is_granted_and_is_released(
    way: Callable[[Any], Awaitable[None]], hub: AsyncGuard, witness: Witness
) -> None:
    await way(hub.guard("report"))
    assert witness.kinds == ["entered", "granted", "released"]
    entered, granted, released = witness.events
    assert entered.guard == granted.guard == released.guard == "report"
    assert entered.ticket == granted.ticket == released.ticket
    assert entered.token is None
    assert granted.token == released.token == round(granted.at * 1e6)
    assert (entered.waited, granted.waited, released.waited) == (0, 0, 0)
    assert (entered.held, granted.held, released.held) == (None, None, 2)
    assert (entered.key, entered.label) == (("7", "it") if way is entry else (None, ""))
    assert released.at - granted.at == pytest.approx(2)
    assert entered.owner
    assert entered.permits == 1


async def test_times_tell_who_waited_for_how_long(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report")
    await asyncio.gather(block(guard), block(guard))
    assert witness.kinds == ["entered", "granted", "entered", "released", "granted", "released"]
    assert witness.events[4].waited == 2
    assert witness.events[4].at - witness.events[2].at == pytest.approx(2)


async def test_refusals_say_why(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report", max_waiting=1, max_wait=1)
    results = await asyncio.gather(block(guard), block(guard), block(guard), return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["NoneType", "WaitTimeout", "QueueFull"]
    refused = [event for event in witness.events if event.kind == "refused"]
    assert [(event.reason, event.waited) for event in refused] == [("full", 0), ("timeout", 1)]
    assert sorted(witness.lives()) == ["entered granted released", "entered refused", "entered refused"]


async def test_refusals_tell_the_estimate(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report", max_wait=3)
    for _ in range(5):
        await block(guard)
    results = await asyncio.gather(*(block(guard) for _ in range(3)), return_exceptions=True)
    (error,) = [result for result in results if isinstance(result, Refused)]
    (event,) = [event for event in witness.events if event.reason == "hopeless"]
    assert event.estimated_wait == error.estimated_wait == pytest.approx(4)


async def test_a_cancelled_wait_is_withdrawn(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report")
    async with guard:
        task = asyncio.create_task(block(guard))
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.wait([task])
    assert witness.kinds == ["entered", "granted", "entered", "withdrawn", "released"]
    assert witness.events[3].waited == 3


async def test_one_cancelled_just_when_it_was_granted_is_withdrawn(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    task = asyncio.create_task(block(guard))
    await asyncio.sleep(1)
    await permit.release()
    task.cancel()
    await asyncio.wait([task])
    assert witness.lives() == ["entered granted released", "entered withdrawn"]


async def test_an_eviction_refuses_who_waits_and_takes_from_who_holds(
    hub: AsyncGuard, witness: Witness
) -> None:
    guard = hub.guard("report")
    tasks = [asyncio.create_task(block(guard)) for _ in range(2)]
    await asyncio.sleep(1)
    first, second = [event.ticket for event in witness.events if event.kind == "entered"]
    assert await guard.evict(second)
    assert await guard.evict(first)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert witness.lives() == ["entered granted lost", "entered refused"]
    (lost,) = [event for event in witness.events if event.kind == "lost"]
    assert (lost.held, lost.ticket) == (1, first)
    (refused,) = [event for event in witness.events if event.kind == "refused"]
    assert refused.reason == "evicted"


@pytest.mark.parametrize("on_lost", ["cancel", "notify"])
async def test_work_that_overruns_is_lost_and_not_released_too(
    on_lost: Any, hub: AsyncGuard, witness: Witness
) -> None:
    guard = hub.guard("report", max_hold=1, on_lost=on_lost)
    with contextlib.suppress(PermitLost):
        await block(guard)
    with contextlib.suppress(PermitLost):
        await by_hand(guard)
    assert witness.lives() == ["entered granted lost"] * 2


async def test_a_deadlock_that_is_seen_is_withdrawn(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report")
    async with guard:
        with pytest.raises(WouldDeadlock):
            await block(guard)
    assert witness.kinds == ["entered", "granted", "entered", "withdrawn", "released"]


async def test_what_would_block_never_entered(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report")
    async with guard:
        with pytest.raises(WouldBlock):
            guard.acquire_nowait()
    assert len(witness.events) == 3


async def test_work_in_a_thread_is_released_when_the_thread_returns(
    hub: AsyncGuard, witness: Witness
) -> None:
    guard = hub.guard("report")
    begun, end = threading.Event(), threading.Event()

    @guard
    def work() -> None:
        begun.set()
        end.wait(10)

    task = asyncio.create_task(work())
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.wait([task])
    assert witness.kinds == ["entered", "granted"]
    end.set()
    while len(witness.events) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert witness.kinds[-1] == "released"


async def test_a_dropped_permit_is_told_of_but_not_in_the_finaliser(hub: AsyncGuard) -> None:
    lock = threading.Lock()  # as metrics have one: taken again in a finaliser it would hang
    heard = []

    def observer(event: Event) -> None:
        assert lock.acquire(timeout=0), "told in the middle of something"
        heard.append(event.kind)
        lock.release()

    hub.observe(observer)
    permit = await hub.guard("report").acquire()
    with pytest.warns(ResourceWarning, match="dropped"), lock:  # noqa: PT031
        del permit
        gc.collect()
    assert heard == ["entered", "granted"]
    await asyncio.sleep(0)
    assert heard == ["entered", "granted", "released"]


async def test_a_wait_that_is_dropped_is_withdrawn(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    coroutine: Any = block(guard)
    coroutine.send(None)
    coroutine.close()
    await asyncio.sleep(0)
    await permit.release()
    assert witness.kinds == ["entered", "granted", "entered", "withdrawn", "released"]


async def test_all_that_the_guard_can_do_at_once(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report", limit=2, order="fair", rate=Rate(50, per=1), max_waiting=5, max_wait=2)
    tasks = []
    for number in range(40):
        ask: dict[str, Any] = {"tenant": "ab"[number % 2], "permits": 1 + number % 3 % 2, "key": number % 2}

        async def work(ask: dict[str, Any] = ask) -> None:
            async with guard.permit(**ask):
                await asyncio.sleep(0.3)

        tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(0.05)
        if number % 7 == 0:
            tasks[number // 2].cancel()
        if number % 9 == 0:
            await guard.evict(witness.events[-1].ticket)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(witness.lives()) > 35


async def test_an_observer_that_fails_is_logged_and_harms_nobody(
    hub: AsyncGuard, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(event: Event) -> None:
        raise ValueError("no room for " + event.kind)

    hub.observe(fails)
    witness = Witness()
    hub.observe(witness)
    await block(hub.guard("report"))
    assert witness.kinds == ["entered", "granted", "released"]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "no room for entered",
        "no room for granted",
        "no room for released",
    ]


async def test_an_observer_hears_of_tickets_whole_lives(hub: AsyncGuard) -> None:
    """One that comes and goes hears nothing of a ticket that entered before it came."""
    guard = hub.guard("report")
    variant = guard.replace(max_hold=60)
    first, second = asyncio.create_task(block(guard)), asyncio.create_task(block(guard))
    await asyncio.sleep(1)
    witness = Witness()
    end = hub.observe(witness)
    third = asyncio.create_task(block(variant))
    await asyncio.wait([first, second, third])
    assert witness.lives() == ["entered granted released"]
    end()
    end()
    await block(guard)
    assert len(witness.events) == 3
    assert not guard._special


async def test_guards_declared_later_are_heard_too(hub: AsyncGuard, witness: Witness) -> None:
    await block(hub.guard("another"))
    assert {event.guard for event in witness.events} == {"another"}


async def test_the_ids_are_those_that_inspect_tells(hub: AsyncGuard, witness: Witness) -> None:
    guard = hub.guard("report")
    async with guard, guard.permit(key=1):
        ids = {holder.id for holder in (await guard.inspect()).holders}
    assert ids == {event.ticket for event in witness.events}


@pytest.mark.parametrize("observer", [None, 1, block])
async def test_what_is_no_observer_is_refused(observer: Any, hub: AsyncGuard) -> None:
    with pytest.raises(TypeError, match="observer: expected"):
        hub.observe(observer)


async def test_threads_and_loops_tell_of_all_their_tickets() -> None:
    ag = AsyncGuard()
    guard = ag.guard("report", max_waiting=None)
    witness = Witness()
    ag.observe(witness)

    async def many() -> None:
        async def one() -> None:
            with contextlib.suppress(GuardError):
                async with guard:
                    await asyncio.sleep(0)

        await asyncio.gather(*(one() for _ in range(50)))

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, many()) for _ in range(4)))
    assert witness.lives() == ["entered granted released"] * 200
    tokens = [event.token for event in sorted(witness.events, key=lambda e: e.at) if event.kind == "granted"]
    assert len(set(tokens)) == 200
