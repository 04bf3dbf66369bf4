"""One request and its response, or one WebSocket, as the guards under it see it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from asyncio import get_running_loop
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote
from weakref import ref

from asyncguard.clock import TICKS
from asyncguard.errors import ClientLeft
from asyncguard.http.inbox import Inbox
from asyncguard.http.replies import SERVER_ERROR, HTTPReply, may_not_be_meant
from asyncguard.permit import Scope as ScopeOfTask
from asyncguard.permit import no_task, scope_var
from asyncguard.running import current_task, running_tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from asyncguard.http.asgi import Message, Receive, Scope, Send
    from asyncguard.permit import Hold, Permit

_QUOTABLE: Final = " !#$%&'()*+,/:;<=>?@[]^`{|}"
"""What may stand in a quoted string as it is, besides letters, digits and `_.-~`."""
NAME: Final = "asyncguard.exchange"
"""Of the member of an ASGI scope by which whoever is further in finds the exchange."""
_NO_BODY: Final = (204, 304)
_NOTHING: Final = (0, 0)
_TENTH: Final = TICKS // 10_000
"""Ticks in a tenth of a millisecond, in which Server-Timing counts."""
_HALF: Final = _TENTH // 2

# Bound once: to look up a method of an imported name costs as much as these calls.
_scope = scope_var.get
_set_scope = scope_var.set
_task_of = running_tasks.get


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """What whoever serves the request was told of exchanges; see `asyncguard.http.Installation`."""

    cancels: bool
    """Whether work ends when its client leaves."""
    send_timeout: float


@final
class Exchange(ScopeOfTask, HTTPReply):
    """Watches the client while a ticket waits, and holds permits for as long as they should be.

    It is the scope of the task that serves it: whose work ends when a permit is lost that outlives its
    handler. Most requests wait for nothing, and hold nothing beyond their handlers: what only others need is
    made when it is needed.
    """

    __slots__ = (
        "_around",
        "_base",
        "_has_started",
        "_inbox",
        "_is_http",
        "_is_meant",
        "_kept",
        "_preferred",
        "_receive",
        "_request",
        "_send",
        "_settings",
        "_taken_over",
        "_unread",
        "_untold",
        "_waiting",
        "_working",
        "held_back",
        "is_open",
        "served",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._request = scope
        self._receive = receive
        self._send = send
        self._settings = settings
        is_http = self._is_http = scope["type"] == "http"
        self.is_open = True
        """Whether the response may still change; what is taken afterwards is no business of the client."""
        self.held_back = None
        self._is_meant = False
        """Whether nothing is held back any more."""
        self._has_started = not is_http
        """Whether no header can tell of anything any more."""
        self._unread = is_http
        """Whether no guard has asked yet how long the client is prepared to wait."""
        self._preferred: float | None = None
        """How many seconds that is."""
        self._inbox: Inbox | None = None
        self._untold: list[Permit] | None = None
        """Permits that no header has told of."""
        self._waiting: tuple[Permit, ...] = ()
        self._working: tuple[Permit, ...] = ()
        """Permits whose work ends when the client leaves."""
        self._kept: tuple[tuple[Permit, Hold], ...] = ()
        """Permits that end with the response, if their blocks don't end before."""
        self._taken_over: tuple[Permit, ...] = ()
        """Those of them whose blocks have ended."""
        loop = get_running_loop()
        task = _task_of(loop) or current_task(loop)
        self.task = ref(task) if task is not None else no_task  # as Scope does it, in place
        self.loop = loop
        self.served = self
        around = self._around = _scope()
        """What the task does besides, as it makes this request in process."""
        self.innermost = self._base = (
            around.innermost if around is not None and around.task() is task else None
        )
        """The block around the request, if it is made in one."""
        _set_scope(self)

    @classmethod
    def of(cls, scope: Scope) -> Exchange | None:
        """Find the exchange of a request that is served further out already."""
        exchange: Exchange | None = scope.get(NAME)
        return exchange

    # --- for guards ----------------------------------------------------------------------------

    def within(self) -> float | None:
        """Tell the seconds within which the client wants its answer (RFC 7240, `Prefer: wait=10`)."""
        if self._unread:
            self._unread = False
            self._preferred = preferred_wait(self._request.get("headers", ()))
        return self._preferred

    def wait_begins(self, permit: Permit) -> None:
        """Watch the client while a ticket of its request waits.

        Raises:
            ClientLeft: it has left already.
        """
        if not self._is_here():
            return
        self._waiting = (*self._waiting, permit)
        inbox = self._open_inbox()
        if inbox.has_left:
            raise ClientLeft
        inbox.watch()

    def wait_ends(self, permit: Permit) -> None:
        """Stop to watch it, if nothing else waits.

        Raises:
            ClientLeft: it left just now, and the ticket was granted.
        """
        if permit not in self._waiting:
            return
        self._waiting = tuple(other for other in self._waiting if other is not permit)
        inbox = self._open_inbox()
        if not self._waiting and not self._working:
            inbox.unwatch()
        if inbox.has_left and self.is_open:
            raise ClientLeft

    def granted(self, permit: Permit) -> None:
        """Note a permit, for as long as the response's headers can still tell of it."""
        if not self.is_open:
            return
        if not self._has_started:
            if self._untold is None:
                self._untold = [permit]
            else:
                self._untold.append(permit)
        if self._settings.cancels and self._is_here():
            # A WebSocket may take one for each message, so those that have ended are let go.
            self._working = (*(other for other in self._working if other.state == "held"), permit)
            self._open_inbox().watch()

    def _is_here(self) -> bool:
        """Whether this is the loop that serves the request, and not one of a thread's own."""
        try:
            return get_running_loop() is self.loop
        except RuntimeError:  # a thread without one
            return False

    def keep(self, permit: Permit, hold: Hold) -> None:
        """End a permit with the response, which is before its block ends."""
        if self.is_open and self._is_http:
            self._kept = (*self._kept, (permit, hold))

    def take_over(self, permit: Permit, hold: Hold, response: object) -> None:
        """Hold the handler's permit for longer, if that is what `hold` means for what it returned."""
        if hold == "auto":
            kind: Any = type(response)
            hold = "body" if _is_stream(kind) else "handler"
        if hold == "handler" or not self.is_open or not self._is_http:
            return
        self._taken_over = (*self._taken_over, permit)
        self._kept = (*self._kept, (permit, hold))
        permit.pass_to(self)

    def _client_left(self) -> None:
        for permit in self._waiting:
            permit.break_off(ClientLeft())
        for permit in self._working:
            if permit.state == "held":
                permit.interrupt(ClientLeft())

    # --- for the middleware --------------------------------------------------------------------

    def receive(self) -> Awaitable[Message]:
        """Be what the application asks."""
        return self._open_inbox().receive()

    def _open_inbox(self) -> Inbox:
        if self._inbox is None:
            self._inbox = Inbox(self._receive, self._client_left)
        return self._inbox

    def _tell(self, message: Message) -> Message:
        """Add to the start of a response what is to be told of the permits taken until now."""
        headers = [*message.get("headers", ())]
        if self._untold is not None:
            headers.append((b"server-timing", server_timing(self._untold)))
            self._untold = None
        if self._preferred is not None:
            headers.append((b"preference-applied", b"wait=%d" % self._preferred))
            if not any(name.lower() == b"vary" and _VARIES.search(value) for name, value in headers):
                headers.append((b"vary", b"Prefer"))
        message = {**message}  # {**message, "headers": headers} takes longer
        message["headers"] = headers
        return message

    @property
    def can_answer(self) -> bool:
        """Whether nothing was answered yet."""
        return not self._has_started

    def send(self, message: Message) -> Awaitable[None]:
        """Send to the client, and end what ends with what is sent.

        Raises, once it is awaited:
            TimeoutError: the client didn't read on.
        """
        kind = message["type"]
        if kind == "http.response.start":
            if message["status"] == SERVER_ERROR and not self._is_meant and may_not_be_meant():
                return self.hold_back(message)
            if self._kept:
                return self._send_and_release(kind, message)
            self._has_started = True
            if self._untold is not None or self._preferred is not None:
                message = self._tell(message)
            send = self._send
            return send(message)
        if self.held_back is not None:
            return self.hold_back(message)
        if self._kept:
            return self._send_and_release(kind, message)
        if kind in _ENDS and not message.get("more_body", False):
            self.is_open = False
            if self._inbox is not None:
                self.close()
        send = self._send  # as Python 3.11 has a quick way to call methods by `self.`, and what else is
        return send(message)  # in an attribute only by a name of its own

    def pass_on(self, message: Message) -> Awaitable[None]:
        """Send it for certain."""
        self._is_meant = True
        return self.send(message)

    async def _send_and_release(self, kind: str, message: Message) -> None:
        if kind == "http.response.start":
            self._has_started = True
            message = {**message, "headers": [*message.get("headers", ())]}  # which may be read only once
            self._release("handler")
            if not _has_open_end(message):
                self._release("auto")
            if self._untold is not None or self._preferred is not None:
                message = self._tell(message)
        seconds = self._settings.send_timeout
        patience = asyncio.timeout(seconds)
        try:
            async with patience:
                await self._send(message)
        except TimeoutError:
            if not patience.expired():
                raise
            self._release("auto", "handler", "body", "background")
            raise TimeoutError(
                f"the client did not read on for {seconds:g} s (send_timeout), so its response is cut off "
                "and the permit passes on"
            ) from None
        if kind in _ENDS and not message.get("more_body", False):
            self.close()

    def _release(self, *holds: Hold, error: BaseException | None = None) -> None:
        with contextlib.ExitStack() as stack:  # all of them, even if one was lost and says so
            for permit, hold in self._kept:
                if hold in holds:
                    stack.callback(self._end, permit, error)
            self._kept = tuple(kept for kept in self._kept if kept[1] not in holds)

    def _end(self, permit: Permit, error: BaseException | None) -> None:
        if permit in self._taken_over:
            permit.close_block(error)
        else:
            permit.end()

    def close(self) -> None:
        """End what ends with the response."""
        self.is_open = False
        if self._inbox is not None:
            self._waiting = self._working = ()
            self._inbox.unwatch()
        if self._kept:
            self._release("auto", "handler", "body")

    def end(self, error: BaseException | None) -> None:
        """End the rest, as the application has ended.

        Raises:
            PermitLost: it was interrupted, as a permit was lost.
        """
        self.is_open = False
        self.served = None
        if self.innermost is self._base:
            _set_scope(self._around)
        # Else blocks are open that began here, and end further out.
        if self._inbox is not None:
            self._waiting = self._working = ()
            self._inbox.close()
        if self._kept:
            self._release("auto", "handler", "body", "background", error=error)


_ENDS: Final = (
    "http.response.body",
    "http.response.pathsend",
    "websocket.close",
    "websocket.http.response.body",
)


@functools.lru_cache
def _is_stream(kind: Any) -> bool:
    """Whether handlers that return such things stream: responses of Starlette, and of Litestar."""
    return any(
        base.__name__ in ("StreamingResponse", "Stream", "ASGIStreamingResponse") for base in kind.__mro__
    )


def _has_open_end(start: Message) -> bool:
    """Whether a response that starts like this is a stream: it says nothing of its length."""
    if start["status"] in _NO_BODY:
        return False
    return not any(name.lower() == b"content-length" for name, _ in start.get("headers", ()))


_PREFERENCE: Final = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
"""One of those that commas separate; a quoted string may have commas in it."""
_VARIES: Final = re.compile(rb"(?:^|,)\s*(?:prefer|\*)\s*(?:,|$)", re.IGNORECASE)
"""A value of Vary that says already that responses depend on Prefer."""
_WAIT: Final = re.compile(r'wait\s*=\s*(?:(\d{1,9})|"(\d{1,9})")\s*(?:;.*)?', re.ASCII | re.IGNORECASE)


def preferred_wait(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Read `Prefer: wait=SECONDS` (RFC 7240); None where it isn't there, or isn't what it should be.

    The names are in lower case, as ASGI has them.
    """
    for name, value in headers:
        if name == b"prefer":
            for preference in _PREFERENCE.findall(value.decode("latin-1")):
                preferred = preference.partition("=")[0].partition(";")[0].strip().lower()
                if preferred == "wait":  # the first counts, whatever follows
                    match = _WAIT.fullmatch(preference.strip())
                    return float(match[1] or match[2]) if match else None
    return None


def server_timing(permits: Sequence[Permit]) -> bytes:
    """Write a Server-Timing value: for each guard, milliseconds queued and worked until now.

    A guard that was taken more than once has one pair of entries with the sums.
    """
    if len(permits) == 1:
        waited, held = _times(permits[0])
        return _entries(permits[0].terms.guard.name, (waited + _HALF) // _TENTH, (held + _HALF) // _TENTH)
    sums: dict[str, tuple[int, int]] = {}
    for permit in permits:
        guard = permit.terms.guard.name
        waited, held = _times(permit)
        before = sums.get(guard, _NOTHING)
        sums[guard] = (before[0] + max(0, waited), before[1] + max(0, held))
    return b", ".join(
        [
            _entries(guard, (waited + _HALF) // _TENTH, (held + _HALF) // _TENTH)
            for guard, (waited, held) in sums.items()
        ]
    )


def _times(permit: Permit) -> tuple[int, int]:
    """For how many ticks it waited, and was held until now; by what its clock says, which may be below 0."""
    granted = permit.granted
    until = permit.backend.clock.now() if permit.state == "held" else permit.ended
    return granted - permit.arrival, until - granted


@functools.lru_cache
def _entries(guard: str, waited: int, held: int) -> bytes:
    """Write them in tenths of a millisecond: most requests wait for none, and many work for none."""
    name = quote(guard, _QUOTABLE)
    return f'queue;desc="{name}";dur={max(0, waited) / 10:.1f}, work;dur={max(0, held) / 10:.1f}'.encode()
