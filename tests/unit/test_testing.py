"""What users test their applications with: `asyncguard.testing`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from asyncguard import (
    AsyncGuard,
    Draining,
    HoldExceeded,
    HopelessWait,
    Permit,
    PermitLost,
    QueueFull,
    Rate,
    WaitTimeout,
    WouldBlock,
    WouldDeadlock,
    testing,
)
from asyncguard.clock import TICKS
from asyncguard.testing import ManualClock, force_full, force_lost, fresh
from asyncguard.testing._proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from asyncguard import Guard


# --- the package -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", testing.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(getattr(testing, name))


@pytest.mark.parametrize(
    ("imported", "not_loaded"), [("asyncguard.testing", "pytest"), ("asyncguard", "asyncguard.testing")]
)
def test_an_import_loads_no_more_than_it_needs(imported: str, not_loaded: str) -> None:
    program = f"import sys, {imported}; assert {not_loaded!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- the clock ---------------------------------------------------------------------------------------


async def turns() -> None:
    """Let all tasks run until each of them waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_time_moves_when_it_is_advanced_and_else_stands_still() -> None:
    clock = ManualClock()
    assert clock.now() == 0
    await asyncio.sleep(100)
    assert clock.now() == 0
    clock.advance(1.5)
    clock.advance(0)
    assert clock.now() == 1.5 * TICKS
    assert repr(clock) == "<ManualClock at 1.5 s>"


async def test_timers_ring_in_the_order_in_which_they_are_due_each_at_its_time() -> None:
    clock = ManualClock()
    loop = asyncio.get_running_loop()
    rang: list[tuple[str, float]] = []

    def ring(name: str) -> None:
        rang.append((name, clock.now() / TICKS))
        if name == "first":
            clock.call_later(loop, 0.5, ring, "set on the way")

    for name, seconds in [("third", 3), ("first", 1), ("second", 2), ("also second", 2), ("last", 9)]:
        clock.call_later(loop, seconds, ring, name)
    clock.advance(4)
    assert rang == [("first", 1), ("set on the way", 1.5), ("second", 2), ("also second", 2), ("third", 3)]
    assert clock.now() == 4 * TICKS


async def test_a_timer_that_was_cancelled_stays_silent() -> None:
    clock = ManualClock()
    rang: list[str] = []
    loop = asyncio.get_running_loop()
    timers = [clock.call_later(loop, 1, rang.append, name) for name in "abc"]
    timers[1].cancel()
    clock.advance(1)
    for timer in timers:
        timer.cancel()
    clock.advance(1)
    assert rang == ["a", "c"]


async def test_what_is_due_now_happens_at_the_loops_next_turn_and_what_never_is_never() -> None:
    clock = ManualClock()
    rang: list[str] = []
    loop = asyncio.get_running_loop()
    clock.call_later(loop, 0, rang.append, "now")
    clock.call_later(loop, float("inf"), rang.append, "never")
    assert rang == []
    await asyncio.sleep(0)
    clock.advance(1e9)
    assert rang == ["now"]


async def test_another_loop_has_its_timers_run_in_its_own_thread() -> None:
    clock = ManualClock()
    other = asyncio.new_event_loop()
    rang: list[int] = []
    clock.call_later(other, 1, lambda: rang.append(threading.get_ident()))
    late = clock.call_later(other, 1, rang.append, 0)
    clock.advance(1)
    late.cancel()  # it was handed over, and hasn't run yet
    with ThreadPoolExecutor(1) as threads:
        (thread,) = [threads.submit(threading.get_ident).result()]
        threads.submit(other.run_until_complete, turns()).result()
    assert rang == [thread]
    clock.call_later(other, 1, rang.append, 0)
    other.close()
    clock.advance(1)
    assert rang == [thread]


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError)],
)
def test_time_goes_nowhere_else(seconds: Any, error: type[Exception]) -> None:
    clock = ManualClock()
    with pytest.raises(error, match="seconds: expected"):
        clock.advance(seconds)
    assert clock.now() == 0


async def test_a_guard_counts_its_seconds_for_max_wait_and_max_hold() -> None:
    clock = ManualClock()
    with fresh(AsyncGuard(clock=clock)) as ag:
        guard = ag.guard("report", max_wait=30, max_hold=60)

        async def work() -> None:
            async with guard:
                await asyncio.Event().wait()

        holds, waits = asyncio.create_task(work()), asyncio.create_task(work())
        await turns()
        clock.advance(29.9)
        await turns()
        picture = await guard.inspect()
        assert picture.holders[0].held == pytest.approx(29.9)
        assert picture.queue[0].waited == pytest.approx(29.9)
        assert not waits.done()
        clock.advance(0.1)
        with pytest.raises(WaitTimeout):
            await waits
        clock.advance(30)
        with pytest.raises(HoldExceeded):
            await holds


async def test_all_that_came_at_one_time_have_waited_for_equally_long() -> None:
    clock = ManualClock()
    with fresh(AsyncGuard(clock=clock)) as ag:
        guard = ag.guard("report", max_wait=30)
        async with guard:
            waits = [asyncio.create_task(guard.acquire()) for _ in range(50)]
            await turns()
            clock.advance(30)
            await turns()
            assert [type(task.exception()) for task in waits] == [WaitTimeout] * 50


async def test_a_guard_keeps_its_pace_by_it() -> None:
    clock = ManualClock()
    with fresh(AsyncGuard(clock=clock)) as ag:
        guard = ag.guard("mail", limit=3, rate=Rate(1, per=10))
        granted: list[float] = []

        async def send() -> None:
            async with guard:
                granted.append(clock.now() / TICKS)

        tasks = [asyncio.create_task(send()) for _ in range(3)]
        for _ in range(5):
            await turns()
            clock.advance(5)
        await asyncio.gather(*tasks)
    assert granted == [0, 10, 20]


async def test_estimates_come_from_it() -> None:
    clock = ManualClock()
    with fresh(AsyncGuard(clock=clock)) as ag:
        guard = ag.guard("report")
        for _ in range(5):
            async with guard:
                clock.advance(10)
        async with guard:
            waits = asyncio.create_task(guard.acquire())
            await turns()
            with pytest.raises(HopelessWait) as caught:
                await asyncio.create_task(guard.acquire(timeout=15))
            assert caught.value.estimated_wait == pytest.approx(20)
        await (await waits).release()


# --- an AsyncGuard of a test's own -------------------------------------------------------------------


async def test_a_fresh_one_has_nothing_of_the_old_and_leaves_nothing_to_it(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    backend = hub.open()
    async with guard as outer:
        with fresh(hub) as ag:
            assert ag is hub
            assert (await guard.inspect()).in_use == 0
            permit = await asyncio.create_task(guard.acquire())
            with pytest.raises(WouldBlock):
                guard.acquire_nowait()
            await permit.release()
            assert outer.backend is backend
        assert hub.open() is backend
        assert (await guard.inspect()).holders[0].token == outer.token
        with pytest.raises(WouldBlock):
            guard.acquire_nowait()
    assert (await guard.inspect()).granted == 1


async def test_it_has_no_leases_though_the_other_backend_has(hub: AsyncGuard) -> None:
    shared = Proxy(hub.open())
    shared.lease = 5 * TICKS
    hub._backend = shared
    guard, new = hub.guard("report"), hub.guard("new")
    await once(guard)
    with fresh(hub):
        for each in (guard, new):
            async with each.permit(timeout=3) as permit:
                assert permit.terms.lease == 0
                assert permit.terms.owner
    async with guard.permit(timeout=3) as permit:
        assert permit.terms.lease == 5 * TICKS


async def test_each_is_another_one(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    for _ in range(3):
        with fresh(hub):
            async with guard, guard.permit(key="a"):
                pass
            assert (await guard.inspect()).granted == 2
        assert (await guard.inspect()).granted == 0


def test_the_url_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCGUARD_URL", "nowhere://")
    ag = AsyncGuard()
    guard = ag.guard("report")
    with fresh(ag):
        asyncio.run(once(guard))
    with pytest.raises(ValueError, match="nowhere"):
        ag.open()


async def once(guard: Guard) -> None:
    async with guard:
        pass


async def test_the_rules_that_stood_stand_in_it(hub: AsyncGuard) -> None:
    narrow = hub.guard("report", limit=1)
    wide = narrow.replace(limit=2)
    with fresh(hub):
        async with narrow:
            assert (await wide.inspect()).limit == 2
        wider = wide.replace(limit=3)
        assert hub.guard("report", limit=3) is wider
        late = hub.guard("late")
    assert hub.guard("report", limit=2) is wide
    assert hub.guard("late") is late


async def test_one_that_shuts_down_within_is_as_before_in_the_end(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    with fresh(hub):
        hub.drain()
        with pytest.raises(Draining):
            await once(guard)
    await once(guard)
    hub.drain()
    with fresh(hub):
        await once(guard)
    with pytest.raises(Draining):
        await once(guard)


async def test_it_names_each_leak() -> None:
    clock = ManualClock()
    ag = AsyncGuard(clock=clock, namespace="shop")
    guard, other = ag.guard("report"), ag.guard("other", max_hold=5)
    kept: list[Permit] = []
    tasks: list[asyncio.Task[Any]] = []

    async def leak() -> None:
        kept.append(await guard.acquire(key="alice", label="the yearly one"))
        kept.append(await other.acquire())
        tasks.append(asyncio.create_task(guard.acquire(key="alice", label="the other")))
        await turns()
        clock.advance(1.25)

    with pytest.raises(AssertionError) as caught, fresh(ag):
        await leak()
    assert str(caught.value).splitlines() == [
        "leaked on <AsyncGuard 'shop' with 2 guards>:",
        "  permit of guard 'report', key 'alice', label 'the yearly one': held for 1.250 s and not released",
        "  ticket of guard 'report', key 'alice', label 'the other': still waiting after 1.250 s",
        "  permit of guard 'other': held for 1.250 s and not released",
        "Release each permit, as `async with guard` does; await or cancel each task that waits.",
    ]
    with fresh(ag):
        await once(guard)
    for permit in kept:
        await permit.release()
    await (await tasks[0]).release()


async def test_what_fails_within_is_not_hidden_by_what_it_leaks(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    kept: list[Permit] = []

    async def leak_and_fail() -> None:
        kept.append(await guard.acquire())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), fresh(hub):
        await leak_and_fail()
    await kept[0].release()
    await once(guard)


async def test_a_permit_that_was_dropped_is_a_leak_though_it_passed_on(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    dropped = "permit of guard 'report', key 'a', label 'yearly': held for 0.000 s, dropped, not released"
    for full in (contextlib.nullcontext(), force_full_of_a(hub, "other")):
        with (
            pytest.raises(AssertionError, match=dropped),
            fresh(hub),
            full,
            pytest.warns(ResourceWarning, match="was dropped"),
        ):
            await guard.acquire(key="a", label="yearly")
    await once(guard)


async def test_a_block_whose_coroutine_was_thrown_away_is_no_leak(hub: AsyncGuard) -> None:
    guard = hub.guard("report")

    async def work() -> None:
        async with guard:
            await asyncio.sleep(10)

    with fresh(hub):
        coroutine = work()
        coroutine.send(None)
        coroutine.close()
        await once(guard)


def test_it_serves_an_application_on_several_loops() -> None:
    ag = AsyncGuard()
    app = FastAPI()
    ag.install(app)

    @app.get("/report")
    @ag.guard("report")
    async def build() -> str:
        return "done"

    @app.get("/leak")
    async def leak() -> None:
        kept.append(await ag.guard("report").acquire())

    kept: list[Permit] = []
    for _ in range(2):
        with fresh(ag), TestClient(app) as client:
            assert client.get("/report").text == '"done"'
        with fresh(ag):
            client = TestClient(app)  # each request on a loop of its own
            assert [client.get("/report").status_code for _ in range(3)] == [200] * 3
        with pytest.raises(AssertionError, match="permit of guard 'report': held for"), fresh(ag):
            client.get("/leak")
    assert len(kept) == 2


# --- a full queue ------------------------------------------------------------------------------------


async def test_every_ticket_is_refused_and_who_is_in_stays(hub: AsyncGuard) -> None:
    guard, other = hub.guard("report", max_waiting=7), hub.guard("other")
    async with guard as permit:
        waits = asyncio.create_task(guard.acquire())
        await turns()
        with force_full("report"):
            for refused in (guard.acquire(), guard.acquire(key="a"), guard.acquire(timeout=0), once(guard)):
                with pytest.raises(QueueFull) as caught:
                    await asyncio.create_task(refused)
                assert (caught.value.guard, caught.value.estimated_wait) == ("report", 30)
                assert "the queue is full (max_waiting=7); a new ticket would wait about 30.0 s" in str(
                    caught.value
                )
            with pytest.raises(WouldBlock):
                guard.acquire_nowait(key="a")
            await once(other)
            picture = await guard.inspect()
            assert (picture.in_use, picture.waiting) == (1, 1)
            assert not permit.lost
    await (await waits).release()
    await once(guard)


async def test_a_free_guard_is_full_too_used_before_or_not(hub: AsyncGuard) -> None:
    used, new = hub.guard("used"), hub.guard("new")
    await once(used)
    for guard in (used, new):
        with force_full(guard.name), pytest.raises(QueueFull):
            await once(guard)
        await once(guard)


async def test_who_gets_in_before_goes_out_meanwhile_and_passes_on(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    permit = await guard.acquire()
    waits = asyncio.create_task(guard.acquire())
    await turns()
    with force_full("report"):
        await permit.release()
        heir = await waits
        await heir.release()
        assert (await guard.inspect()).in_use == 0


async def test_who_gets_into_another_guard_meanwhile_goes_out_afterwards(hub: AsyncGuard) -> None:
    guard = hub.guard("other")
    with force_full_of_a(hub, "report"):
        permit = await guard.acquire()
        waits = asyncio.create_task(guard.acquire())
        await turns()
        assert guard.name in repr(permit)
        assert permit.token > 0
    await permit.release()
    await (await waits).release()


def force_full_of_a(hub: AsyncGuard, name: str) -> Any:
    hub.guard(name)
    return force_full(name)


async def test_two_guards_are_full_at_once_and_end_in_any_order(hub: AsyncGuard) -> None:
    one, two = hub.guard("one"), hub.guard("two")
    first, second = force_full("one"), force_full("two", estimated_wait=None)
    for guard in (one, two):
        await once(guard)
    with first:
        second.__enter__()
        with pytest.raises(QueueFull):
            await once(one)
        with pytest.raises(QueueFull) as caught:
            await once(two)
        assert caught.value.estimated_wait is None
        assert "a new ticket" not in str(caught.value)
    await once(one)
    with pytest.raises(QueueFull):
        await once(two)
    second.__exit__(None, None, None)
    await once(two)


async def test_it_is_over_even_if_a_fresh_one_ends_after_it(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    full = force_full("report")
    full.__enter__()
    with fresh(hub):
        await once(guard)
        full.__exit__(None, None, None)
    await once(guard)


async def test_all_of_the_process_with_such_a_guard_are_full() -> None:
    families = [AsyncGuard() for _ in range(3)]
    guards = [ag.guard("export") for ag in families[:2]]
    guards.append(families[2].guard("import"))
    with force_full("export"):
        for guard in guards[:2]:
            with pytest.raises(QueueFull):
                await once(guard)
        await once(guards[2])
    for guard in guards:
        await once(guard)


def test_a_guard_that_nobody_declared_can_not_be_full() -> None:
    ag = AsyncGuard()
    ag.guard("report")
    with pytest.raises(LookupError, match=r"no AsyncGuard has a guard named 'reprot'; there are: .*'report'"):
        force_full("reprot").__enter__()
    with pytest.raises(TypeError, match="name: expected a str, got Guard"):
        force_full(ag.guard("report")).__enter__()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="estimated_wait: expected 0 or more"):
        force_full("report", estimated_wait=-1).__enter__()


async def test_who_holds_it_still_deadlocks(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard:
        with force_full("report"), pytest.raises(WouldDeadlock):
            await guard.acquire()


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    """Have the interpreter switch threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_frequent_switches")
def test_who_enters_another_guard_in_another_thread_notices_nothing() -> None:
    ag = AsyncGuard()
    ag.guard("report")
    other = ag.guard("other", max_waiting=None)

    async def use() -> None:
        for _ in range(300):
            await asyncio.gather(*(once(other) for _ in range(3)))

    with ThreadPoolExecutor(2) as threads:
        users = [threads.submit(asyncio.run, use()) for _ in range(2)]
        while not all(user.done() for user in users):
            with force_full("report"):
                pass
        for user in users:
            user.result()


def test_an_application_answers_in_its_own_way() -> None:
    ag = AsyncGuard()
    app = FastAPI()
    ag.install(app)

    @app.exception_handler(QueueFull)
    async def answer(request: Request, refusal: QueueFull) -> JSONResponse:
        return JSONResponse({"busy": refusal.guard, "wait": refusal.estimated_wait}, status_code=429)

    @app.get("/report")
    @ag.guard("report")
    async def build() -> str:
        return "done"

    with fresh(ag), TestClient(app) as client:
        with force_full("report", estimated_wait=5):
            assert client.get("/report").json() == {"busy": "report", "wait": 5}
        assert client.get("/report").status_code == 200


# --- a permit that is taken away ---------------------------------------------------------------------


async def test_the_work_is_cancelled_and_the_permit_passes_on(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_hold=60)
    permits: list[Permit] = []

    async def work() -> None:
        async with guard as permit:
            permits.append(permit)
            await asyncio.sleep(10)

    lost, next_one = asyncio.create_task(work()), asyncio.create_task(work())
    await turns()
    force_lost(permits[0])
    with pytest.raises(PermitLost, match="<Permit of guard 'report': lost> was taken away after") as caught:
        await lost
    assert type(caught.value) is PermitLost
    await next_one
    assert permits[0].lost
    assert not permits[1].lost
    assert permits[0].token < permits[1].token


@pytest.mark.parametrize("take", ["block", "handle"])
async def test_work_may_only_be_told(hub: AsyncGuard, take: str) -> None:
    guard = hub.guard("report", on_lost="notify")
    if take == "block":
        async with guard as permit:
            force_lost(permit)
            assert permit.lost
            await permit.lost.wait()
            async with asyncio.timeout(1):
                await asyncio.create_task(once(guard))
    else:
        permit = await guard.acquire()
        force_lost(permit)
        assert permit.lost
        await once(guard)
        await permit.release()
    assert (await guard.inspect()).in_use == 0


async def test_it_is_taken_from_another_thread(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    with pytest.raises(PermitLost):  # noqa: PT012
        async with guard as permit:
            await asyncio.to_thread(force_lost, permit)
            await asyncio.sleep(10)


async def test_all_permits_of_one_that_is_exclusive_pass_on(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=3)
    permit = await guard.acquire(permits="all", key="a")
    force_lost(permit)
    async with guard.permit(key="a", permits=3):
        pass


async def test_one_that_is_not_held_can_not_be_lost(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    async with guard as ended:
        pass
    lost = await guard.acquire()
    force_lost(lost)
    for permit, state in ((ended, "released"), (lost, "lost")):
        with pytest.raises(ValueError, match=f"expected one that is held, got <Permit .*: {state}>"):
            force_lost(permit)


async def test_observers_hear_of_what_is_forced_as_of_what_happens(hub: AsyncGuard) -> None:
    guard = hub.guard("report")
    heard: list[tuple[str, str | None]] = []
    hub.observe(lambda event: heard.append((event.kind, event.reason)))
    with force_full("report"), pytest.raises(QueueFull):
        await guard.acquire()
    force_lost(await guard.acquire())
    with pytest.raises(PermitLost):  # noqa: PT012
        async with guard as permit:
            force_lost(permit)
            await asyncio.sleep(10)
    lost = [("entered", None), ("granted", None), ("lost", None)]
    assert heard == [("entered", None), ("refused", "full"), *lost, *lost]


async def test_one_that_came_in_while_another_guard_was_full_is_lost_too(hub: AsyncGuard) -> None:
    guard = hub.guard("other")
    with force_full_of_a(hub, "report"):
        permit = await guard.acquire()
    force_lost(permit)
    assert permit.lost
    await once(guard)


# --- the fixtures ------------------------------------------------------------------------------------


@pytest.fixture
def run_pytest(tmp_path: Path) -> Callable[[str], str]:
    """Run the tests of a small project as a user would, and hand over what is printed."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["asyncguard.testing.fixtures"]\n')

    def run(tests: str) -> str:
        (tmp_path / "test_app.py").write_text("import asyncio, pytest, asyncguard\n" + textwrap.dedent(tests))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
        return done.stdout + done.stderr

    return run


def test_a_test_that_leaks_a_permit_fails(run_pytest: Callable[[str], str]) -> None:
    printed = run_pytest(
        """
        kept = []

        async def take(guard):
            kept.append(await guard.acquire(label="the yearly one"))

        def test_leaks(fresh_ag):
            asyncio.run(take(fresh_ag.guard("report")))

        def test_is_not_touched_by_it(fresh_ag):
            asyncio.run(take(fresh_ag.guard("report")))
            asyncio.run(kept[-1].release())
        """
    )
    assert "permit of guard 'report', label 'the yearly one': held for 0." in printed
    assert "ERROR" in printed
    assert "2 passed, 1 error" in printed


def test_the_fixtures_serve_tests_of_every_kind(run_pytest: Callable[[str], str]) -> None:
    printed = run_pytest(
        """
        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        async def once(guard):
            async with guard:
                pass

        def test_without_a_plugin(fresh_ag, force_full):
            guard = fresh_ag.guard("report")
            asyncio.run(once(guard))
            force_full("report")
            with pytest.raises(asyncguard.QueueFull):
                asyncio.run(once(guard))

        @pytest.mark.anyio
        async def test_of_a_plugin(force_full, fresh_ag):
            guard = fresh_ag.guard("report")
            force_full("report", estimated_wait=7)
            with pytest.raises(asyncguard.QueueFull, match="7.0 s"):
                await once(guard)
            async with fresh_ag.guard("other"):
                pass

        module = asyncguard.AsyncGuard()
        used = module.guard("used")

        def test_forces_what_lives_on(force_full):
            force_full("used")
            force_full("used")
            with pytest.raises(asyncguard.QueueFull):
                asyncio.run(once(used))

        def test_it_ended_with_the_test():
            asyncio.run(once(used))
        """
    )
    assert "4 passed" in printed
    assert "error" not in printed
