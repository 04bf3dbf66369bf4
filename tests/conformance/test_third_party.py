"""A backend of somebody else's is put to the rules in five lines, and fails if it breaks one."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from toys import Distant, open_own

from asyncguard import AsyncGuard, WouldDeadlock
from asyncguard.clock import SystemClock
from asyncguard.testing import fresh
from asyncguard.testing.conformance import BackendConformance, MakeAsyncGuard
from asyncguard.testing.conformance.against_rules import AgainstRules

if TYPE_CHECKING:
    from jumping import LoopClock

    from asyncguard.backends import Backend
    from asyncguard.clock import Clock


class TestOwn(BackendConformance):
    @pytest.fixture
    def make_ag(self) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, backend=open_own)


class TestDistant(BackendConformance):
    shared = True
    answers_at_once = False

    @pytest.fixture
    def make_ag(self) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, backend=Distant)


class Near(Distant):
    far = 0.0


class DistantAgainstRules(AgainstRules):
    moves_time = False
    answers_at_once = False

    def open(self, clock: Clock) -> Backend:
        return Near(clock, uuid.uuid4().hex)


TestDistantAgainstRules = DistantAgainstRules.TestCase
TestDistantAgainstRules.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

BROKEN = {
    "open_barging": [
        "test_who_came_first_is_let_in_first",
        "test_small_ones_behind_a_large_one_come_in_with_what_is_left",
    ],
    "open_one_too_many": ["test_as_many_hold_as_the_limit_says_and_no_more"],
    "open_repeating_tokens": ["test_tokens_grow_from_grant_to_grant"],
}
"""Backends that break a rule, and the tests that are about it."""
SUITE = """
import functools, pytest, toys
from asyncguard import AsyncGuard
from asyncguard.testing.conformance import BackendConformance

class TestBroken(BackendConformance):
    @pytest.fixture
    def make_ag(self):
        return functools.partial(AsyncGuard, backend=toys.{opener})
"""


@pytest.mark.parametrize("opener", BROKEN)
def test_one_that_breaks_a_rule_fails(opener: str, tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text(SUITE.format(opener=opener))
    tests = [f"test_broken.py::TestBroken::{name}" for name in BROKEN[opener]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:anyio", *tests],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 1, done.stdout
    assert "passed" not in done.stdout
    assert "error" not in done.stdout, "they fail, and do nothing worse"


# --- how it is handed over ---------------------------------------------------------------------


async def test_it_is_opened_once_with_clock_and_namespace_at_the_first_use(clock: LoopClock) -> None:
    opened: list[tuple[Clock, str]] = []

    def open_it(clock: Clock, namespace: str) -> Backend:
        opened.append((clock, namespace))
        return open_own(clock, namespace)

    ag = AsyncGuard(backend=open_it, namespace="shop", clock=clock)
    guard = ag.guard("report")
    assert opened == []
    for _ in range(2):
        async with guard:
            pass
        await ag.aclose()
    assert opened == [(clock, "shop")]


async def test_it_goes_before_the_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCGUARD_URL", "nonsense:")
    async with AsyncGuard(backend=open_own).guard("report") as permit:
        assert permit.token


async def test_a_test_of_an_application_leaves_it_alone() -> None:
    ag = AsyncGuard(backend=open_own)
    guard = ag.guard("report")
    permit = await guard.acquire()
    with fresh(ag):
        async with guard.permit(timeout=0):
            pass
    assert (await guard.inspect()).in_use == 1
    await permit.release()


def test_a_url_beside_it_is_one_too_many() -> None:
    with pytest.raises(ValueError, match="beside the URL 'memory:'"):
        AsyncGuard("memory:", backend=open_own)


def test_it_is_a_function_that_opens_a_backend() -> None:
    backend: Any = open_own(SystemClock(), "shop")
    with pytest.raises(TypeError, match="expected a function of clock and namespace"):
        AsyncGuard(backend=backend)


def test_threads_that_block_ask_one_that_needs_a_loop_on_theirs() -> None:
    ag = AsyncGuard(backend=Distant, namespace=uuid.uuid4().hex)
    guard = ag.guard("report")
    came: list[int] = []

    @guard.blocking
    def work(number: int) -> None:
        came.append(number)
        time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    with guard.blocking() as permit:
        assert permit.token
        for thread in threads:
            thread.start()
        while asyncio.run(guard.inspect()).waiting < len(threads):
            time.sleep(0.001)
        assert came == []
        with pytest.raises(WouldDeadlock), guard.blocking():
            pass
    for thread in threads:
        thread.join(10)
    assert sorted(came) == list(range(5))
    assert asyncio.run(guard.inspect()).in_use == 0
    asyncio.run(ag.aclose())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_leaves_its_parents_block_is_not_stuck() -> None:
    guard = AsyncGuard(backend=Distant, namespace=uuid.uuid4().hex).guard("report")
    child = 0
    with guard.blocking():
        child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asyncio.run(guard.inspect()).in_use == 0
