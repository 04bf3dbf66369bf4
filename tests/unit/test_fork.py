"""A forked child starts anew, and isn't deadlocked by what its parent was doing."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import traceback
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard, WouldBlock, current_permit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asyncguard import Guard

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.timeout(20),
]


@pytest.fixture(autouse=True)
def _no_blocking_calls() -> None:
    """Have the parent wait for its child, on a loop too."""


@pytest.fixture
def ag() -> Iterator[AsyncGuard]:
    ag = AsyncGuard()
    yield ag
    for guard in ag._guards.values():
        assert asyncio.run(guard.inspect()).in_use == 0


def in_a_child(function: Callable[[], None]) -> None:
    """Run a function in a forked child, and fail with what it wrote if it does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            threading.Timer(8, os._exit, [2]).start()
            function()
            status = 0
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as output:
        told = output.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code == 0, told or f"the child was stuck ({code})"


async def use(guard: Guard) -> None:
    async with guard:
        picture = await guard.inspect()
        assert picture.in_use == 1
        assert picture.holders[0].owner.endswith(f":{os.getpid()}")


def test_what_the_parent_holds_the_child_does_not(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_wait=1)
    asyncio.run(use(guard))
    permit = guard.acquire_nowait()
    in_a_child(lambda: asyncio.run(use(guard)))
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    asyncio.run(permit.release())


def test_a_guard_that_was_not_used_before_the_fork_works(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_wait=1)
    in_a_child(lambda: asyncio.run(use(guard)))


def test_what_the_child_takes_and_frees_the_parent_does_not_see(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_wait=1)
    permit = guard.acquire_nowait()

    def child() -> None:
        asyncio.run(permit.release())
        mine = guard.acquire_nowait()
        assert mine.token > permit.token

    in_a_child(child)
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    asyncio.run(permit.release())


def test_a_guarded_def_runs_in_the_child_though_the_parents_threads_did_not_come_along(
    ag: AsyncGuard,
) -> None:
    guard = ag.guard("report", max_wait=1)

    @guard
    def work() -> int:
        return os.getpid()

    def run() -> None:
        assert asyncio.run(work()) == os.getpid()

    run()
    in_a_child(run)


@pytest.mark.parametrize("lock", ["hub", "backend"])
def test_a_lock_that_a_thread_held_at_the_fork_does_not_stop_the_child(ag: AsyncGuard, lock: str) -> None:
    guard = ag.guard("report", max_wait=1)
    asyncio.run(use(guard))
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with ag._lock if lock == "hub" else ag.open()._lock:  # type: ignore[attr-defined]
            taken.set()
            done.wait(15)

    thread = threading.Thread(target=hold)
    held = ag.open() if lock == "backend" else None
    thread.start()
    taken.wait()

    def child() -> None:
        asyncio.run(use(guard))
        asyncio.run(use(ag.guard("other")))

    try:
        in_a_child(child)
    finally:
        done.set()
        thread.join()
    del held


def test_a_child_forked_while_a_loop_runs_and_tasks_wait_starts_anew(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_wait=5)

    async def main() -> None:
        async with guard:
            waiting = asyncio.create_task(use(guard))
            await asyncio.sleep(0)
            in_a_child(lambda: _in_a_fresh_thread(lambda: asyncio.run(use(guard))))
        await waiting

    asyncio.run(main())


def _in_a_fresh_thread(function: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_the_blocking_form_waits_on_a_loop_of_the_childs_own(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_wait=5)

    def use() -> None:
        _in_a_fresh_thread(lambda: take(guard))  # nothing of the parent's is held here
        take(guard)
        with guard.blocking():
            thread = threading.Thread(target=take, args=(guard,))
            thread.start()
            while not asyncio.run(guard.inspect()).waiting:
                pass
        thread.join()

    use()  # so that the parent has a loop
    with guard.blocking() as permit:
        in_a_child(use)
        assert current_permit() is permit
        with pytest.raises(WouldBlock):
            guard.acquire_nowait()
    gc.collect()
    use()


def test_a_child_that_leaves_its_parents_block_takes_nothing_from_it(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_wait=1)
    block = guard.blocking()
    with block:

        def leave() -> None:
            with pytest.raises(LookupError):
                current_permit()
            block.__exit__(None, None, None)
            take(guard)

        in_a_child(leave)
        with pytest.raises(WouldBlock):
            guard.acquire_nowait()


def take(guard: Guard) -> None:
    with guard.blocking():
        assert asyncio.run(guard.inspect()).in_use == 1
