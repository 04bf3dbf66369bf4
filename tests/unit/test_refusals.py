"""Who is turned away, when, and what the error says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard, HopelessWait, Paused, QueueFull, Rate, Refused, TooManyKeys, WaitTimeout

if TYPE_CHECKING:
    from asyncguard import Guard


async def hold(guard: Guard, seconds: float) -> None:
    async with guard:
        await asyncio.sleep(seconds)


async def teach(guard: Guard, seconds: float = 10) -> None:
    """Have a guard see enough holds to know how long they take."""
    for _ in range(5):
        await hold(guard, seconds)


async def test_a_full_queue_refuses_the_next_one(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=2)
    tasks = [asyncio.create_task(hold(guard, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="max_waiting=2") as caught:
        await guard.acquire()
    assert (caught.value.reason, caught.value.guard, caught.value.key) == ("full", "report", None)
    assert (await guard.inspect()).refused == {"full": 1}
    await asyncio.gather(*tasks)


async def test_each_key_has_a_queue_of_its_own(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=1)

    async def work(key: str) -> None:
        async with guard.permit(key=key):
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(work(key)) for key in "abab"]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="key 'a'") as caught:
        await work("a")
    assert caught.value.key == "a"
    await asyncio.gather(*tasks)


async def test_with_no_waiting_allowed_only_a_free_permit_will_do(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=0)
    async with guard:
        with pytest.raises(QueueFull):
            await asyncio.create_task(hold(guard, 1))
    await hold(guard, 1)


async def test_a_place_in_the_queue_is_free_again_when_its_ticket_left(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=1)
    async with guard:
        for _ in range(3):
            task = asyncio.create_task(hold(guard, 1))
            await asyncio.sleep(1)
            task.cancel()
            await asyncio.wait([task])


async def test_a_ticket_waits_as_long_as_it_is_prepared_to(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=7)
    loop = asyncio.get_running_loop()
    permit = await guard.acquire(key="a")
    for timeout, expected in ((None, 7), (3, 3), (0.25, 0.25), (60, 7), (float("inf"), 7)):
        start = loop.time()
        with pytest.raises(WaitTimeout, match=f"within the {expected:g} s") as caught:
            await guard.acquire(key="a", timeout=timeout)
        assert loop.time() - start == pytest.approx(expected)
        assert (caught.value.reason, caught.value.guard, caught.value.key) == ("timeout", "report", "a")
        assert caught.value.estimated_wait is None, "nothing is known yet"
    assert (await guard.inspect()).waiting == 0
    await permit.release()


async def test_waits_of_different_patience_end_each_at_its_time(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None, max_waiting=None)
    loop = asyncio.get_running_loop()
    start = loop.time()
    ended: list[float] = []

    async def wait(patience: float, delay: float) -> None:
        await asyncio.sleep(delay)
        with pytest.raises(WaitTimeout):
            await guard.acquire(timeout=patience)
        assert loop.time() - start == pytest.approx(delay + patience)
        ended.append(patience)

    async with guard:
        await asyncio.gather(*(wait(patience, delay) for patience in (5, 1, 3.5) for delay in (0, 0.5, 2)))
        assert len(ended) == 9
        assert (await guard.inspect()).refused == {"timeout": 9}


async def test_waits_of_many_different_lengths_leave_nothing_behind(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    permit = await guard.acquire()
    for number in range(2000):
        with pytest.raises(WaitTimeout):
            await guard.acquire(timeout=1 + number / 1000)
    assert len(hub.client()._rows) < 100
    await permit.release()


async def test_a_ticket_granted_at_its_deadline_is_granted_or_refused_but_not_both(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=5)
    holder = asyncio.create_task(hold(guard, 5))
    await asyncio.sleep(0)
    try:
        permit = await guard.acquire()
    except WaitTimeout:
        pass
    else:
        await permit.release()
    await holder
    assert (await guard.inspect()).in_use == 0


async def test_a_hopeless_wait_is_refused_at_the_door(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=25)
    await teach(guard, 10)
    tasks = [asyncio.create_task(hold(guard, 10)) for _ in range(3)]
    await asyncio.sleep(0)
    start = asyncio.get_running_loop().time()
    with pytest.raises(HopelessWait) as caught:
        await guard.acquire()
    assert asyncio.get_running_loop().time() == start
    assert caught.value.reason == "hopeless"
    assert caught.value.estimated_wait == pytest.approx(30)
    permit = await guard.acquire(timeout=None, priority=15)
    await permit.release()
    await asyncio.gather(*tasks)


async def test_one_probe_is_always_let_in(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    await teach(guard, 100)
    holder = asyncio.create_task(hold(guard, 1))
    await asyncio.sleep(0)
    async with guard.permit(timeout=2) as permit:
        assert permit.waited == pytest.approx(1)
    await holder


async def test_the_estimate_counts_those_ahead_and_what_is_left_of_the_hold(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    await teach(guard, 10)
    assert (await guard.inspect()).estimated_wait == 0
    tasks = [asyncio.create_task(hold(guard, 10)) for _ in range(3)]
    await asyncio.sleep(4)
    picture = await guard.inspect()
    assert picture.mean_hold == pytest.approx(10)
    assert [waiter.estimated_wait for waiter in picture.queue] == pytest.approx([6, 16])
    assert picture.estimated_wait == pytest.approx(26)
    await asyncio.gather(*tasks)


async def test_nothing_is_estimated_before_five_holds_were_seen(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    for _ in range(4):
        await hold(guard, 10)
    tasks = [asyncio.create_task(hold(guard, 10)) for _ in range(2)]
    await asyncio.sleep(1)
    assert (await guard.inspect()).estimated_wait is None
    await asyncio.gather(*tasks)
    assert (await guard.inspect()).estimated_wait == 0


async def test_a_new_key_is_estimated_by_what_the_others_took(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    await teach(guard, 10)
    permit = await guard.acquire(key="new")
    assert (await guard.inspect("new")).estimated_wait == pytest.approx(10)
    await permit.release()


async def test_too_many_keys_are_refused_and_their_number_falls_again(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_keys=2)
    first, second = await guard.acquire(key="a"), await guard.acquire(key="b")
    with pytest.raises(TooManyKeys, match="max_keys=2") as caught:
        await guard.acquire(key="c")
    assert (caught.value.reason, caught.value.key) == ("too_many_keys", "c")
    with pytest.raises(TooManyKeys):
        guard.acquire_nowait(key="c")
    await first.release()
    await asyncio.sleep(1)
    await (await guard.acquire(key="c")).release()
    await second.release()


async def test_a_paused_guard_grants_nothing_and_goes_on_where_it_was(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    backend = hub.open()
    await backend.configure(guard.declaration, None, paused=True)
    waiting = asyncio.create_task(hold(guard, 1))
    await asyncio.sleep(100)
    picture = await guard.inspect()
    assert (picture.paused, picture.waiting, picture.in_use, picture.estimated_wait) == (True, 1, 0, None)
    with pytest.raises(Paused):
        await guard.acquire(timeout=0)
    await backend.configure(guard.declaration, None, paused=False)
    await waiting
    assert not (await guard.inspect()).paused


async def test_a_refusal_is_one_kind_of_error(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=0)
    async with guard:
        with pytest.raises(Refused):
            await asyncio.create_task(hold(guard, 1))


async def test_percentiles_tell_how_long_tickets_waited_and_held(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)
    await asyncio.gather(*(hold(guard, 1) for _ in range(11)))
    picture = await guard.inspect()
    assert picture.granted == 11
    assert (picture.wait.count, picture.hold.count) == (11, 11)
    assert picture.wait.p50 == pytest.approx(5)
    assert picture.wait.p99 == pytest.approx(10)
    assert picture.hold.p50 == pytest.approx(1)


async def test_a_pace_is_foreseen_before_any_work_was_seen(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=10, rate=Rate(1, per=60), max_wait=90)
    await (await guard.acquire()).release()
    probe = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    with pytest.raises(HopelessWait) as told:
        await guard.acquire()
    assert told.value.estimated_wait == pytest.approx(119, abs=1)
    await (await probe).release()
