"""Faults that reviewers of the whole found: each test was red before its mend."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, Draining, Rate, WouldDeadlock
from asyncguard.backends.memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncguard import Guard


async def enter(guard: Guard, **ask: Any) -> float:
    async with guard.permit(**ask) as permit:
        await asyncio.sleep(0)
        return permit.waited


async def test_who_waited_before_a_pace_was_set_is_woken_by_it(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_wait=5)
    permits = [await guard.acquire(key=key) for key in ("a", "b")]
    tasks = [asyncio.create_task(enter(guard, key=key)) for key in ("a", "b") for _ in range(3)]
    await asyncio.sleep(0.1)
    guard.replace(rate=Rate(1, per=0.2))
    for permit in permits:
        await permit.release()
    waits = await asyncio.gather(*tasks)
    assert max(waits) == pytest.approx(0.5, abs=0.02)


def test_a_pace_that_opens_just_before_its_alarm_is_set_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = MemoryBackend._set_alarms

    def late(self: MemoryBackend, partition: Any) -> None:
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass  # the interpreter is busy elsewhere
        original(self, partition)

    monkeypatch.setattr(MemoryBackend, "_set_alarms", late)

    async def main() -> None:
        guard = AsyncGuard().guard("report", max_wait=2, max_waiting=None, rate=Rate(2000, per=1))
        await asyncio.gather(*(enter(guard) for _ in range(50)))

    asyncio.run(main())


async def test_a_guard_that_waited_in_an_earlier_life_is_drained_in_this_one(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    for _ in range(2):
        async with hub:
            permit = await guard.acquire()
            waiting = asyncio.create_task(enter(guard))
            await asyncio.sleep(0.1)
        with pytest.raises(Draining):
            await asyncio.wait_for(waiting, 1)
        await permit.release()


async def test_drain_finds_who_waits_in_a_row_that_was_empty_for_a_while(hub: AsyncGuard) -> None:
    guard, other = hub.guard("report"), hub.guard("other", max_wait=5)
    for waited in (guard, other):
        async with waited:
            task = asyncio.create_task(enter(waited))
            await asyncio.sleep(0.1)
        await task
    async with guard:
        waiting = asyncio.create_task(enter(guard))
        await asyncio.sleep(0.1)
        hub.drain()
        with pytest.raises(Draining):
            await asyncio.wait_for(waiting, 1)
    await hub.aclose()


def test_closing_on_one_loop_leaves_the_threads_of_others_alone() -> None:
    ag = AsyncGuard()

    @ag.guard("report", limit=50, max_waiting=None)
    def work() -> int:
        return 1

    async def close() -> None:
        async with ag:
            await work()

    async def go_on(errors: list[BaseException]) -> None:
        for _ in range(300):
            try:
                await work()
            except RuntimeError as error:
                errors.append(error)

    errors: list[BaseException] = []
    other = threading.Thread(target=lambda: asyncio.run(go_on(errors)))
    other.start()
    while other.is_alive():
        asyncio.run(close())
    other.join()
    assert errors == []


async def test_a_pace_or_a_pause_is_no_deadlock(hub: AsyncGuard) -> None:
    paced = hub.guard("paced", limit=5, rate=Rate(10, per=1))
    async with paced, paced.permit() as inner:
        assert inner.waited == pytest.approx(0.1, abs=0.01)
    paused = hub.guard("paused", limit=5)
    async with paused:
        await paused.pause()
        asyncio.get_running_loop().call_later(1, lambda: asyncio.ensure_future(paused.resume()))
        async with paused.permit() as inner:
            assert inner.waited == pytest.approx(1, abs=0.01)


async def test_one_behind_a_ticket_that_needs_this_tasks_permit_is_a_deadlock(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    async with guard:
        large = asyncio.create_task(enter(guard, permits=2))
        await asyncio.sleep(0.1)
        with pytest.raises(WouldDeadlock):
            await enter(guard)
    await large


@pytest.mark.filterwarnings("ignore:a permit of guard:ResourceWarning")
def test_no_guard_stays_open_beside_a_drain() -> None:
    for _ in range(50):
        ag = AsyncGuard()
        guards = [ag.guard(f"guard {number}") for number in range(20)]

        def use(guards: list[Guard] = guards) -> None:
            with contextlib.suppress(Draining):
                for guard in guards:
                    guard.acquire_nowait()

        thread = threading.Thread(target=use)
        thread.start()
        ag.drain()
        thread.join()
        assert [guard for guard in guards if guard.bound_to is not None] == []


@pytest.mark.parametrize("share", [1e-310, 1e-4, 1e6])
async def test_a_share_that_arithmetic_can_not_bear_is_refused(hub: AsyncGuard, share: float) -> None:
    with pytest.raises(ValueError, match=r"^share: expected 0.001 to 1000, got"):
        hub.guard("report", order="fair").permit(share=share)


@pytest.mark.parametrize("option", ["max_wait", "max_hold"])
@pytest.mark.parametrize("seconds", [1e300, 10**400])
async def test_seconds_beyond_a_lifetime_are_refused_by_name(
    hub: AsyncGuard, option: Any, seconds: Any
) -> None:
    with pytest.raises(ValueError, match=f"^{option}: expected at most 1,000,000,000"):
        hub.guard("report", **{option: seconds})


async def test_a_call_that_asks_before_the_first_use_tells_its_owner(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard.permit(label="first"):
        assert (await guard.inspect()).holders[0].owner


async def test_a_coroutine_function_that_returns_a_generator_is_refused(hub: AsyncGuard) -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1

    async def make() -> object:
        return rows()

    build = hub.guard("report")(make)

    with pytest.raises(TypeError, match="makes a generator"):
        await build()
