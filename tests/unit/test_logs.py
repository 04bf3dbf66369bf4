"""Records of `logging`: for people in their message, for machines in their attribute."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import ALL, AsyncGuard, Event, Guard, GuardError
from asyncguard.observability.logs import LEVELS, log_events

if TYPE_CHECKING:
    from collections.abc import Iterator


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def log() -> Iterator[Kept]:
    """Keep what the logger that is taken without another hears."""
    logger, kept = logging.getLogger("asyncguard.events"), Kept()
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    yield kept
    logger.removeHandler(kept)
    logger.setLevel(logging.NOTSET)


async def block(guard: Guard, **ask: Any) -> None:
    with contextlib.suppress(GuardError):
        async with guard.permit(**ask):
            await asyncio.sleep(2)


async def all_that_can_happen(hub: AsyncGuard) -> None:
    guard = hub.guard("report", max_waiting=1, max_hold=3)
    tasks = [asyncio.create_task(block(guard)) for _ in range(3)]
    await asyncio.sleep(1)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    permit = await guard.acquire()
    await asyncio.sleep(5)
    await permit.release()


async def test_there_is_a_record_of_each_thing(hub: AsyncGuard, log: Kept) -> None:
    events: list[Event] = []
    log_events(hub)
    hub.observe(events.append)
    await all_that_can_happen(hub)
    assert [record.asyncguard for record in log.records] == [dataclasses.asdict(event) for event in events]
    assert {record.asyncguard["kind"] for record in log.records} == LEVELS.keys()
    for record in log.records:
        assert record.levelno == LEVELS[record.asyncguard["kind"]]
        assert json.loads(json.dumps(record.asyncguard)) == record.asyncguard


async def test_messages_are_for_people(hub: AsyncGuard, log: Kept) -> None:
    log_events(hub)
    await all_that_can_happen(hub)
    ids = list(dict.fromkeys(record.asyncguard["ticket"] for record in log.records))
    tokens = [record.asyncguard["token"] for record in log.records if record.asyncguard["kind"] == "granted"]
    assert [message.removeprefix("guard 'report': ticket ") for message in log.messages] == [
        f"{ids[0]} entered",
        f"{ids[0]} was granted after 0.000 s, token {tokens[0]}",
        f"{ids[1]} entered",
        f"{ids[2]} entered",
        f"{ids[2]} was refused (full) after 0.000 s",
        f"{ids[1]} was withdrawn after 1.000 s",
        f"{ids[0]} was released after it held for 2.000 s",
        f"{ids[3]} entered",
        f"{ids[3]} was granted after 0.000 s, token {tokens[1]}",
        f"{ids[3]} was lost after it held for 3.000 s",
    ]


async def test_nobody_can_feign_a_record(hub: AsyncGuard, log: Kept) -> None:
    log_events(hub)
    forged = "a\nguard 'report': ticket 1 was lost\r\x1b[31m\u2028%(token)s"
    await block(hub.guard("re\nport"), key=forged, label=forged, permits=ALL)
    assert len(log.messages) == 3
    for message in log.messages:
        assert message.isprintable()
        assert message.startswith(f"guard 're\\nport', key {forged!r}: ticket ")
        assert f", label {forged!r}, " in message
    assert log.records[0].asyncguard["key"] == forged
    assert log.records[0].asyncguard["permits"] == "all"


async def test_levels_can_be_chosen(hub: AsyncGuard, log: Kept) -> None:
    log_events(hub, levels={"refused": logging.INFO, "granted": logging.ERROR})
    await all_that_can_happen(hub)
    levels = {record.asyncguard["kind"]: record.levelno for record in log.records}
    assert levels == {**LEVELS, "refused": logging.INFO, "granted": logging.ERROR}


async def test_levels_of_what_does_not_happen_are_an_error(hub: AsyncGuard) -> None:
    levels: Any = {"denied": logging.INFO}
    with pytest.raises(ValueError, match="'denied'"):
        log_events(hub, levels=levels)
    assert not hub.observers


async def test_what_the_logger_does_not_want_is_not_logged(hub: AsyncGuard, log: Kept) -> None:
    logging.getLogger("asyncguard.events").setLevel(logging.WARNING)
    log_events(hub)
    await all_that_can_happen(hub)
    assert [record.asyncguard["kind"] for record in log.records] == ["refused", "lost"]


async def test_another_logger_can_be_given_and_logging_ended(hub: AsyncGuard, log: Kept) -> None:
    logger, kept = logging.getLogger("shop"), Kept()
    logger.addHandler(kept)
    stop = log_events(hub, logger)
    await all_that_can_happen(hub)
    heard = len(kept.records)
    stop()
    stop()
    await block(hub.guard("another"))
    logger.removeHandler(kept)
    assert heard == len(kept.records) == 2  # warnings, as nobody set a level
    assert log.records == []


def test_an_application_is_no_asyncguard() -> None:
    application: Any = object()
    with pytest.raises(TypeError, match="ag: expected an AsyncGuard, got <object"):
        log_events(application)
