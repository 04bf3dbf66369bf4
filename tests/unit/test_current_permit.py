"""Which permit is the current one."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard, Permit, current_permit

if TYPE_CHECKING:
    from asyncguard import Guard


def found() -> Permit | None:
    try:
        return current_permit()
    except LookupError:
        return None


@pytest.fixture
async def guard(hub: AsyncGuard) -> Guard:
    return hub.guard("report")


async def test_there_is_none_outside_of_guarded_work(guard: Guard) -> None:
    with pytest.raises(LookupError, match="current_permit"):
        current_permit()
    async with guard:
        pass
    assert found() is None


async def test_the_innermost_block_is_the_current_one(guard: Guard, hub: AsyncGuard) -> None:
    async with guard as outer:
        async with hub.guard("other") as inner:
            assert current_permit() is inner
        assert current_permit() is outer


async def test_a_child_task_has_none_of_its_own_unless_it_takes_one(guard: Guard, hub: AsyncGuard) -> None:
    # A child may outlive the block, and its parent may be in another one by then.
    async def child() -> list[Permit | None]:
        before = found()
        async with hub.guard("other") as mine:
            inside = found()
        assert inside is mine
        return [before, found()]

    async with guard as permit:
        assert await asyncio.create_task(child()) == [None, None]
        assert current_permit() is permit


async def test_a_child_started_before_the_block_does_not_see_its_permit(guard: Guard) -> None:
    begun = asyncio.Event()

    async def child() -> Permit | None:
        await begun.wait()
        return found()

    async with guard:
        pass  # this task has been in a block before
    task = asyncio.create_task(child())
    async with guard:
        begun.set()
        assert await task is None, "the child runs under no permit"


async def test_a_child_started_in_one_block_does_not_see_the_next(guard: Guard) -> None:
    begun = asyncio.Event()

    async def child() -> Permit | None:
        await begun.wait()
        return found()

    async with guard:
        task = asyncio.create_task(child())
    async with guard:
        begun.set()
        assert await task is None, "the block that it was started under has ended"


async def test_siblings_do_not_see_each_other(guard: Guard, hub: AsyncGuard) -> None:
    other = hub.guard("other")
    seen: dict[str, str] = {}

    async def work(which: Guard) -> None:
        async with which:
            await asyncio.sleep(1)
            seen[which.name] = current_permit().guard

    await asyncio.gather(work(guard), work(other))
    assert seen == {"report": "report", "other": "other"}


async def test_a_thread_that_the_work_starts_sees_none(guard: Guard) -> None:
    async with guard:
        assert await asyncio.to_thread(found) is None


async def test_a_thread_of_its_own_sees_none() -> None:
    ag = AsyncGuard()
    seen: list[Permit | None] = []
    async with ag.guard("report"):
        thread = threading.Thread(target=lambda: seen.append(found()))
        thread.start()
        await asyncio.to_thread(thread.join)
    assert seen == [None]


async def test_one_that_was_released_by_hand_is_not_current(guard: Guard, hub: AsyncGuard) -> None:
    async with hub.guard("outer") as outer, guard as permit:
        await permit.release()
        assert current_permit() is outer


async def test_it_costs_nothing_to_have_been_in_many_blocks(guard: Guard) -> None:
    for _ in range(1000):
        async with guard:
            pass
    async with guard as permit:
        assert permit.outer is None
