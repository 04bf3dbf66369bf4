"""The SQLite backend keeps the rules."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard
from asyncguard.testing.conformance import BackendConformance, MakeAsyncGuard

if TYPE_CHECKING:
    from pathlib import Path


class TestSqlite(BackendConformance):
    shared = True
    frees_the_dead = 1.0

    @pytest.fixture
    def make_ag(self, tmp_path: Path) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, f"sqlite://{tmp_path}/guards.db")
