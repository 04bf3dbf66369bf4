"""What a server receives for one exchange, by hand: no sockets, and a server that is easily offended."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse

from asyncguard import AsyncGuard, ClientLeft, Guard, HoldExceeded
from asyncguard.http.exchange import Exchange
from asyncguard.http.inbox import MOST_KEPT
from asyncguard.http.middleware import ExchangeMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from asyncguard.http.asgi import Message, Receive, Scope, Send

HTTP = {"type": "http", "method": "POST", "headers": []}
START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body"}
LEFT = {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Server:
    """Says what it is told to, to one question at a time, and notes when one is taken back."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[Message | BaseException] = asyncio.Queue()
        self.is_asked = False
        self.taken_back = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        assert not self.is_asked, "asked twice at once"
        self.is_asked = True
        try:
            said = await self.says.get()
        except asyncio.CancelledError:
            self.taken_back += 1
            raise
        finally:
            self.is_asked = False
        if isinstance(said, BaseException):
            raise said
        return said

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    def say(self, *messages: Message | BaseException) -> None:
        for message in messages:
            self.says.put_nowait(message)

    async def serve(self, app: Any, scope: dict[str, Any] = HTTP, **settings: Any) -> None:
        await ExchangeMiddleware(app, **settings)(dict(scope), self.receive, self.send)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    """Make a guard whose only permit is taken, and which is idle in the end."""
    guard = AsyncGuard().guard("report")
    yield guard
    picture = await guard.inspect()
    assert (picture.in_use, picture.waiting) == (0, 0)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "asyncguard: watch a client"]


async def settle() -> None:
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def wait_under(guard: Guard) -> str:
    try:
        async with guard:
            return "worked"
    except ClientLeft:
        return "left"


async def test_what_came_while_it_waited_is_received_in_order(server: Server, guard: Guard) -> None:
    received: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with guard:
            message: Message = {"more_body": True}
            while message["more_body"]:
                message = await receive()
                received.append(message["body"])
            await send(START)
            await send(END)

    async with guard:
        serving = asyncio.create_task(server.serve(app))
        server.say(piece(b"a"), piece(b"b"))
        await settle()
        assert server.says.empty()
    server.say(piece(b"c"), piece(b"d", more=False))
    await serving
    assert received == [b"a", b"b", b"c", b"d"]
    assert server.taken_back == 0


async def test_no_more_is_read_ahead_than_is_kept(server: Server, guard: Guard) -> None:
    pieces = [piece(bytes([number]) * (MOST_KEPT // 8)) for number in range(20)]
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with guard:
            received.extend([await receive() for _ in pieces])

    async with guard:
        serving = asyncio.create_task(server.serve(app))
        server.say(*pieces, LEFT)
        await settle()
        assert not server.is_asked
        assert server.says.qsize() == len(pieces) + 1 - 8
        assert not serving.done()
    await serving
    assert received == pieces


async def test_what_the_server_raises_goes_to_the_application(server: Server, guard: Guard) -> None:
    raised: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with guard:
            assert (await receive())["body"] == b"a"
            try:
                await receive()
            except OSError as error:
                raised.append(str(error))
            assert (await receive())["body"] == b"b"

    async with guard:
        serving = asyncio.create_task(server.serve(app))
        server.say(piece(b"a"), OSError("broken"))
        await settle()
        assert not server.is_asked, "whoever raised is left alone"
        assert not serving.done()
    server.say(piece(b"b"))
    await serving
    assert raised == ["broken"]


async def test_the_application_may_ask_whether_the_client_has_left(server: Server, guard: Guard) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        waiting = asyncio.create_task(wait_under(guard))
        await settle()
        seen.extend([await request.is_disconnected() for _ in range(3)])
        server.say(LEFT)
        await settle()
        seen.append(await request.is_disconnected())
        seen.append(await waiting)

    async with guard:
        await server.serve(app)
    assert seen == [False, False, False, True, "left"]
    assert server.taken_back == 0


async def test_a_message_outlives_the_task_that_asked_for_it(server: Server, guard: Guard) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waiting = asyncio.create_task(wait_under(guard))
        await settle()
        asking = asyncio.ensure_future(receive())
        await settle()
        asking.cancel()
        await settle()
        assert server.taken_back == 0
        server.say(piece(b"a"))
        assert (await receive())["body"] == b"a"
        server.say(LEFT)
        assert await waiting == "left"

    async with guard:
        await server.serve(app)


async def test_the_watch_begins_once_the_application_asks_no_more(server: Server, guard: Guard) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asking = asyncio.ensure_future(receive())
        await settle()
        waiting = asyncio.create_task(wait_under(guard))
        await settle()
        asking.cancel()  # its own question, which it may take back
        await settle()
        assert server.is_asked
        server.say(LEFT)
        assert await waiting == "left"

    async with guard:
        await server.serve(app)
    assert server.taken_back == 1


async def test_who_the_application_asks_for_is_seen_to_leave(server: Server, guard: Guard) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asking = asyncio.ensure_future(receive())
        await settle()
        waiting = asyncio.create_task(wait_under(guard))
        await settle()
        server.say(LEFT)
        assert await asking == LEFT
        assert await waiting == "left"

    async with guard:
        await server.serve(app)


async def test_two_that_ask_at_once_get_one_message_each(server: Server, guard: Guard) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asking = asyncio.gather(receive(), receive(), receive())
        await settle()
        server.say(piece(b"a"), piece(b"b"), piece(b"c"))
        assert [message["body"] for message in await asking] == [b"a", b"b", b"c"]

    await server.serve(app)


async def test_all_tickets_of_a_client_leave_with_it(server: Server, guard: Guard) -> None:
    other = guard.replace(name="other")
    results: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        results.extend(await asyncio.gather(wait_under(guard), wait_under(other)))
        results.append(await wait_under(guard))

    async with guard, other:
        serving = asyncio.create_task(server.serve(app))
        await settle()
        assert (await other.inspect()).waiting == 1
        server.say(LEFT)
        await serving
    assert results == ["left", "left", "left"]


async def test_the_watch_goes_on_while_one_of_two_waits(server: Server, guard: Guard) -> None:
    other = guard.replace(name="other")
    results: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        results.extend(await asyncio.gather(wait_under(guard), wait_under(other)))

    async with guard:
        async with other:
            serving = asyncio.create_task(server.serve(app))
            await settle()
        await settle()
        server.say(LEFT)
        await serving
    assert results == ["left", "worked"]


async def test_a_ticket_that_waits_on_another_loop_is_not_bound_to_the_client(
    server: Server, guard: Guard
) -> None:
    results: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        context = contextvars.copy_context()
        results.append(await asyncio.to_thread(context.run, asyncio.run, wait_under(guard)))

    async with guard:
        serving = asyncio.create_task(server.serve(app))
        while not (await guard.inspect()).waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        server.say(LEFT)
        await settle()
        assert (await guard.inspect()).waiting == 1
    await serving
    assert results == ["worked"]


@pytest.mark.parametrize("ends", ["response", "application"])
async def test_a_ticket_that_still_waits_at_the_end_is_set_free(
    server: Server, guard: Guard, ends: str
) -> None:
    waiting: list[asyncio.Task[str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waiting.append(asyncio.create_task(wait_under(guard)))
        await settle()
        if ends == "response":
            await send(START)
            await send(END)
            server.say(LEFT)
            await settle()
            assert not waiting[0].done()

    async with guard:
        await server.serve(app)
        await settle()
        assert not server.is_asked
    assert await waiting[0] == "worked"


async def test_no_question_is_asked_where_nobody_waits(server: Server, guard: Guard) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with guard:
            await settle()
            assert not server.is_asked

    await server.serve(app)


async def test_work_is_told_of_a_client_that_leaves_if_that_is_asked_for(
    server: Server, guard: Guard
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with guard:
            server.say(piece(b"a"), LEFT)
            await asyncio.Event().wait()

    await server.serve(app, on_disconnect="cancel")
    assert server.sent[0]["status"] == 499, "for whoever keeps the log"


@pytest.mark.parametrize("on_disconnect", ["finish", "cancel"])
async def test_a_websocket_that_takes_many_permits_keeps_none(
    server: Server, guard: Guard, on_disconnect: str
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(10):
            async with guard:
                pass
        served = Exchange.of(scope)
        assert served is not None
        assert not served._untold
        assert len(served._working) <= 1

    await server.serve(app, {"type": "websocket"}, on_disconnect=on_disconnect)


async def test_all_permits_of_a_stream_end_though_one_was_lost(server: Server, guard: Guard) -> None:
    brief = guard.replace(name="brief", max_hold=0.01)

    async def handle() -> StreamingResponse:
        return StreamingResponse([])

    guarded: Callable[[], Awaitable[object]] = brief(guard(handle))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await guarded()
        await send(START)
        await asyncio.Event().wait()

    with pytest.raises(HoldExceeded):
        await server.serve(app)
    assert (await brief.inspect()).in_use == 0
