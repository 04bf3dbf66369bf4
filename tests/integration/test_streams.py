"""Until when a permit is held, on real servers over real sockets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from . import served
from .test_clients_that_leave import LAYERS

if TYPE_CHECKING:
    from .servers import Connection
    from .stage import Stage

STREAMS = ["stream/auto", "stream/body", "required-stream/auto", "required-stream/body"]
if served.HAS_EVENTS:
    STREAMS += ["lines", "events"]


# --- how long ----------------------------------------------------------------------------------


async def follow(stage: Stage) -> Connection:
    """Have somebody wait for the permit of a stream that was called."""
    await stage.until(held=1)
    return await stage.wait("required", "next")


@pytest.mark.parametrize("prefix", LAYERS)
@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_holds_its_permit_until_its_last_chunk(stage: Stage, prefix: str, path: str) -> None:
    stage.prefix = prefix
    caller = await stage.call(path, "stream")
    following = await follow(stage)
    await stage.go()
    status, _ = await caller.read_head()
    assert status == 200
    assert b"0" in await caller.read_chunk()
    assert (await stage.state())["started"] == ["stream"]
    await stage.go()
    await stage.until(held=1, waiting=0)
    await caller.read_chunks()
    state = await stage.state()
    assert state["started"][-1] == "next"
    assert state["ended"] == ["stream"]
    await stage.go(2)
    assert (await following.read()).body == "next"


@pytest.mark.parametrize("path", ["stream", "required-stream"])
async def test_a_stream_may_give_its_permit_back_as_it_starts(stage: Stage, path: str) -> None:
    caller = await stage.call(f"{path}/handler", "stream")
    await stage.until(started=["stream"], held=0)
    await stage.go(2)
    await caller.read_head()  # which granian sends with the first chunk
    assert await caller.read_chunks() == b"0\n1\n"


@pytest.mark.parametrize("path", ["stream", "required-stream"])
async def test_a_stream_may_hold_its_permit_until_its_background_tasks_have_ended(
    stage: Stage, path: str
) -> None:
    caller = await stage.call(f"{path}/background", "stream?is_followed=1")
    following = await follow(stage)
    await stage.go(2)
    await caller.read_head()
    assert await caller.read_chunks() == b"0\n1\n"
    await stage.until(started=["stream", "stream after"], held=1, waiting=1)
    await stage.go(2)
    assert (await following.read()).body == "next"


@pytest.mark.parametrize(("hold", "held"), [("auto", 0), ("handler", 0), ("body", 0), ("background", 1)])
async def test_a_plain_response_holds_its_permit_as_it_says(stage: Stage, hold: str, held: int) -> None:
    caller = await stage.call(f"plain/{hold}", "plain?is_followed=1")
    assert (await caller.read()).body == "plain"
    await stage.until(started=["plain", "plain after"], held=held)
    await stage.go()


async def test_a_file_is_sent_without_the_permit(stage: Stage) -> None:
    caller = await stage.call("file", "file")
    status, headers = await caller.read_head()
    assert status == 200
    await stage.until(started=["file"], held=0)  # though most of it was not read
    await stage.hold("next")
    await stage.go()
    assert int(headers["content-length"]) == 16 * 1024 * 1024


async def test_head_is_answered_without_a_body(stage: Stage) -> None:
    holder = await stage.hold()
    caller = await stage.wait("work", "caller", method="HEAD")
    await stage.go(2)
    assert (await caller.read(has_body=False)).status == 200
    assert (await holder.read()).status == 200


# --- cut off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [*LAYERS, "/cancelling"])
@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_whose_client_leaves_passes_its_permit_on(
    stage: Stage, prefix: str, path: str
) -> None:
    stage.prefix = prefix
    caller = await stage.call(path, "stream", Connection="close")
    following = await follow(stage)
    await stage.go()
    await caller.read_head()
    await caller.read_chunk()
    await caller.close()
    state = await stage.until(waiting=0)
    assert "next" in state["started"]
    await stage.go(3)
    assert (await following.read()).body == "next"


async def test_a_reader_that_stalls_loses_the_permit(stage: Stage) -> None:
    caller = await stage.caller(limit=1024)
    await caller.send(stage.path("flood", "flood"))
    following = await follow(stage)
    await stage.until(started=["flood", "next"])
    await stage.go()
    assert (await following.read()).body == "next"
    stage.mishaps.sure.append("did not read on for 0.5 s (send_timeout)")


async def test_a_stream_that_is_held_for_too_long_is_cut_off(stage: Stage) -> None:
    await stage.go()
    caller = await stage.call("brief", "brief")
    await stage.until(started=["brief"])  # it is before the next, whatever the server does with connections
    following = await stage.call("brief", "next")
    await caller.read_head()
    await caller.read_chunk()
    asked = time.perf_counter()
    await stage.until(started=["brief", "next"], ended=["brief: CancelledError"])
    assert time.perf_counter() - asked < 10 * served.MAX_HOLD
    assert b"0\r\n\r\n" not in await caller.read_to_the_end()
    status, _ = await following.read_head()
    # granian sends the head with the first chunk, and so may not have sent it when this one is cut off.
    assert status in ((200, 500) if stage.kind == "granian" else (200,))
    stage.mishaps.sure.append("HoldExceeded")


async def test_what_goes_wrong_before_the_response_passes_the_permit_on(stage: Stage) -> None:
    caller = await stage.call("broken", "broken")
    following = await follow(stage)
    await stage.go(2)
    assert (await caller.read()).status == 500
    assert (await following.read()).body == "next"
    stage.mishaps.sure.append("ZeroDivisionError")


async def test_what_goes_wrong_in_a_stream_passes_the_permit_on(stage: Stage) -> None:
    caller = await stage.call("broken-stream", "broken")
    following = await follow(stage)
    await stage.go(2)
    await caller.read_head()
    assert b"0\r\n\r\n" not in await caller.read_to_the_end()
    assert (await following.read()).body == "next"
    stage.mishaps.sure.append("ZeroDivisionError")


# --- work whose client leaves ------------------------------------------------------------------


@pytest.mark.parametrize("path", ["work", "required"])
async def test_work_is_finished_though_its_client_has_left(stage: Stage, path: str) -> None:
    holder = await stage.hold(path=path)
    waiter = await stage.wait(path, "waiter")
    await holder.close()
    await waiter.close()
    await stage.until(waiting=0, held=1)
    await stage.go()
    await stage.until(ended=["holder"])


@pytest.mark.parametrize("path", ["work", "required"])
async def test_work_is_cancelled_as_its_client_leaves(stage: Stage, path: str) -> None:
    stage.prefix = "/cancelling"
    holder = await stage.hold(path=path)
    following = await stage.wait(path, "next")
    await holder.close()
    await stage.until(started=["holder", "next"], ended=["holder: CancelledError"])
    await stage.go()
    assert (await following.read()).body == "next"


# --- after the response ------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [*LAYERS, "/cancelling"])
@pytest.mark.parametrize("path", ["background", "detached"])
async def test_who_waits_after_the_response_is_not_bound_to_the_client(
    stage: Stage, prefix: str, path: str
) -> None:
    await stage.hold()
    stage.prefix = prefix
    caller = await stage.wait(path, "later")
    leaver = await stage.wait("work", "leaver", waiting=2)
    if (
        prefix != "/layered" or path == "detached"
    ):  # middleware ends a response when its background tasks have
        assert (await caller.read()).body == "later"
    await caller.close()
    await leaver.close()
    await stage.until(waiting=1)
    await stage.go(2)
    await stage.until(ended=["holder", "later"])
