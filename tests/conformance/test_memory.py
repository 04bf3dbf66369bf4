"""The backends that come with AsyncGuard, each by the one list of rules."""

from __future__ import annotations

import functools

import pytest

from asyncguard import AsyncGuard
from asyncguard.testing.conformance import BackendConformance, MakeAsyncGuard


class TestMemory(BackendConformance):
    @pytest.fixture
    def make_ag(self) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, "memory:")
