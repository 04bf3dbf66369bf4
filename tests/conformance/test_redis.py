"""The Redis backend keeps the rules."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from asyncguard import AsyncGuard
from asyncguard.testing.conformance import BackendConformance, MakeAsyncGuard

if TYPE_CHECKING:
    from valkey_cluster import Cluster
    from valkey_sentinel import Watched


class TestRedis(BackendConformance):
    shared = True
    answers_at_once = False
    frees_the_dead = 3.0

    @pytest.fixture
    def make_ag(self, redis_url: str) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, f"{redis_url}?lease=1")


class TestCluster(TestRedis):
    @pytest.fixture
    def make_ag(self, redis_cluster: Cluster) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, f"{redis_cluster.url}?lease=1")


class TestSentinel(TestRedis):
    @pytest.fixture
    def make_ag(self, redis_sentinels: Watched) -> MakeAsyncGuard:
        return functools.partial(AsyncGuard, f"{redis_sentinels.url}?lease=1")
