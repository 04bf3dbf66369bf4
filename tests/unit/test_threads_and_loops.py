"""One guard under several event loops and threads at once."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, Rate, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from asyncguard import Guard, Permit


@pytest.fixture
def anyio_backend() -> str:
    """Have time be real here."""
    return "asyncio"


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    """Have the interpreter switch threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def now(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Run a coroutine that waits for nothing, without a loop."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


class Watch:
    """Counts who is inside, under a lock of its own, and keeps the tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._inside = 0
        self.tokens: list[int] = []
        self.most = 0

    def enter(self, permit: Permit) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
            self.tokens.append(permit.token)

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1


def run_all(*functions: Callable[[], object]) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    if errors:
        raise errors[0]
    assert not [thread for thread in threads if thread.is_alive()], "somebody is stuck"


def in_a_loop(guard: Guard, watch: Watch, end: float, *, tasks: int, ask: dict[str, Any]) -> None:
    async def work() -> None:
        while time.monotonic() < end:
            if ask:
                async with guard.permit(**ask) as permit:
                    watch.enter(permit)
                    await asyncio.sleep(0)
                    watch.leave()
            else:
                async with guard as permit:
                    watch.enter(permit)
                    watch.leave()

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(tasks)))

    asyncio.run(main())


def in_a_thread(guard: Guard, watch: Watch, end: float) -> None:
    while time.monotonic() < end:
        try:
            permit = guard.acquire_nowait()
        except WouldBlock:
            continue
        watch.enter(permit)
        watch.leave()
        now(permit.release())


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("tasks", [1, 5])
def test_loops_and_threads_never_exceed_the_limit_and_nobody_is_stuck(limit: int, tasks: int) -> None:
    guard = AsyncGuard().guard("report", limit=limit, max_waiting=None, max_wait=None)
    watch = Watch(limit)
    end = time.monotonic() + 0.7
    run_all(
        lambda: in_a_loop(guard, watch, end, tasks=tasks, ask={}),
        lambda: in_a_loop(guard, watch, end, tasks=tasks, ask={"priority": 0}),
        lambda: in_a_thread(guard, watch, end),
        lambda: in_a_thread(guard, watch, end),
    )
    assert watch.most <= limit
    assert len(watch.tokens) == len(set(watch.tokens))
    if limit == 1:
        assert watch.tokens == sorted(watch.tokens)
    picture = asyncio.run(guard.inspect())
    assert (picture.in_use, picture.waiting) == (0, 0)
    assert picture.granted == len(watch.tokens)


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("tasks", [1, 2])
def test_loops_alone_hand_a_permit_to_each_other(tasks: int) -> None:
    guard = AsyncGuard().guard("report", max_waiting=None, max_wait=None)
    watch = Watch(1)
    end = time.monotonic() + 0.7
    run_all(*[lambda: in_a_loop(guard, watch, end, tasks=tasks, ask={})] * 3)
    assert watch.most == 1
    assert watch.tokens == sorted(set(watch.tokens))


@pytest.mark.usefixtures("_frequent_switches")
def test_exclusive_and_shared_work_mix_over_threads() -> None:
    guard = AsyncGuard().guard("report", limit=3, max_waiting=None, max_wait=None)
    alone = threading.Lock()
    end = time.monotonic() + 0.5
    watch = Watch(3)

    def writers() -> None:
        async def main() -> None:
            while time.monotonic() < end:
                async with guard.permit(permits="all") as permit:
                    assert alone.acquire(blocking=False)
                    watch.enter(permit)
                    assert watch._inside == 1
                    watch.leave()
                    alone.release()

        asyncio.run(main())

    run_all(
        writers, lambda: in_a_loop(guard, watch, end, tasks=4, ask={}), lambda: in_a_thread(guard, watch, end)
    )
    assert watch.most <= 3


@pytest.mark.usefixtures("_frequent_switches")
def test_cancelled_waiters_in_several_loops_leave_nothing_behind() -> None:
    guard = AsyncGuard().guard("report", max_waiting=None, max_wait=None)
    watch = Watch(1)
    end = time.monotonic() + 0.7

    def impatient() -> None:
        async def work() -> None:
            while time.monotonic() < end:
                task = asyncio.create_task(guard.acquire())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if task.cancel():
                    await asyncio.wait([task])
                if not task.cancelled():
                    await (await task).release()

        async def main() -> None:
            await asyncio.gather(work(), work())

        asyncio.run(main())

    run_all(impatient, impatient, lambda: in_a_loop(guard, watch, end, tasks=2, ask={}))
    picture = asyncio.run(guard.inspect())
    assert (picture.in_use, picture.waiting) == (0, 0)


def test_looking_at_a_guard_does_not_disturb_those_who_use_it() -> None:
    guard = AsyncGuard().guard("report", limit=2, max_waiting=None, max_wait=None)
    watch = Watch(2)
    end = time.monotonic() + 0.5

    def look() -> None:
        async def main() -> None:
            while time.monotonic() < end:
                picture = await guard.inspect()
                assert picture.in_use <= 2

        asyncio.run(main())

    run_all(
        look,
        look,
        lambda: in_a_loop(guard, watch, end, tasks=3, ask={}),
        lambda: in_a_thread(guard, watch, end),
    )


def test_a_guard_at_module_level_serves_one_loop_after_the_other() -> None:
    guard = AsyncGuard().guard("report")

    @guard(key="account")
    async def build(account: int) -> int:
        await asyncio.sleep(0)
        return account

    async def main() -> list[int]:
        async with guard:
            pass
        return await asyncio.gather(*(build(number % 2) for number in range(4)))

    for _ in range(50):
        assert asyncio.run(main()) == [0, 1, 0, 1]
    picture = asyncio.run(guard.inspect())
    assert (picture.in_use, picture.waiting, picture.granted) == (0, 0, 250)


def test_many_loops_in_a_row_leave_nothing_behind() -> None:
    ag = AsyncGuard()
    guard = ag.guard("report", max_wait=5)

    async def main() -> None:
        async def work() -> None:
            async with guard:
                await asyncio.sleep(0)

        await asyncio.gather(work(), work())

    for _ in range(50):
        asyncio.run(main())
    assert len(ag.clients) <= 2


def test_a_permit_is_released_from_another_loop() -> None:
    guard = AsyncGuard().guard("report")
    permit = asyncio.run(guard.acquire())
    asyncio.run(permit.release())
    assert asyncio.run(guard.inspect()).in_use == 0


def test_a_waiter_in_another_loop_is_woken() -> None:
    guard = AsyncGuard().guard("report", max_wait=None)
    permit = guard.acquire_nowait()
    waits = threading.Event()

    def wait() -> None:
        async def main() -> None:
            asyncio.get_running_loop().call_soon(waits.set)
            async with guard:
                pass

        asyncio.run(main())

    def let_in() -> None:
        waits.wait(5)
        now(permit.release())

    run_all(wait, let_in)


def test_a_loop_that_moved_to_another_thread_is_woken() -> None:
    # A thread that once ran this loop now runs another one: the wake-up must not rely on the thread.
    ag = AsyncGuard()
    guard = ag.guard("report", max_wait=None)
    moved = asyncio.new_event_loop()
    waits = threading.Event()

    async def contend() -> None:
        async def work() -> None:
            async with guard:
                await asyncio.sleep(0)

        await asyncio.gather(work(), work())

    async def wait() -> None:
        moved.call_soon(waits.set)
        async with guard:
            pass

    moved.run_until_complete(contend())
    permit = guard.acquire_nowait()

    def go_on() -> None:
        moved.run_until_complete(wait())

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    waits.wait(5)
    time.sleep(0.01)  # the loop goes to sleep in its selector
    asyncio.run(permit.release())
    thread.join(3)
    assert not thread.is_alive(), "its wake-up was lost"
    moved.close()


def test_a_permit_of_a_guard_with_max_hold_can_be_taken_without_a_loop() -> None:
    guard = AsyncGuard().guard("report", max_hold=60)
    try:
        permit = guard.acquire_nowait()
    except RuntimeError:
        pass
    else:
        now(permit.release())
    assert asyncio.run(guard.inspect()).in_use == 0, "whatever comes of it, nothing stays held"


def test_waiting_without_a_loop_fails_and_leaves_nothing_behind() -> None:
    guard = AsyncGuard().guard("report")
    permit = guard.acquire_nowait()
    for attempt in (guard.acquire(), guard.permit().__aenter__(), guard.__aenter__()):
        with pytest.raises(RuntimeError, match="event loop"):
            attempt.send(None)
    assert asyncio.run(guard.inspect()).waiting == 0
    now(permit.release())
    assert asyncio.run(guard.inspect()).in_use == 0


def test_a_pace_goes_on_when_the_loop_whose_turn_it_was_is_closed() -> None:
    guard = AsyncGuard().guard("report", rate=Rate(1, per=0.3), max_wait=5)

    async def enter() -> float:
        async with guard as permit:
            return permit.waited

    async def give_up() -> None:
        task = asyncio.create_task(enter())
        await asyncio.sleep(0.05)
        gave_up.wait(5)
        task.cancel()
        await asyncio.wait([task])

    gave_up = threading.Event()
    asyncio.run(enter())
    other = threading.Thread(target=lambda: asyncio.run(give_up()), daemon=True)
    other.start()
    time.sleep(0.03)

    async def wait() -> float:
        asyncio.get_running_loop().call_later(0.05, gave_up.set)
        return await enter()

    start = time.monotonic()
    asyncio.run(wait())
    assert time.monotonic() - start < 2, "nobody advanced the line when its time came"
    other.join(5)
