"""The blocking form: the same guard for threads, in one queue with tasks."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import pytest

from asyncguard import (
    ALL,
    AsyncGuard,
    Draining,
    Event,
    Evicted,
    HoldExceeded,
    Permit,
    PermitLost,
    QueueFull,
    Refused,
    TooLarge,
    WaitTimeout,
    WouldBlock,
    WouldDeadlock,
    current_permit,
)
from asyncguard.blocking import _Wait
from asyncguard.permit import scope_var
from asyncguard.testing import ManualClock, force_full, force_lost, fresh

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from asyncguard import Guard, Snapshot

NAME = "asyncguard: blocking"
"""Of the threads with the loops on which others wait."""


@pytest.fixture(params=["memory", "sqlite"])
def ag(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AsyncGuard]:
    ag = AsyncGuard("memory:" if request.param == "memory" else f"sqlite://{tmp_path}/guards.db")
    yield ag
    for guard in ag._guards.values():
        picture = look(guard)
        assert picture.holders == (), "permits are still held"
        assert picture.queue == (), "tickets still wait"
    asyncio.run(ag.aclose())


@pytest.fixture
def guard(ag: AsyncGuard) -> Guard:
    return ag.guard("report")


@pytest.fixture(autouse=True)
def _no_loop_is_left() -> Iterator[None]:
    """See that the loops of the blocking form end with their AsyncGuards."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        if thread.name == NAME:
            thread.join(10)
            assert not thread.is_alive(), "the loop runs on"


def look(guard: Guard) -> Snapshot:
    return asyncio.run(guard.inspect())


def until(condition: Callable[[], object]) -> None:
    """Look again and again, as threads that wait give no other sign; the test's time limit ends it."""
    while not condition():
        time.sleep(0.001)


class Thread(threading.Thread):
    """Runs a function, and says what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - told by `end`
            self._error = error

    def end(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it is stuck"
        if self._error is not None:
            raise self._error
        return self._result


def waiting(guard: Guard, work: Callable[[], object]) -> Thread:
    """Start a thread, and return once it waits at the guard."""
    before = look(guard).waiting
    thread = Thread(work)
    until(lambda: look(guard).waiting > before or not thread.is_alive())
    return thread


def take(guard: Guard, **ask: Any) -> None:
    with guard.blocking(**ask):
        pass


# --- the block -------------------------------------------------------------------------------------


def test_a_block_has_a_permit_and_passes_it_on(guard: Guard) -> None:
    with guard.blocking(key="alice", label="the yearly one") as permit:
        assert (permit.guard, permit.key, permit.waited >= 0) == ("report", "alice", True)
        (holder,) = look(guard).holders
        assert (holder.label, holder.token) == ("the yearly one", permit.token)
    assert look(guard).in_use == 0


def test_where_a_permit_is_free_no_loop_is_needed() -> None:
    guard = AsyncGuard().guard("report")
    take(guard)
    assert NAME not in [thread.name for thread in threading.enumerate()]


def test_the_permit_is_current_in_the_block_and_in_no_other_thread(guard: Guard, ag: AsyncGuard) -> None:
    def found() -> Permit | None:
        with contextlib.suppress(LookupError):
            return current_permit()
        return None

    with guard.blocking() as outer:
        with ag.guard("other").blocking() as inner:
            assert current_permit() is inner
        assert current_permit() is outer
        context = contextvars.copy_context()
        assert Thread(lambda: context.run(found)).end() is None
    assert found() is None


def test_the_context_is_as_before_when_a_block_has_ended(guard: Guard) -> None:
    async def main() -> None:
        async with guard.permit(key="outer"):
            context = contextvars.copy_context()
            await asyncio.get_running_loop().run_in_executor(None, lambda: context.run(take, guard))
            assert context[scope_var] is scope_var.get(), "what copies it back leaves the task its block"

    asyncio.run(main())


def test_threads_come_in_one_at_a_time_and_in_order(guard: Guard) -> None:
    came: list[int] = []

    def work(number: int) -> None:
        with guard.blocking():
            came.append(number)

    with guard.blocking():
        threads = [waiting(guard, functools.partial(work, number)) for number in range(5)]
        assert came == []
    for thread in threads:
        thread.end()
    assert came == [0, 1, 2, 3, 4]


def test_threads_and_tasks_are_in_one_queue(guard: Guard) -> None:
    came: list[str] = []

    def thread(name: str) -> None:
        with guard.blocking():
            came.append(name)

    async def task(name: str) -> None:
        async with guard:
            came.append(name)

    async def main() -> None:
        async def begun(what: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            before = (await guard.inspect()).waiting
            task = asyncio.create_task(what)
            while (await guard.inspect()).waiting == before:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            return task

        async with guard:
            tasks = [
                await begun(asyncio.to_thread(thread, "thread 1")),
                await begun(task("task 1")),
                await begun(task("task 2")),
                await begun(asyncio.to_thread(thread, "thread 2")),
                await begun(task("task 3")),
            ]
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert came == ["thread 1", "task 1", "task 2", "thread 2", "task 3"]


def test_one_that_comes_does_not_overtake_who_waits(ag: AsyncGuard) -> None:
    guard = ag.guard("report", limit=2)
    with guard.blocking():
        first = waiting(guard, lambda: take(guard, permits=2))
        with pytest.raises(WaitTimeout):
            Thread(refused(guard, timeout=0)).end()
    first.end()


def test_another_loops_task_is_woken_by_a_thread(guard: Guard) -> None:
    async def main() -> None:
        async with guard:
            pass

    with guard.blocking():
        thread = waiting(guard, lambda: asyncio.run(main()))
    thread.end()


@pytest.mark.usefixtures("_no_loop_is_left")
@pytest.mark.parametrize("limit", [1, 3])
def test_threads_and_loops_never_exceed_the_limit_and_nobody_is_stuck(limit: int) -> None:
    guard = AsyncGuard().guard("report", limit=limit, max_waiting=None, max_wait=None)
    lock = threading.Lock()
    inside = most = 0
    end = time.monotonic() + 0.7
    interval = sys.getswitchinterval()

    def enter() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)

    def leave() -> None:
        nonlocal inside
        with lock:
            inside -= 1

    def in_a_thread(**ask: Any) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(Refused), guard.blocking(**ask):
                enter()
                leave()

    async def work() -> None:
        while time.monotonic() < end:
            async with guard:
                enter()
                await asyncio.sleep(0)
                leave()

    async def main() -> None:
        await asyncio.gather(work(), work(), work())

    sys.setswitchinterval(1e-6)
    try:
        threads = [Thread(in_a_thread) for _ in range(3)]
        threads += [Thread(lambda: in_a_thread(timeout=0.001)), Thread(lambda: asyncio.run(main()))]
        for thread in threads:
            thread.end()
    finally:
        sys.setswitchinterval(interval)
    assert most <= limit
    assert (look(guard).in_use, look(guard).waiting) == (0, 0)


# --- how it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_whatever_ends_the_block_the_permit_passes_on(guard: Guard, error: type[BaseException]) -> None:
    with pytest.raises(error), guard.blocking():
        raise error
    take(guard, timeout=0)


def test_it_can_be_on_an_exit_stack(guard: Guard, ag: AsyncGuard) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(guard.blocking(key=1))
        second = stack.enter_context(ag.guard("other").blocking())
        assert (first.key, current_permit()) == ("1", second)
    assert look(guard).in_use == 0


@pytest.mark.parametrize("end", ["closed", "dropped"])
def test_a_generator_that_is_left_within_a_block_passes_the_permit_on(guard: Guard, end: str) -> None:
    def pages() -> Iterator[int]:
        with guard.blocking():
            yield 1
            yield 2

    generator = pages()
    assert next(generator) == 1
    if end == "closed":
        generator.close()  # type: ignore[attr-defined]
    del generator
    gc.collect()
    take(guard, timeout=5)
    with pytest.raises(LookupError):
        current_permit()


def test_a_block_that_was_never_entered_is_nothing(guard: Guard) -> None:
    block = guard.blocking()
    with pytest.raises(RuntimeError, match="was not entered"):
        block.__exit__(None, None, None)
    del block
    gc.collect()
    take(guard)


def test_a_block_whose_end_was_interrupted_passes_the_permit_on(guard: Guard) -> None:
    block = guard.blocking()
    block.__enter__()  # noqa: PLC2801
    assert look(guard).in_use == 1
    del block
    gc.collect()
    take(guard, timeout=5)


def test_each_block_is_entered_once(guard: Guard) -> None:
    block = guard.blocking()
    with block, pytest.raises(RuntimeError, match=r"call guard.blocking\(\) for each"), block:
        pass
    with pytest.raises(RuntimeError, match="entered before"), block:
        pass


def test_one_that_was_refused_may_be_tried_again(guard: Guard) -> None:
    block = guard.blocking(timeout=0)
    with guard.blocking(), pytest.raises(WouldDeadlock), block:
        pass
    with block:
        assert look(guard).in_use == 1


# --- refusals --------------------------------------------------------------------------------------


def refused(guard: Guard, **ask: Any) -> Callable[[], None]:
    return lambda: take(guard, **ask)


def test_refusals_are_those_of_everybody(ag: AsyncGuard) -> None:
    guard = ag.guard("report", limit=2, max_waiting=1, max_wait=20)
    with guard.blocking(permits=2):
        first = waiting(guard, refused(guard))
        with pytest.raises(QueueFull, match="max_waiting=1"):
            Thread(refused(guard)).end()
    first.end()
    with guard.blocking(permits=ALL), pytest.raises(WaitTimeout, match=r"0\.02 s"):
        Thread(refused(guard, timeout=0.02)).end()
    asyncio.run(guard.set_limit(1))
    with pytest.raises(TooLarge):
        take(guard, permits=2)
    with pytest.raises(ValueError, match="at most the guard's limit"):
        guard.blocking(permits=3)
    with pytest.raises(TypeError, match="unexpected argument 'timeuot'"):
        guard.blocking(timeuot=3)  # type: ignore[call-overload]


def test_one_that_waits_may_be_evicted(guard: Guard) -> None:
    with guard.blocking():
        thread = waiting(guard, refused(guard))
        assert asyncio.run(guard.evict(look(guard).queue[0].id))
        with pytest.raises(Evicted):
            thread.end()


@pytest.mark.parametrize("how", ["drain", "aclose"])
def test_those_that_wait_are_refused_when_the_process_shuts_down(
    guard: Guard, ag: AsyncGuard, how: Literal["drain", "aclose"]
) -> None:
    with guard.blocking():
        thread = waiting(guard, refused(guard))
        if how == "drain":
            ag.drain()
        else:
            asyncio.run(ag.aclose())
        with pytest.raises(Draining):
            thread.end()
        if how == "drain":
            with pytest.raises(Draining):
                Thread(refused(guard)).end()
            asyncio.run(ag.aclose())
    take(guard)


def test_a_loop_that_goes_leaves_threads_waiting_while_another_one_runs(guard: Guard, ag: AsyncGuard) -> None:
    async def use() -> None:
        await guard.acquire(timeout=0.01)

    async def main() -> None:
        async with guard:
            with contextlib.suppress(WaitTimeout):
                await asyncio.create_task(use())  # this loop is known once somebody waits on it
            thread = await asyncio.to_thread(waiting, guard, refused(guard))
            await asyncio.to_thread(asyncio.run, ag.aclose())
            assert (await guard.inspect()).waiting == 1
        await asyncio.to_thread(thread.end)

    asyncio.run(main())


def test_a_pause_is_waited_for(guard: Guard) -> None:
    asyncio.run(guard.pause())
    thread = waiting(guard, refused(guard))
    assert thread.is_alive()
    asyncio.run(guard.resume())
    thread.end()


# --- interrupts ------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="there are no signals for threads here")
def test_an_interrupt_withdraws_the_ticket(guard: Guard) -> None:
    me = threading.get_ident()

    def interrupt() -> None:
        until(lambda: look(guard).waiting)
        signal.pthread_kill(me, signal.SIGINT)

    permit = asyncio.run(guard.acquire())
    thread = Thread(interrupt)
    with pytest.raises(KeyboardInterrupt):
        take(guard)
    thread.end()
    assert look(guard).waiting == 0
    asyncio.run(permit.release())
    take(guard, timeout=0)


def test_an_interrupt_just_when_it_was_granted_passes_the_permit_on(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = _Wait.sleep

    def interrupted(wait: _Wait) -> Permit:
        sleep(wait)
        raise KeyboardInterrupt

    def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(_Wait, "sleep", interrupted)
            take(guard)

    with guard.blocking():
        thread = waiting(guard, work)
    with pytest.raises(KeyboardInterrupt):
        thread.end()
    take(guard, timeout=0)


def test_an_interrupt_just_when_it_was_taken_passes_the_permit_on(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(guard), "_begin", interrupted)
        with pytest.raises(KeyboardInterrupt), guard.blocking():
            pass
    with guard.blocking(timeout=0):
        pass


def test_an_interrupt_as_the_loop_starts_ends_it(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == NAME:
            started.append(thread)
            raise KeyboardInterrupt

    with guard.blocking(), monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt), guard.blocking(permits=ALL, timeout=5):
            pass
    (thread,) = started
    thread.join(10)
    assert not thread.is_alive()


def test_an_interrupt_before_the_wait_began_leaves_no_trace(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: _Wait) -> Permit:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Wait, "sleep", interrupted)
    with guard.blocking():
        with pytest.raises(KeyboardInterrupt):
            Thread(refused(guard)).end()
        assert look(guard).waiting == 0


# --- threads and loops -----------------------------------------------------------------------------


def test_where_a_loop_runs_it_would_block_it(guard: Guard) -> None:
    @guard.blocking
    def work() -> None: ...

    async def main() -> None:
        with pytest.raises(RuntimeError, match="use `async with guard`"), guard.blocking():
            pass
        with pytest.raises(RuntimeError, match="use `async with guard`"):
            work()
        async with guard:
            pass

    asyncio.run(main())


def test_the_same_guard_twice_in_one_thread_is_a_deadlock(ag: AsyncGuard) -> None:
    guard = ag.guard("report", limit=2)
    with guard.blocking(), guard.blocking():
        with pytest.raises(WouldDeadlock, match="this thread waits"):
            take(guard)
        take(guard, key="another")
    assert look(guard).in_use == 0


def test_it_is_none_in_another_thread_with_a_copy_of_the_context(guard: Guard) -> None:
    with guard.blocking():
        context = contextvars.copy_context()
        thread = waiting(guard, lambda: context.run(take, guard))
    thread.end()


def test_a_guarded_def_may_take_others_but_not_its_own(guard: Guard, ag: AsyncGuard) -> None:
    @guard
    def build() -> str:
        with ag.guard("other").blocking() as permit:
            assert current_permit() is permit
        with pytest.raises(WouldDeadlock):
            take(guard)
        return current_permit().guard

    assert asyncio.run(build()) == "report"


def test_it_works_within_a_loop_of_a_guarded_thread(guard: Guard) -> None:
    async def main() -> str:
        return current_permit().guard

    with guard.blocking():
        assert asyncio.run(main()) == "report"
        assert current_permit().guard == "report"


# --- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_lost", ["cancel", "notify"])
def test_a_permit_that_is_taken_away_is_told_and_the_end_of_the_block_says_so(
    ag: AsyncGuard, on_lost: Literal["cancel", "notify"]
) -> None:
    guard = ag.guard("report", on_lost=on_lost)
    said = pytest.raises(PermitLost) if on_lost == "cancel" else contextlib.nullcontext()
    with said, guard.blocking() as permit:
        assert not permit.lost
        assert asyncio.run(guard.evict(look(guard).holders[0].id))
        until(permit.lost.is_set)
        Thread(refused(guard, timeout=5)).end()  # it has passed on
    assert look(guard).in_use == 0


def test_work_that_fails_after_a_loss_ends_with_its_own_error(guard: Guard) -> None:
    with pytest.raises(ZeroDivisionError), guard.blocking() as permit:  # noqa: PT012
        force_lost(permit)
        raise ZeroDivisionError


def test_the_end_of_a_lost_block_does_not_release_anothers_permit(guard: Guard) -> None:
    heirs: list[Permit] = []
    with pytest.raises(PermitLost), guard.blocking() as permit:  # noqa: PT012
        force_lost(permit)
        heirs.append(asyncio.run(guard.acquire(timeout=5)))
    with pytest.raises(WouldBlock):
        guard.acquire_nowait()
    asyncio.run(heirs[0].release())


@pytest.mark.parametrize("on_lost", ["cancel", "notify"])
def test_one_that_runs_for_too_long_is_told_and_keeps_its_permit_until_it_ends(
    ag: AsyncGuard, on_lost: Literal["cancel", "notify"]
) -> None:
    guard = ag.guard("report", max_hold=0.01, on_lost=on_lost)
    said = pytest.raises(HoldExceeded, match="max_hold") if on_lost == "cancel" else contextlib.nullcontext()
    with said, guard.blocking() as permit:
        until(permit.lost.is_set)
        assert look(guard).in_use == 1
    assert look(guard).in_use == 0
    take(guard, timeout=0)


def test_its_time_is_limited_even_if_the_guards_are_closed_meanwhile(ag: AsyncGuard) -> None:
    guard = ag.guard("report", max_hold=0.05)
    with pytest.raises(HoldExceeded), guard.blocking() as permit:  # noqa: PT012
        asyncio.run(ag.aclose())
        until(permit.lost.is_set)


def test_a_clock_moved_by_hand_is_heeded() -> None:
    clock = ManualClock()
    guard = AsyncGuard(clock=clock).guard("report", max_hold=10, max_wait=5)
    with pytest.raises(HoldExceeded), guard.blocking() as permit:  # noqa: PT012
        thread = waiting(guard, refused(guard))
        clock.advance(6)
        with pytest.raises(WaitTimeout):
            thread.end()
        clock.advance(5)
        until(permit.lost.is_set)


# --- the decorator ---------------------------------------------------------------------------------


def test_a_def_stays_a_def_with_its_signature(guard: Guard) -> None:
    @guard.blocking
    def build(page: int, *, big: bool = False) -> str:
        """Build a page."""
        assert look(guard).in_use == 1
        return f"{page}{big}"

    assert build(7, big=True) == "7True"
    assert (build.__name__, build.__doc__) == ("build", "Build a page.")
    assert list(inspect.signature(build).parameters) == ["page", "big"]
    assert look(guard).in_use == 0


def test_key_names_a_parameter_or_is_called(guard: Guard) -> None:
    @guard.blocking(key="account", label="booking", timeout=5)
    def book(account: int, amount: int = 0) -> tuple[str | None, str]:  # noqa: ARG001
        return current_permit().key, current_permit().terms.label

    @guard.blocking(key=lambda owner, amount: owner["id"])  # noqa: ARG005
    def move(owner: dict[str, int], amount: int) -> str | None:  # noqa: ARG001
        return current_permit().key

    assert book(7) == book(account=7, amount=3) == ("7", "booking")
    assert move({"id": 8}, 3) == "8"
    with pytest.raises(ValueError, match="has no parameter 'acount'"):
        guard.blocking(key="acount")(take)
    with pytest.raises(TypeError, match="is for the decorator"), guard.blocking(key=lambda: 7):
        pass


def test_methods_and_empty_parentheses(guard: Guard) -> None:
    class Ledger:
        @guard.blocking(key="account")
        def book(self, account: int) -> str | None:  # noqa: ARG002
            return current_permit().key

        @staticmethod
        @guard.blocking()
        def check() -> str | None:
            return current_permit().key

    assert (Ledger().book(7), Ledger.check()) == ("7", None)


def test_its_calls_run_one_at_a_time(guard: Guard) -> None:
    running = 0

    @guard.blocking
    def work() -> None:
        nonlocal running
        running += 1
        assert running == 1
        time.sleep(0.001)
        running -= 1

    for thread in [Thread(work) for _ in range(20)]:
        thread.end()


def test_what_runs_later_or_elsewhere_is_no_work_of_a_thread(guard: Guard) -> None:
    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> Any:
        yield 1

    with pytest.raises(TypeError, match="put it under `@guard`"):
        guard.blocking(coroutine)
    for function in (generator, asynchronous):
        with pytest.raises(TypeError, match=r"`with guard.blocking\(\)` around the work"):
            guard.blocking(function)
    wrapped: list[Callable[[], object]] = [lambda: coroutine(), lambda: generator()]  # noqa: PLW0108
    for function in wrapped:
        with pytest.raises(TypeError, match="guard"):
            guard.blocking(function)()
    with pytest.raises(TypeError, match="swap the two decorators"):
        guard.blocking(staticmethod(take))
    with pytest.raises(TypeError, match="expected a function to guard"):
        guard.blocking(7)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="expected a parameter's name"):
        guard.blocking(key=7)(take)


# --- observers, tests of applications, and the loop ------------------------------------------------


def test_observers_hear_of_it_as_of_all_others(guard: Guard, ag: AsyncGuard) -> None:
    heard: list[Event] = []
    ag.observe(heard.append)

    def kinds() -> list[str]:
        kinds: list[str] = [event.kind for event in heard]
        heard.clear()
        return kinds

    take(guard)
    assert kinds() == ["entered", "granted", "released"]
    with guard.blocking():
        kinds()
        with pytest.raises(WaitTimeout):
            Thread(refused(guard, timeout=0)).end()
        assert kinds() == ["entered", "refused"]
        thread = waiting(guard, refused(guard))
        assert kinds() == ["entered"]
    thread.end()
    assert sorted(kinds()) == ["granted", "released", "released"]
    with contextlib.suppress(PermitLost), guard.blocking() as permit:
        force_lost(permit)
    assert kinds() == ["entered", "granted", "lost"]


def test_force_full_and_fresh_work_with_it(guard: Guard, ag: AsyncGuard) -> None:
    with force_full("report"), pytest.raises(QueueFull):
        take(guard)
    permit = guard.acquire_nowait()
    with fresh(ag):
        with guard.blocking(timeout=0):
            thread = waiting(guard, refused(guard))
        thread.end()
    asyncio.run(permit.release())
    block = guard.blocking(timeout=0)
    with pytest.raises(AssertionError, match="not released"), fresh(ag):
        block.__enter__()  # noqa: PLC2801
    block.__exit__(None, None, None)


def test_its_loop_ends_when_the_guards_are_closed_and_begins_anew(guard: Guard, ag: AsyncGuard) -> None:
    def loops() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == NAME]

    for _ in range(2):
        with guard.blocking():
            thread = waiting(guard, refused(guard))
        thread.end()
        (loop,) = loops()
        asyncio.run(ag.aclose())
        loop.join(10)
        assert not loops()


def test_its_loop_ends_with_the_guards() -> None:
    guard = AsyncGuard().guard("report")
    with guard.blocking():
        thread = waiting(guard, refused(guard))
    thread.end()
    del thread
    (loop,) = [thread for thread in threading.enumerate() if thread.name == NAME]
    del guard
    while loop.is_alive():
        gc.collect()
        loop.join(0.01)
