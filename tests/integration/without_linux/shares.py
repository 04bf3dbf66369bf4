"""The rules for several clients and processes, to be run where the system is less than Linux is."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard
from asyncguard.testing.conformance import MakeAsyncGuard
from asyncguard.testing.conformance._sharing import Sharing

if TYPE_CHECKING:
    from pathlib import Path


class TestSharing(Sharing):
    shared = True
    frees_the_dead = 2.0

    @pytest.fixture
    def make_ag(self, tmp_path: Path) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, f"sqlite://{tmp_path}/guards.db")
