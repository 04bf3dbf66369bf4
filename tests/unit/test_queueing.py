"""Who comes in when: arrival, head starts, newest first, and several permits at once."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import ALL, AsyncGuard, QueueFull

if TYPE_CHECKING:
    from asyncguard import Guard


class Line:
    """Tasks that wait for a guard, and the order in which they came in."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._tasks: list[asyncio.Task[None]] = []
        self.order: list[Any] = []

    async def _work(self, name: Any, hold: float, ask: dict[str, Any]) -> None:
        async with self._guard.permit(**ask):
            self.order.append(name)
            await asyncio.sleep(hold)

    async def join(self, name: Any, *, hold: float = 1, after: float = 0, **ask: Any) -> asyncio.Task[None]:
        await asyncio.sleep(after)
        task = asyncio.create_task(self._work(name, hold, ask))
        self._tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def end(self) -> list[Any]:
        await asyncio.gather(*self._tasks)
        return self.order


async def test_ten_thousand_come_in_as_they_came(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", max_waiting=None, max_wait=None))
    for number in range(10_000):
        await line.join(number)
    assert await line.end() == list(range(10_000))


async def test_ten_thousand_of_whom_most_leave_come_in_as_they_came(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", max_waiting=None, max_wait=None))
    chance = random.Random(3)  # noqa: S311
    holder = await line.join("holder", hold=5)
    tasks = [await line.join(number, hold=0) for number in range(10_000)]
    leaving = chance.sample(range(10_000), 9_000)
    for number in leaving:
        tasks[number].cancel()
    await asyncio.gather(holder, *tasks, return_exceptions=True)
    assert line.order[1:] == sorted(set(range(10_000)) - set(leaving))


async def test_a_newcomer_does_not_overtake_one_who_was_woken_and_has_not_run(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    line = Line(guard)
    await line.join("first")
    await permit.release()
    await line.join("second")
    assert await line.end() == ["first", "second"]


async def test_a_holder_that_comes_again_goes_to_the_end_of_the_line(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    order: list[str] = []

    async def work(name: str) -> None:
        for _ in range(3):
            async with guard:
                order.append(name)
                await asyncio.sleep(1)

    await asyncio.gather(work("a"), work("b"))
    assert order == ["a", "b", "a", "b", "a", "b"]


async def test_a_head_start_overtakes_what_came_less_than_that_before(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", max_wait=None))
    await line.join("holder", hold=60)
    await line.join("early", after=1)
    await line.join("late", after=9)
    await line.join("with 8 s", after=1, priority=8)
    await line.join("with 20 s", priority=20)
    assert await line.end() == ["holder", "with 20 s", "early", "with 8 s", "late"]


async def test_head_starts_starve_nobody(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", max_wait=None, max_waiting=None))
    await line.join("holder")
    await line.join("patient")
    for _ in range(30):
        await line.join("hasty", after=1, priority=5)
    order = await line.end()
    assert order.index("patient") <= 7


async def test_head_starts_mix_with_none_after_the_line_was_empty(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", max_wait=None))
    await line.join("holder", hold=5)
    await line.join("a")
    await line.join("b", priority=1)
    await asyncio.sleep(20)
    await line.join("second holder", hold=5)
    await line.join("c")
    await line.join("d")
    await line.join("e", priority=1)
    assert await line.end() == ["holder", "b", "a", "second holder", "e", "c", "d"]


async def test_the_newest_comes_first(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", order="lifo", max_wait=None))
    await line.join("holder", hold=5)
    for number in range(4):
        await line.join(number)
    assert await line.end() == ["holder", 3, 2, 1, 0]


async def test_a_full_queue_of_the_newest_first_refuses_the_oldest(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", order="lifo", max_waiting=2, max_wait=None))
    await line.join("holder", hold=5)
    oldest = await line.join("oldest")
    await line.join("older")
    assert not oldest.done()
    await line.join("newest")
    with pytest.raises(QueueFull):
        await oldest
    line._tasks.remove(oldest)
    assert await line.end() == ["holder", "newest", "older"]


async def test_one_that_needs_several_permits_is_not_starved_by_those_that_need_one(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", limit=3, max_wait=None))
    for number in range(3):
        await line.join(number, hold=number + 1)
    await line.join("three", permits=3)
    for number in range(3, 9):
        await line.join(number, after=0.5)
    order = await line.end()
    assert order[3] == "three"
    assert order[4:] == list(range(3, 9))


async def test_small_ones_behind_a_large_one_come_in_with_what_is_left(hub: AsyncGuard) -> None:
    line = Line(hub.guard("report", limit=4, max_wait=None))
    await line.join("holder", hold=5, permits=3)
    await line.join("two", hold=9, permits=2)
    await line.join("one", hold=9)
    await line.join("other", hold=9)
    await asyncio.sleep(6)
    assert line.order == ["holder", "two", "one", "other"]
    await line.end()


async def test_readers_share_and_a_writer_has_it_alone(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=5, max_wait=None)
    line = Line(guard)
    for name in ("r1", "r2", "W1", "r3", "r4", "W2", "r5"):
        await line.join(name, hold=10, permits=ALL if name.startswith("W") else 1)
    seen = []
    for _ in range(5):
        await asyncio.sleep(5)
        seen.append((await guard.inspect()).in_use)
        await asyncio.sleep(5)
    assert seen == [2, 5, 2, 5, 1]
    await line.end()


async def test_a_picture_of_the_line_is_in_order_and_says_who_waits(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2, max_wait=None)
    line = Line(guard)
    await line.join("holder", hold=30, permits=2, label="monthly", tenant="t")
    await line.join("a", after=1, label="a")
    await line.join("b", after=1, label="b", permits=2)
    await line.join("c", after=1, label="c", priority=9)
    picture = await guard.inspect()
    assert [(w.label, w.position, w.permits) for w in picture.queue] == [
        ("c", 0, 1),
        ("a", 1, 1),
        ("b", 2, 2),
    ]
    assert [w.waited for w in picture.queue] == pytest.approx([0, 2, 1])
    assert (picture.in_use, picture.waiting, picture.limit, picture.keys) == (2, 3, 2, 1)
    (holder,) = picture.holders
    assert (holder.label, holder.tenant, holder.permits) == ("monthly", "t", 2)
    assert holder.held == pytest.approx(3)
    assert holder.since == pytest.approx(1_700_000_000 + asyncio.get_running_loop().time() - 3)
    assert len({picture.holders[0].id, *(w.id for w in picture.queue)}) == 4
    await line.end()


@pytest.mark.parametrize("order", ["fifo", "lifo", "fair"])
@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_the_limit_holds_and_no_permit_is_idle(
    hub: AsyncGuard, order: Any, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    guard = hub.guard("report", limit=4, order=order, max_waiting=None, max_wait=None)
    in_use = 0

    async def work() -> None:
        nonlocal in_use
        permits: Any = chance.choice([1, 1, 1, 2, 3, ALL])
        taken = 4 if permits == ALL else permits
        ask = {"permits": permits, "priority": chance.choice([0, 0, 3]), "tenant": chance.choice("abc")}
        async with guard.permit(**ask):
            in_use += taken
            try:
                assert in_use <= 4
                await asyncio.sleep(chance.random())
            finally:
                in_use -= taken

    async def live() -> None:
        await asyncio.sleep(chance.random() * 20)
        task = asyncio.create_task(work())
        await asyncio.wait([task], timeout=chance.choice([1, 5, 500]))
        if not task.done():
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None

    async def look() -> None:
        for _ in range(300):
            await asyncio.sleep(0.1)
            picture = await guard.inspect()
            assert picture.in_use <= 4
            if picture.queue:
                free = picture.limit - picture.in_use
                assert free < picture.queue[0].permits, "a permit is free that the first could take"

    looking = asyncio.create_task(look())
    await asyncio.gather(*(live() for _ in range(200)))
    await looking
