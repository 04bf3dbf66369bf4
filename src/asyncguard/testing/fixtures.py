"""Fixtures for pytest: `pytest_plugins = ["asyncguard.testing.fixtures"]` in `conftest.py`.

They are plain functions, so they serve tests of any asyncio plugin, and tests without one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

import pytest

from asyncguard.hub import AsyncGuard
from asyncguard.testing import faults
from asyncguard.testing.isolation import fresh

if TYPE_CHECKING:
    from collections.abc import Iterator


class ForceFull(Protocol):
    """What the fixture `force_full` is."""

    def __call__(self, name: str, *, estimated_wait: float | None = 30.0) -> None:
        """Have the guards of a name refuse every new ticket until the test ends."""


@pytest.fixture
def fresh_ag() -> Iterator[AsyncGuard]:
    """Make an AsyncGuard in process; the test fails if permits are held, or tickets wait, when it ends."""
    with fresh(AsyncGuard("memory:")) as ag:
        yield ag


@pytest.fixture
def force_full() -> Iterator[ForceFull]:
    """Have guards full until the test ends: `force_full("report")`; see `asyncguard.testing.force_full`."""
    with contextlib.ExitStack() as forced:

        def force(name: str, *, estimated_wait: float | None = 30.0) -> None:
            forced.enter_context(faults.force_full(name, estimated_wait=estimated_wait))

        yield force
