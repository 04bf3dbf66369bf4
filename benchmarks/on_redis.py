"""What the Redis backend costs beside redis-py's own lock: alone, and from one task to the next."""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from pathlib import Path
from typing import Any

import redis.asyncio

from asyncguard import AsyncGuard
from benchmarks.table import Progress, Row, interleaved

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from valkey_server import connect, running_server

_ALONE = 1000
_TASKS = 20
_SECONDS = 2.0
_LEASE = 30


def measure(progress: Progress) -> list[Row]:
    """Measure it on a server started for it, or the one that ASYNCGUARD_TEST_REDIS_URL names."""
    with running_server() as url:
        alone = interleaved(
            "redis, alone",
            {
                "AsyncGuard": functools.partial(_alone, url),
                "redis-py Lock": functools.partial(_alone_with_redis_py, url),
                "ping": functools.partial(_ping, url),
            },
            progress,
        )
        handovers = interleaved(
            f"redis, {_TASKS} tasks",
            {
                "AsyncGuard": functools.partial(_hand_over, url),
                "redis-py Lock": functools.partial(_hand_over_with_redis_py, url),
            },
            progress,
            rounds=3,
        )
        trips = _round_trips(url)
    ours = handovers["AsyncGuard"]
    return [
        Row("redis: enter and leave, us", alone),
        Row(
            "  against redis-py's Lock",
            ratio=alone["AsyncGuard"] / alone["redis-py Lock"],
            at_most=1.15,
            aim=1.0,
        ),
        Row("  scripts that the server ran for each", ratio=trips, at_most=2.01, aim=2),
        Row(f"redis: a hand-over among {_TASKS} tasks, us", handovers),
        Row("  against redis-py's Lock", ratio=ours / handovers["redis-py Lock"], at_most=0.1, aim=0.05),
        Row("  in pings", ratio=ours / alone["ping"], aim=3),
    ]


async def _time_of_each(enter_and_leave: Any, count: int = _ALONE) -> float:
    await enter_and_leave()
    began = time.perf_counter()
    for _ in range(count):
        await enter_and_leave()
    return (time.perf_counter() - began) / count * 1e6


def _alone(url: str) -> float:
    async def run() -> float:
        async with AsyncGuard(f"{url}?lease={_LEASE}", namespace="alone") as ag:
            guard = ag.guard("work")

            async def enter_and_leave() -> None:
                async with guard:
                    pass

            return await _time_of_each(enter_and_leave)

    return asyncio.run(run())


def _alone_with_redis_py(url: str) -> float:
    async def run() -> float:
        async with redis.asyncio.Redis.from_url(url) as client:

            async def enter_and_leave() -> None:
                async with client.lock("alone", timeout=_LEASE):
                    pass

            return await _time_of_each(enter_and_leave)

    return asyncio.run(run())


def _ping(url: str) -> float:
    async def run() -> float:
        async with redis.asyncio.Redis.from_url(url) as client:
            return await _time_of_each(client.ping)

    return asyncio.run(run())


async def _pass_around(lock: Any) -> float:
    """Have tasks pass a lock around for a while: the microseconds from one to another one."""
    passed = 0
    last = -1
    end = time.perf_counter() + _SECONDS

    async def work(number: int) -> None:
        nonlocal passed, last
        while time.perf_counter() < end:
            async with lock():
                passed += number != last
                last = number

    began = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(_TASKS)))
    return (time.perf_counter() - began) / passed * 1e6


def _hand_over(url: str) -> float:
    async def run() -> float:
        async with AsyncGuard(f"{url}?lease={_LEASE}", namespace="handed") as ag:
            guard = ag.guard("work")
            return await _pass_around(lambda: guard)

    return asyncio.run(run())


def _hand_over_with_redis_py(url: str) -> float:
    async def run() -> float:
        async with redis.asyncio.Redis.from_url(url) as client:
            return await _pass_around(lambda: client.lock("handed", timeout=_LEASE))

    return asyncio.run(run())


def _round_trips(url: str) -> float:
    """Count the scripts that the server runs for one enter and leave."""

    def calls() -> int:
        return sum(stats["calls"] for name, stats in server.info("commandstats").items() if "evalsha" in name)

    with connect(url) as server:
        before = calls()
        _alone(url)
        return (calls() - before) / (_ALONE + 1)
