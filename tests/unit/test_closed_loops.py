"""Loops that are closed while their tickets wait or hold: the permits pass on."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from asyncguard import Guard

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def guard() -> Guard:
    return AsyncGuard().guard("report", max_waiting=None, max_wait=None)


def start_and_close(*coroutines: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Have tasks run until they wait, and close their loop under them."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(coroutine) for coroutine in coroutines]
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return tasks


async def hold(guard: Guard, **ask: Any) -> None:
    async with guard.permit(**ask):
        await asyncio.sleep(3600)


async def hold_by_block(guard: Guard) -> None:
    async with guard:
        await asyncio.sleep(3600)


async def use(guard: Guard, **ask: Any) -> bool:
    async with asyncio.timeout(2), guard.permit(**ask):
        return True


def test_a_permit_does_not_go_to_a_waiter_on_a_closed_loop(guard: Guard) -> None:
    permit = guard.acquire_nowait()
    tasks = start_and_close(hold(guard), hold_by_block(guard))
    asyncio.run(permit.release())
    assert asyncio.run(use(guard))
    del tasks


def test_a_permit_passes_over_thousands_of_waiters_on_a_closed_loop(guard: Guard) -> None:
    permit = guard.acquire_nowait()
    tasks = start_and_close(*(hold(guard) for _ in range(3000)))
    asyncio.run(permit.release())
    assert asyncio.run(use(guard))
    picture = asyncio.run(guard.inspect())
    assert (picture.in_use, picture.waiting) == (0, 0)
    del tasks


def test_it_passes_over_them_to_one_that_waits_on_a_loop_that_runs(guard: Guard) -> None:
    permit = guard.acquire_nowait()
    tasks = start_and_close(*(hold(guard) for _ in range(3)))

    async def main() -> None:
        waiting = asyncio.create_task(use(guard))
        await asyncio.sleep(0)
        await permit.release()
        assert await waiting

    asyncio.run(main())
    del tasks


@pytest.mark.parametrize("held_by", [hold, hold_by_block])
def test_a_permit_held_on_a_closed_loop_passes_on_when_its_task_is_gone(guard: Guard, held_by: Any) -> None:
    tasks = start_and_close(held_by(guard))
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    del tasks
    gc.collect()
    assert asyncio.run(use(guard))


def test_one_granted_and_not_run_before_its_loop_was_closed_passes_the_permit_on(guard: Guard) -> None:
    permit = guard.acquire_nowait()
    loop = asyncio.new_event_loop()
    task = loop.create_task(hold(guard))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(permit.release())
    loop.close()
    del task, loop
    gc.collect()
    assert asyncio.run(use(guard))


def test_a_permit_taken_by_hand_survives_its_loop(guard: Guard) -> None:
    permit = asyncio.run(guard.acquire())
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    asyncio.run(permit.release())


def test_one_that_overruns_on_a_closed_loop_harms_nobody() -> None:
    guard = AsyncGuard().guard("report", max_hold=0.01)
    permit = asyncio.run(guard.acquire())
    asyncio.run(asyncio.sleep(0.02))
    asyncio.run(permit.release())
    assert asyncio.run(use(guard))


def test_the_keys_of_a_closed_loop_are_forgotten(guard: Guard) -> None:
    tasks = start_and_close(*(hold(guard, key=number) for number in range(10)))
    del tasks
    gc.collect()
    assert asyncio.run(use(guard, key="other"))
    assert asyncio.run(guard.inspect()).keys <= 1
