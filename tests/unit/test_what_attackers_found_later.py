"""What the attack on the rules found: each was wrong once."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, Event, Permit, QueueFull, Rate, TooManyKeys, WaitTimeout
from asyncguard.admission import Admission, Partition
from asyncguard.clock import TICKS
from asyncguard.testing import ManualClock
from asyncguard.ticket import Declaration, Order, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Bench:
    """A partition, and tickets that enter it one tick after another."""

    def __init__(self, **rules: Any) -> None:
        self.declaration = Declaration("guard", Rules(**rules))
        self.partition = Partition(Admission(self.declaration), None)
        self.now = TICKS
        self.ids = 0

    def enter(self, **terms: Any) -> Ticket:
        self.ids += 1
        self.now += 1
        ticket = new_ticket(self.ids, Terms(self.declaration, **terms))
        self.partition.enter(ticket, self.now)
        return ticket

    def hold(self, times: int) -> None:
        """Have the guard see how long work takes: a second."""
        for _ in range(times):
            ticket = self.enter(tenant="x")
            self.now += TICKS
            self.partition.leave(ticket, self.now)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what doesn't wait, where nothing can be awaited."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


@pytest.mark.parametrize("order", ["fifo", "lifo", "fair"])
async def test_who_only_tries_throws_nobody_out_of_a_full_queue(order: Order, hub: AsyncGuard) -> None:
    guard = hub.guard("report", order=order, max_waiting=3, max_wait=None)
    permit = await guard.acquire()
    patient = [asyncio.create_task(guard.acquire(tenant="a")) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(3):
        with pytest.raises((WaitTimeout, QueueFull)):
            await guard.acquire(timeout=0, tenant=f"n{number}")
    await asyncio.sleep(0)
    assert not any(task.done() for task in patient)
    await permit.release()
    for task in sorted(patient, key=lambda task: task.get_name(), reverse=False):
        task.add_done_callback(lambda done: asyncio.ensure_future(done.result().release()))
    await asyncio.wait(patient)


def test_who_takes_the_place_of_the_first_in_line_is_granted_if_it_fits() -> None:
    bench = Bench(limit=2, max_waiting=1, order="fair")
    bench.enter(tenant="h")
    large = bench.enter(tenant="a", permits=2, share=0.5)
    small = bench.enter(tenant="b")
    assert (large.state, large.reason) == ("refused", "full")
    assert small.state == "held"
    assert small not in bench.partition.admission.changed


def test_the_place_in_a_fair_queue_knows_that_other_lines_are_shorter() -> None:
    bench = Bench(max_waiting=None, order="fair")
    bench.hold(32)
    bench.enter(tenant="x")
    for _ in range(500):
        bench.enter(tenant="big")
    for number in range(20):
        bench.enter(tenant=f"t{number}")
    for _ in range(4):
        bench.enter(tenant="a")
    last = bench.enter(tenant="a")
    queue: Any = bench.partition.queue
    assert queue.ahead_of(last) == pytest.approx(bench.partition.in_order().index(last), abs=2)


def test_the_place_in_a_fair_queue_knows_shares() -> None:
    bench = Bench(max_waiting=None, order="fair")
    bench.hold(32)
    bench.enter(tenant="x")
    for _ in range(40):
        bench.enter(tenant="small", share=1)
    *_, last = [bench.enter(tenant="large", share=10) for _ in range(20)]
    queue: Any = bench.partition.queue
    assert queue.ahead_of(last) == pytest.approx(bench.partition.in_order().index(last), abs=2)


def test_an_enter_that_was_too_large_is_so_when_it_comes_again() -> None:
    bench = Bench(limit=1)
    terms = Terms(bench.declaration, permits=2, lease=TICKS)
    first, again = new_ticket(7, terms), new_ticket(7, terms)
    bench.partition.enter(first, bench.now)
    bench.partition.configure(bench.now, limit=2)
    bench.partition.enter(again, bench.now)
    assert (first.state, again.state, again.reason) == ("refused", "refused", "too_large")
    assert bench.partition.statistics.refused["too_large"] == 1


def test_what_was_due_is_granted_before_a_pause() -> None:
    bench = Bench(limit=5, rate=Rate(1, per=10))
    bench.enter()
    second = bench.enter()
    bench.partition.configure(60 * TICKS, paused=True)
    assert second.state == "held"


async def test_keys_of_a_pace_that_is_gone_are_not_in_use() -> None:
    clock = ManualClock()
    guard = AsyncGuard(clock=clock).guard("report", max_keys=2, rate=Rate(1, per=3600))
    for key in "ab":
        async with guard.permit(key=key):
            pass
    with pytest.raises(TooManyKeys):
        await guard.acquire(key="c")
    unpaced = guard.replace(rate=None)
    clock.advance(0.001)
    async with unpaced.permit(key="c"):
        pass


async def test_a_guard_without_key_is_no_key() -> None:
    guard = AsyncGuard().guard("report", max_keys=1)
    async with guard:
        pass
    async with guard.permit(key="a"):
        pass


async def test_paced_keys_go_when_an_old_key_is_used() -> None:
    clock = ManualClock()
    guard = AsyncGuard(clock=clock).guard("report", rate=Rate(1, per=60), max_wait=None)
    for key in range(100):
        async with guard.permit(key=key):
            pass
    clock.advance(3600)
    assert (await guard.inspect()).keys == 0


async def test_a_clock_by_hand_opens_a_pace_as_often_as_it_should() -> None:
    clock = ManualClock()
    guard = AsyncGuard(clock=clock).guard("report", limit=10, rate=Rate(1, per=1), max_wait=3.5)

    async def wait() -> float:
        async with guard as permit:
            return round(permit.waited, 3)

    tasks = [asyncio.create_task(wait()) for _ in range(4)]
    for _ in range(3):
        await asyncio.sleep(0)
    clock.advance(10)
    assert await asyncio.gather(*tasks) == pytest.approx([0, 1, 2, 3], abs=0.001)


async def test_an_observer_hears_no_end_of_what_it_did_not_hear_the_beginning_of(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    seen: list[str] = []
    hub.observe(lambda event: None)
    async with guard:
        hub.observe(lambda event: seen.append(event.kind))
    assert seen == []


async def test_an_observer_that_came_twice_goes_once(hub: AsyncGuard) -> None:
    seen: list[str] = []

    def observer(event: Event) -> None:
        seen.append(event.kind)

    end = hub.observe(observer)
    hub.observe(observer)
    end()
    async with hub.guard("report"):
        pass
    assert seen == ["entered", "granted", "released"]


@pytest.mark.parametrize("at", ["entered", "granted"])
async def test_events_stay_in_order_when_an_observer_acts(at: str, hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    seen: list[str] = []
    hub.observe(lambda event: at_once(guard.evict(event.ticket)) if event.kind == at else None)
    hub.observe(lambda event: seen.append(event.kind))
    with pytest.raises(Exception, match="evicted|taken|operator"):
        async with guard:
            await asyncio.sleep(1)
    assert seen[0] == "entered"
    assert seen[-1] in ("lost", "refused")
    assert sorted(seen, key=["entered", "granted", "lost", "refused"].index) == seen


async def test_an_observer_that_is_cancelled_harms_nobody(hub: AsyncGuard) -> None:
    def observer(event: Event) -> None:
        raise asyncio.CancelledError

    hub.observe(observer)
    async with hub.guard("report"):
        pass


def test_a_wait_whose_loop_is_closed_ends_for_observers_too() -> None:
    ag = AsyncGuard()
    guard = ag.guard("report")
    seen: list[tuple[str, str]] = []
    ag.observe(lambda event: seen.append((event.ticket, event.kind)))
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    permit = one.run_until_complete(guard.acquire())
    waits = other.create_task(guard.acquire())
    other.run_until_complete(asyncio.sleep(0))
    other.close()
    one.run_until_complete(permit.release())
    one.run_until_complete(asyncio.sleep(0))
    one.close()
    assert ("2", "withdrawn") in seen
    waits._log_destroy_pending = False  # type: ignore[attr-defined]


async def test_a_permit_is_the_only_one_of_its_kind(hub: AsyncGuard) -> None:
    async with hub.guard("report") as permit:
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="can't be copied"):
                copied(permit)


def test_alarms_of_closed_loops_are_let_go() -> None:
    ag = AsyncGuard()
    guard = ag.guard("report", rate=Rate(1, per=3600), limit=5)

    async def give_up() -> None:
        with pytest.raises((WaitTimeout, QueueFull, Exception)):
            await guard.acquire(timeout=0.001)

    async def hold() -> Permit:
        return await guard.acquire()

    permit = asyncio.run(hold())
    for _ in range(20):
        asyncio.run(give_up())
    backend: Any = ag.open()
    assert len(backend._alarms) <= 2
    asyncio.run(permit.release())


async def test_threads_that_ask_for_what_few_have_get_one(hub: AsyncGuard) -> None:
    async with hub.guard("report") as permit:
        losses = []
        threads = [threading.Thread(target=lambda: losses.append(permit.lost)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({id(loss) for loss in losses}) == 1


@pytest.mark.parametrize("ticket_id", [5, None, b"x"])
async def test_ids_are_text(ticket_id: Any, hub: AsyncGuard) -> None:
    with pytest.raises(TypeError, match="ticket_id"):
        await hub.guard("report").evict(ticket_id)


@pytest.mark.parametrize("key", [pytest.param(True, id="bool"), pytest.param(10**5000, id="huge")])
async def test_keys_that_are_none(key: Any, hub: AsyncGuard) -> None:
    with pytest.raises((TypeError, ValueError), match="key"):
        hub.guard("report").permit(key=key)


def test_work_of_no_time_takes_none_in_the_statistics() -> None:
    # Grants are dated at least a microsecond apart, and so some come after the end of their work.
    bench = Bench(limit=2)
    for _ in range(50):
        pair = [bench.enter(), bench.enter()]
        for ticket in pair:
            bench.partition.leave(ticket, bench.now)
    statistics = bench.partition.statistics
    statistics.digest()
    assert min(statistics.holds) == 1
    assert statistics.can_estimate
