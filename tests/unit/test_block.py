"""`async with guard` and `async with guard.permit()`."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import uuid
from typing import TYPE_CHECKING

import pytest

from asyncguard import ALL, AsyncGuard, Permit, WouldBlock, current_permit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncguard import Guard

BLUE = uuid.UUID("12345678-1234-5678-1234-567812345678")


class Colour(enum.Enum):
    RED = "red"
    SEVEN = 7
    BLUE = BLUE


async def work(guard: Guard, seconds: float = 1) -> float:
    async with guard:
        await asyncio.sleep(seconds)
        return asyncio.get_running_loop().time()


async def test_work_runs_one_at_a_time(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    start = asyncio.get_running_loop().time()
    ends = await asyncio.gather(*(work(guard) for _ in range(4)))
    assert [end - start for end in ends] == pytest.approx([1, 2, 3, 4])


async def test_as_many_run_at_once_as_the_limit_allows(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3)
    start = asyncio.get_running_loop().time()
    ends = await asyncio.gather(*(work(guard) for _ in range(7)))
    assert [end - start for end in ends] == pytest.approx([1, 1, 1, 2, 2, 2, 3])


async def test_a_block_gives_its_permit(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard as permit:
        assert isinstance(permit, Permit)
        assert permit is current_permit()
        assert (permit.guard, permit.key, permit.waited) == ("report", None, 0)
        assert not permit.lost
        await asyncio.sleep(2)
        assert permit.held == pytest.approx(2)
    await asyncio.sleep(5)
    assert permit.held == pytest.approx(2), "it ended with the block"


async def test_a_permit_knows_how_long_it_waited(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    holder = asyncio.create_task(work(guard, 7))
    await asyncio.sleep(2)
    async with guard as permit:
        assert permit.waited == pytest.approx(5)
    await holder


async def test_a_permit_was_never_held_for_less_than_no_time(hub: AsyncGuard) -> None:
    # Each grant has a microsecond to itself, so the second of two in one microsecond is dated ahead.
    guard = hub.guard("report")
    for _ in range(3):
        async with guard as permit:
            assert permit.held >= 0
    picture = await guard.inspect()
    assert picture.hold.p50 is not None
    assert picture.hold.p50 >= 0


async def test_tokens_grow_with_every_grant(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3, max_wait=None)
    tokens: list[int] = []

    async def note() -> None:
        async with guard as permit:
            tokens.append(permit.token)
            await asyncio.sleep(0)

    await asyncio.gather(*(note() for _ in range(100)))
    assert tokens == sorted(set(tokens))
    assert tokens[-1] < 2**53


async def test_tokens_grow_although_the_partition_was_deleted(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    last = 0
    for round_ in range(20):
        async with guard.permit(key="a") as permit:
            assert permit.token > last
            last = permit.token
        if round_ % 2:
            await asyncio.sleep(1)
        async with guard.permit(key=f"other {round_}"):
            pass


async def test_the_permit_passes_on_when_the_work_fails(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    with pytest.raises(ZeroDivisionError):
        async with guard:
            raise ZeroDivisionError
    async with guard.permit(timeout=0):
        pass


async def test_keys_do_not_wait_for_each_other(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with (
        guard,
        guard.permit(key="a", timeout=0) as a,
        guard.permit(key="b", timeout=0) as b,
    ):
        assert (a.key, b.key) == ("a", "b")
        assert (await guard.inspect()).in_use == 3
        assert (await guard.inspect("a")).in_use == 1
        assert (await guard.inspect("c")).in_use == 0


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("7", "7"),
        (7, "7"),
        (-1, "-1"),
        (BLUE, str(BLUE)),
        (Colour.RED, "red"),
        (Colour.SEVEN, "7"),
        (Colour.BLUE, str(BLUE)),
        ("ключ", "ключ"),
        (" a:b{c}\0% ", " a:b{c}\0% "),
    ],
)
async def test_a_key_is_compared_as_text(
    hub: AsyncGuard, key: str | int | uuid.UUID | Colour, text: str
) -> None:
    guard = hub.guard("report")
    async with guard.permit(key=key) as permit:
        assert permit.key == text
        assert (await guard.inspect(text)).in_use == 1
        with pytest.raises(WouldBlock):
            guard.acquire_nowait(key=text)


async def test_a_block_may_take_several_permits(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3)
    async with guard.permit(permits=2):
        assert (await guard.inspect()).in_use == 2
        async with guard:
            assert (await guard.inspect()).in_use == 3
    assert (await guard.inspect()).in_use == 0


async def test_all_permits_are_exclusive(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3)
    order: list[str] = []

    async def shared(name: str) -> None:
        async with guard:
            order.append(name)
            await asyncio.sleep(1)

    async def alone() -> None:
        async with guard.permit(permits=ALL):
            assert (await guard.inspect()).in_use == 3
            order.append("alone")
            await asyncio.sleep(1)
            order.append("done")

    async with asyncio.TaskGroup() as tasks:
        for step in (shared("a"), alone(), shared("b"), shared("c")):
            tasks.create_task(step)
    assert order == ["a", "alone", "done", "b", "c"]


async def test_a_block_is_entered_once(hub: AsyncGuard) -> None:
    block = hub.guard("report").permit()
    async with block:
        pass
    with pytest.raises(RuntimeError, match="entered before"):
        async with block:
            pass


async def test_the_inner_of_two_blocks_ends_first(hub: AsyncGuard) -> None:
    outer, inner = hub.guard("outer"), hub.guard("inner")
    async with outer as first:
        async with inner as second:
            assert current_permit() is second
        assert current_permit() is first
        assert (await inner.inspect()).in_use == 0


async def test_two_blocks_of_one_guard_nest(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    async with guard as first, guard as second:
        assert first.token < second.token
        assert (await guard.inspect()).in_use == 2


async def test_blocks_may_end_out_of_order(hub: AsyncGuard) -> None:
    left, right = hub.guard("left"), hub.guard("right")
    first = await left.__aenter__()
    second = await right.__aenter__()
    await left.__aexit__(None, None, None)
    assert (await left.inspect()).in_use == 0
    assert current_permit() is second
    assert first is not second
    await right.__aexit__(None, None, None)


async def test_a_block_of_a_key_in_a_generator_outlives_the_block_around_its_start(hub: AsyncGuard) -> None:
    guard = hub.guard("report")

    async def rows() -> AsyncIterator[Permit]:
        async with guard.permit(key="a") as permit:
            yield permit

    generator = rows()
    async with guard:
        permit = await anext(generator)
    assert (await guard.inspect("a")).in_use == 1, "the block of the key goes on"
    assert (await guard.inspect()).in_use == 1, "the block without a key has ended"
    assert current_permit() is permit
    await generator.aclose()  # type: ignore[attr-defined]


async def test_a_generator_closed_inside_another_block_ends_its_own_block(hub: AsyncGuard) -> None:
    guard = hub.guard("report")

    async def rows() -> AsyncIterator[int]:
        async with guard:
            yield 1

    generator = rows()
    await anext(generator)
    async with guard.permit(key="a") as permit:
        await generator.aclose()  # type: ignore[attr-defined]
        assert (await guard.inspect("a")).in_use == 1, "the work under the key goes on"
        assert current_permit() is permit
    assert (await guard.inspect()).in_use == 0


async def test_a_block_that_began_in_a_task_of_its_own_ends_in_this_one(hub: AsyncGuard) -> None:
    # asyncio.wait_for() starts a task before Python 3.12.
    guard = hub.guard("report")
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.create_task(stack.enter_async_context(guard))
        assert (await guard.inspect()).in_use == 1
    assert (await guard.inspect()).in_use == 0


async def test_two_blocks_that_began_in_tasks_of_their_own_both_end(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.create_task(stack.enter_async_context(guard))
        await asyncio.create_task(stack.enter_async_context(guard))
    assert (await guard.inspect()).in_use == 0


async def test_a_block_that_a_task_inherited_is_not_taken_for_its_own(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=2)

    async def child() -> None:
        async with guard as mine:
            assert (await guard.inspect()).in_use == 2
            assert current_permit() is mine

    async with guard as permit:
        await asyncio.create_task(child())
        assert current_permit() is permit
        assert [holder.token for holder in (await guard.inspect()).holders] == [permit.token]


async def test_a_permit_released_inside_its_block_stays_released(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard as permit:
        await permit.release()
        async with guard.permit(timeout=0) as other:
            pass
    assert other.token > permit.token
    assert (await guard.inspect()).granted == 2
