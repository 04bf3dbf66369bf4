"""Keys come and go, and leave nothing behind."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from typing import Any

from asyncguard import AsyncGuard, Guard, Rate


def partitions(guard: Guard) -> Any:
    backend: Any = guard.bound_to
    return backend._admissions[guard.name].partitions


async def test_a_hundred_thousand_keys_used_once_leave_no_partition_behind(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_keys=200_000)
    for number in range(100_000):
        async with guard.permit(key=number):
            pass
    await asyncio.sleep(1)
    async with guard.permit(key="last"):
        assert len(partitions(guard)) == 1


async def test_with_a_pace_too(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_keys=200_000, rate=Rate(1, per=60))
    for number in range(20_000):
        async with guard.permit(key=number):
            pass
    assert len(partitions(guard)) == 20_000, "their pace is remembered"
    await asyncio.sleep(61)
    async with guard.permit(key="last"):
        assert len(partitions(guard)) == 1


async def test_contended_keys_too(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)

    async def work(key: int) -> None:
        async with guard.permit(key=key):
            await asyncio.sleep(1)

    await asyncio.gather(*(work(number % 1000) for number in range(3000)))
    await asyncio.sleep(1)
    await work(1000)
    assert len(partitions(guard)) <= 1


async def test_keys_whose_tickets_were_cancelled_or_refused_too(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=None)

    async def work(key: int) -> None:
        async with guard.permit(key=key):
            await asyncio.sleep(10)

    tasks = [asyncio.create_task(work(number % 100)) for number in range(300)]
    await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(1)
    await work(100)
    assert len(partitions(guard)) <= 1


async def test_looking_at_a_key_does_not_make_it(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    for number in range(100):
        assert (await guard.inspect(number)).granted == 0
    async with guard:
        pass
    assert list(partitions(guard)) == [None]


async def test_looking_at_many_keys_takes_time_in_proportion_to_their_number(hub: AsyncGuard) -> None:
    took = []
    for keys in (500, 4000):
        guard = hub.guard(f"report {keys}")
        permits = [guard.acquire_nowait(key=number) for number in range(keys)]
        looks = []
        for _ in range(7):  # the shortest is what it takes; others were interrupted, or collected garbage
            start = time.perf_counter()
            assert (await guard.inspect()).in_use == keys
            looks.append(time.perf_counter() - start)
        took.append(min(looks))
        for permit in permits:
            await permit.release()
    assert took[1] < 24 * took[0], "8 times as many keys should take 8 times as long, and not 64 times"


async def test_memory_returns_to_where_it_was(hub: AsyncGuard) -> None:
    guard = hub.guard("report")

    async def use(first: int) -> None:
        for number in range(first, first + 5000):
            async with guard.permit(key=number):
                pass
            await asyncio.sleep(0.001)

    await use(0)
    tracemalloc.start()
    try:
        await use(5000)
        before, _ = tracemalloc.get_traced_memory()
        await use(10_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
