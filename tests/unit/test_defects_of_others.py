"""What other limiters, locks and queues got wrong, as far as it concerns one process."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

import anyio
import pytest

from asyncguard import AsyncGuard, HoldExceeded, PermitLost, QueueFull, Refused, WaitTimeout

if TYPE_CHECKING:
    from asyncguard import Guard, Permit


@pytest.fixture
async def guard(hub: AsyncGuard) -> Guard:
    return hub.guard("report", max_wait=None, max_waiting=None)


async def hold(guard: Guard, seconds: float = 1) -> None:
    async with guard:
        await asyncio.sleep(seconds)


async def test_an_acquire_that_was_cancelled_leaves_nothing_locked(guard: Guard) -> None:
    # redis/redis-py#3847, #4258; pottery 3.0.1; tox-dev/filelock#640
    permit = await guard.acquire()
    for ticks in range(4):
        task = asyncio.create_task(guard.acquire())
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await permit.release()
    await hold(guard)


async def test_a_block_cancelled_while_it_ends_has_ended(guard: Guard) -> None:
    # redis-py 8.1: cancelled during __aexit__, the lock stays
    async def work() -> None:
        async with guard:
            own = asyncio.current_task()
            assert own is not None
            own.cancel()

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    assert (await guard.inspect()).in_use == 0


async def test_one_guard_shared_by_two_tasks_frees_only_what_each_holds(guard: Guard) -> None:
    # redis-py 8.1, pottery, NoneGG/aredis#119: a late release frees the other's lock
    first = await guard.acquire()
    await first.release()
    second = await guard.acquire()
    await first.release()
    assert (await guard.inspect()).in_use == 1
    await second.release()


async def test_leaving_a_block_whose_permit_was_lost_frees_nobody_elses(
    hub: AsyncGuard, guard: Guard
) -> None:
    # py-cachify 3.1: the release is an unconditional DELETE
    losing = asyncio.create_task(hold(guard))
    await asyncio.sleep(0)
    (holder,) = (await guard.inspect()).holders
    await hub.open().evict(guard.declaration, holder.id)
    successor = await guard.acquire(timeout=0)
    with pytest.raises(PermitLost):
        await losing
    assert (await guard.inspect()).in_use == 1
    await successor.release()


async def test_twelve_waiters_come_in_as_they_came(guard: Guard) -> None:
    # redis-py and every poller: 0,3,6,1,11,7,2,5,8,4,9,10
    order: list[int] = []

    async def work(number: int) -> None:
        async with guard:
            order.append(number)
            await asyncio.sleep(1)

    await asyncio.gather(*(work(number) for number in range(12)))
    assert order == list(range(12))


async def test_a_woken_and_cancelled_waiter_passes_its_permit_on(hub: AsyncGuard) -> None:
    # aio-fairshare 0.2.1, hyx 0.0.2, python/cpython#90155, anyio#947, #1145
    guard = hub.guard("report", limit=2, max_wait=None, max_waiting=None)
    chance = random.Random(1)  # noqa: S311
    for _ in range(50):
        permits = [await guard.acquire(), await guard.acquire()]
        tasks = [asyncio.create_task(guard.acquire()) for _ in range(6)]
        await asyncio.sleep(0)
        for permit in permits:
            await permit.release()
        for task in chance.sample(tasks, 4):
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        got: list[Permit] = [permit for permit in done if not isinstance(permit, BaseException)]
        assert len(got) == 2
        for permit in got:
            await permit.release()


async def test_a_cancelled_head_does_not_block_those_behind_it(hub: AsyncGuard) -> None:
    # dotnet/runtime#77180, #85523
    guard = hub.guard("report", limit=4, max_wait=None)
    permit = await guard.acquire(permits=2)
    head = asyncio.create_task(guard.acquire(permits=4))
    await asyncio.sleep(1)
    behind = asyncio.create_task(guard.acquire(permits=2))
    await asyncio.sleep(1)
    assert not behind.done()
    head.cancel()
    await (await asyncio.wait_for(behind, 1)).release()
    await permit.release()


async def test_a_release_between_the_try_and_the_wait_is_not_missed(guard: Guard) -> None:
    # miintto/redis-lock-py#3, redisson#5762, #6026, #7264
    for releases_first in (True, False):
        permit = await guard.acquire()
        tasks = [permit.release(), hold(guard)] if releases_first else [hold(guard), permit.release()]
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)


async def test_work_is_told_that_its_permit_was_lost_and_does_not_run_on(hub: AsyncGuard) -> None:
    # redisson#4698, mithril-locks 0.1.0, node-redlock#309
    guard = hub.guard("report", max_hold=2)
    ran = 0
    with pytest.raises(HoldExceeded):  # noqa: PT012
        async with guard:
            while True:
                await asyncio.sleep(1)
                ran += 1
    assert ran <= 2


async def test_the_watch_over_a_hold_ends_with_it(hub: AsyncGuard) -> None:
    # redisson#5697, #5698, #7272: renewal outlives the unlock, or stops silently
    guard = hub.guard("report", max_hold=5)
    for _ in range(3):
        await hold(guard, 4)
    await asyncio.sleep(100)
    with pytest.raises(HoldExceeded):
        await hold(guard, 6)


async def test_a_crashed_task_gives_its_permit_back_under_traffic(guard: Guard) -> None:
    # concurrency-limit 1.2, rails/solid_queue#761, apache/airflow#15399, PrefectHQ/prefect#21794
    async def crash() -> None:
        async with guard:
            await asyncio.sleep(1)
            raise MemoryError

    results = await asyncio.gather(
        *(crash() if number % 2 else hold(guard) for number in range(20)), return_exceptions=True
    )
    assert results == [None if number % 2 == 0 else results[number] for number in range(20)]
    picture = await guard.inspect()
    assert (picture.in_use, picture.granted) == (0, 20)


async def test_a_wait_may_be_longer_than_any_socket_timeout(guard: Guard) -> None:
    # mithril-locks: raises after 34 s
    holder = asyncio.create_task(hold(guard, 3600))
    await asyncio.sleep(0)
    async with guard as permit:
        assert permit.waited == pytest.approx(3600)
    await holder


async def test_three_hundred_keys_are_three_hundred_keys(guard: Guard) -> None:
    # tooz on PostgreSQL: names hashed to 16 bits, of which 302 collide half the time
    permits = [guard.acquire_nowait(key=f"name-{number}") for number in range(3000)]
    assert (await guard.inspect()).in_use == 3000
    for permit in permits:
        await permit.release()


async def test_a_limit_lowered_while_full_drains(hub: AsyncGuard) -> None:
    # ace-concurrency 0.1.1: the release deadlocks when the limiter shrinks while full
    guard = hub.guard("report", limit=5, max_wait=None)
    tasks = [asyncio.create_task(hold(guard)) for _ in range(12)]
    await asyncio.sleep(0.5)
    guard.replace(limit=2)
    seen = []
    while not all(task.done() for task in tasks):
        await asyncio.sleep(1)
        seen.append((await guard.inspect()).in_use)
    assert max(seen) <= 2


async def test_being_full_is_a_refusal_and_not_a_failure(hub: AsyncGuard) -> None:
    # pyresilience 0.4.1: the middleware answers 500 when full
    guard = hub.guard("report", max_waiting=0)
    permit = await guard.acquire()
    with pytest.raises(QueueFull) as caught:
        await guard.acquire()
    assert isinstance(caught.value, Refused)
    await permit.release()


async def test_a_freed_permit_is_not_idle_while_somebody_waits(guard: Guard) -> None:
    # prefect#23183, good_job#603: waiters sleep out their Retry-After
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.gather(*(hold(guard, 0.001) for _ in range(500)))
    assert loop.time() - start == pytest.approx(0.5, rel=1e-3)


async def test_a_permit_is_not_stuck_after_a_cancel(guard: Guard) -> None:
    # solid_queue#546, prefect#17415, dagster#28456, celery-once#147, celery-singleton#40
    for _ in range(100):
        with anyio.move_on_after(0.5):
            await hold(guard)
    assert (await guard.inspect()).in_use == 0


async def test_losing_one_permit_cancels_its_own_work_alone(hub: AsyncGuard) -> None:
    # Comfy-Org/ComfyUI#2566, stable-diffusion-webui#761: the cancel hits somebody else's job
    guard = hub.guard("report", limit=3)
    tasks = [asyncio.create_task(hold(guard, 5)) for _ in range(3)]
    await asyncio.sleep(1)
    holders = (await guard.inspect()).holders
    await hub.open().evict(guard.declaration, holders[1].id)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), PermitLost, type(None)]


async def test_a_loss_that_comes_as_the_block_ends_does_not_hit_what_follows(hub: AsyncGuard) -> None:
    # the same: the cancellation arrives when the task is busy with something else
    guard = hub.guard("report", max_hold=5)
    for _ in range(2):
        with contextlib.suppress(HoldExceeded):
            await hold(guard, 5)
        await asyncio.sleep(1)
        await asyncio.sleep(1)


async def test_the_queued_work_of_a_client_that_left_is_not_run(guard: Guard) -> None:
    # gunicorn#1976, and every plain lock
    ran: list[int] = []

    async def request(number: int) -> None:
        async with guard:
            ran.append(number)
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(request(number)) for number in range(100)]
    await asyncio.sleep(0.5)
    for task in tasks[1:99]:
        task.cancel()
    await asyncio.wait(tasks)
    assert ran == [0, 99]


async def test_clients_that_give_up_do_not_ruin_the_service(hub: AsyncGuard) -> None:
    # The plain lock: 17 of 300 were answered, and none after the second second.
    guard = hub.guard("report", max_wait=0.85)
    answered = 0

    async def request(number: int) -> None:
        nonlocal answered
        await asyncio.sleep(number / 20)
        try:
            async with asyncio.timeout(1), guard:
                await asyncio.sleep(0.1)
                answered += 1
        except (TimeoutError, Refused):
            pass

    await asyncio.gather(*(request(number) for number in range(300)))
    assert answered >= 0.95 * 150


async def test_a_waiter_that_timed_out_is_not_granted_later(guard: Guard) -> None:
    # a dead waiter stalls the fair queue: redisson#3004, #3730, #6150, #2883
    permit = await guard.acquire()
    for _ in range(5):
        with pytest.raises(WaitTimeout):
            await guard.acquire(timeout=1)
    waiting = asyncio.create_task(guard.acquire())
    await asyncio.sleep(1)
    await permit.release()
    await (await asyncio.wait_for(waiting, 1)).release()
