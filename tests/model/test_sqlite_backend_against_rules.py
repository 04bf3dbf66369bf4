"""The SQLite backend as guards use it, with its porter and its file, decides as the rules do."""

from __future__ import annotations

import functools
import tempfile
from typing import TYPE_CHECKING

from hypothesis import settings

from asyncguard.backends.sqlite import SqliteBackend
from asyncguard.backends.sqlite_store import Store
from asyncguard.testing.conformance.against_rules import AgainstRules

if TYPE_CHECKING:
    from asyncguard.clock import Clock


class SqliteAgainstRules(AgainstRules):
    tells_in_order = False

    def open(self, clock: Clock) -> SqliteBackend:
        self.directory = tempfile.TemporaryDirectory()
        self.sqlite = SqliteBackend(f"{self.directory.name}/guards.db", clock, "tests")
        self.sqlite._hire().call(Store.clients).result(10)
        assert self.sqlite._store is not None
        self.sqlite._store.patience = 10  # from now on it answers at once, however busy the machine is
        return self.sqlite

    def notice_time(self, keys: list[str | None]) -> None:
        for key in keys:
            self.sqlite.do(functools.partial(self.advance, key))

    def advance(self, key: str | None, store: Store) -> None:
        for guard in set(self.sqlite._numbers.values()):
            partition = store.partition(guard, key)
            if partition is not None:
                step = self.sqlite.step()
                self.sqlite._ring(store.advance(partition, self.sqlite.clock.now(), step))

    def teardown(self) -> None:
        super().teardown()
        porter = self.sqlite._porter
        if porter is not None:
            porter.stop()
            porter.join(10)
        self.directory.cleanup()


TestSqliteAgainstRules = SqliteAgainstRules.TestCase
TestSqliteAgainstRules.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
