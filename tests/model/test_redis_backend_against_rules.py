"""The Redis backend as guards use it, with its courier and a real server, decides as the rules do."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import settings
from test_lua_against_rules import ODD, START, _as_in_lua  # noqa: F401 - a fixture
from valkey_server import connect

from asyncguard.backends.redis import RedisBackend
from asyncguard.backends.redis_rules import RedisRules
from asyncguard.clock import TICKS_PER_MICROSECOND
from asyncguard.testing.conformance.against_rules import AgainstRules

if TYPE_CHECKING:
    from asyncguard.clock import Clock
    from asyncguard.ticket import Terms


@pytest.fixture(autouse=True, scope="module")
def _server(redis_url: str) -> None:
    RedisAgainstRules.url = redis_url


class RedisAgainstRules(AgainstRules):
    """Each step is told the time, and nothing happens but what the machine does."""

    answers_at_once = False
    tells_in_order = False  # what concerns all keys is done for one after the other, in an order of its own
    url: ClassVar[str]

    def open(self, clock: Clock) -> RedisBackend:
        super()._pass_time(START)  # the rules tell the arrivals of one moment apart from then on
        self.redis = redis = RedisBackend(f"{self.url}?lease=60", clock, f"tests {uuid.uuid4()}")
        redis._knows_the_time = True
        redis._rules = RedisRules(
            redis.namespace,
            redis._client,
            clock.epoch,
            now=lambda: (clock.now() + clock.epoch) // TICKS_PER_MICROSECOND,
        )
        redis.__dict__["tick"] = lambda: None
        return redis

    def _terms(self, ask: dict[str, Any]) -> Terms:
        """Leave out what is finer than a microsecond, and patience that is just what a wait is estimated at."""
        terms = super()._terms(ask)
        patience = terms.patience + ODD if terms.patience else terms.patience
        priority = terms.priority // TICKS_PER_MICROSECOND * TICKS_PER_MICROSECOND
        return dataclasses.replace(terms, patience=patience, priority=priority)

    def _pass_time(self, ticks: int) -> None:
        """Have what is due happen before anybody leaves: who left isn't told of a grant in the same step."""
        super()._pass_time(ticks)
        for partition in self.admission.partitions.values():
            partition.advance(self.clock.now())
        self.notice_time([*self.admission.partitions])
        self._told_as_decided()

    def notice_time(self, keys: list[str | None]) -> None:
        call = self.redis._rules.advance(self.declaration, keys)
        self.finish(self.redis._ask_and_take(self.declaration, call))

    def teardown(self) -> None:
        super().teardown()
        if not hasattr(self, "redis"):
            return
        for courier in self.redis._couriers.values():
            courier.stop()
            courier.ended.result(10)
        with contextlib.closing(connect(self.url)) as server:
            for key in server.scan_iter(f"{self.redis._rules.base('')[:-2]}*", count=1000):
                server.delete(key)


TestRedisAgainstRules = RedisAgainstRules.TestCase
TestRedisAgainstRules.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
