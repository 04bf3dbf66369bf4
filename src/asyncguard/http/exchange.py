"""One request and its response, or one WebSocket, as the guards under it see it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote

from asyncguard.errors import ClientLeft
from asyncguard.http.inbox import Inbox
from asyncguard.permit import Scope as ScopeOfTask

if TYPE_CHECKING:
    from asyncguard.http import OnDisconnect
    from asyncguard.http.asgi import Message, Receive, Scope, Send
    from asyncguard.permit import Hold, Permit

_QUOTABLE: Final = " !#$%&'()*+,/:;<=>?@[]^`{|}"
"""What may stand in a quoted string as it is, besides letters, digits and `_.-~`."""
_NAME: Final = "asyncguard.exchange"
_NO_BODY: Final = (204, 304)


@final
class Exchange:
    """Watches the client while a ticket waits, and holds permits for as long as they should be."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, on_disconnect: OnDisconnect, send_timeout: float
    ) -> None:
        self.inbox = Inbox(receive, self._client_left)
        self._scope = scope
        self._send = send
        self._cancels = on_disconnect == "cancel"
        self._send_timeout = send_timeout
        self._owner = ScopeOfTask(asyncio.current_task(), asyncio.get_running_loop())
        """Whose work ends when a permit that outlives its handler is lost."""
        self.is_open = True
        """Whether the response may still change; what is taken afterwards is no business of the client."""
        self._waiting: set[Permit] = set()
        self._working: list[Permit] = []
        """Permits whose work ends when the client leaves."""
        self._kept: list[tuple[Permit, Hold]] = []
        """Permits that end with the response, if their blocks don't end before."""
        self._taken_over: set[Permit] = set()
        """Those of them whose blocks have ended."""
        self._has_started = scope["type"] != "http"
        """Whether no header can tell of anything any more."""
        self._untold: list[Permit] = []
        """Permits that no header has told of."""
        self._preferred: float | None = None
        """Seconds that the client is prepared to wait for its answer, once a guard has asked."""
        self._has_asked = False

    @classmethod
    def of(cls, scope: Scope) -> Exchange | None:
        """Find the exchange of a request that is served further out already."""
        exchange: Exchange | None = scope.get(_NAME)
        return exchange

    # --- for guards ----------------------------------------------------------------------------

    @property
    def within(self) -> float | None:
        """Seconds within which the client wants its answer (RFC 7240, `Prefer: wait=10`); None: whenever."""
        if not self._has_asked:
            self._has_asked = True
            if self._scope["type"] == "http":
                self._preferred = preferred_wait(self._scope.get("headers", ()))
        return self._preferred

    def wait_begins(self, permit: Permit) -> None:
        """Watch the client while a ticket of its request waits.

        Raises:
            ClientLeft: it has left already.
        """
        if asyncio.get_running_loop() is not self._owner.loop:
            return
        self._waiting.add(permit)
        if self.inbox.has_left:
            raise ClientLeft
        self.inbox.watch()

    def wait_ends(self, permit: Permit) -> None:
        """Stop to watch it, if nothing else waits.

        Raises:
            ClientLeft: it left just now, and the ticket was granted.
        """
        if permit not in self._waiting:
            return
        self._waiting.discard(permit)
        if not self._waiting and not self._working:
            self.inbox.unwatch()
        if self.inbox.has_left and self.is_open:
            raise ClientLeft

    def granted(self, permit: Permit) -> None:
        """Note a permit, for as long as the response's headers can still tell of it."""
        if not self._has_started:
            self._untold.append(permit)
        if self._cancels and asyncio.get_running_loop() is self._owner.loop:
            # A WebSocket may take one for each message, so those that have ended are let go.
            self._working = [*(other for other in self._working if other.state == "held"), permit]
            self.inbox.watch()

    def keep(self, permit: Permit, hold: Hold) -> None:
        """End a permit with the response, which is before its block ends."""
        if self.is_open and self._scope["type"] == "http":
            self._kept.append((permit, hold))

    def take_over(self, permit: Permit, hold: Hold, response: object) -> None:
        """Hold the handler's permit for longer, if that is what `hold` means for what it returned."""
        if hold == "auto":
            kind: Any = type(response)
            hold = "body" if _is_stream(kind) else "handler"
        if hold == "handler" or not self.is_open or self._scope["type"] != "http":
            return
        self._taken_over.add(permit)
        self._kept.append((permit, hold))
        permit.pass_to(self._owner)

    def _client_left(self) -> None:
        for permit in list(self._waiting):
            permit.break_off(ClientLeft())
        for permit in self._working:
            if permit.state == "held":
                permit.interrupt(ClientLeft())

    # --- for the middleware --------------------------------------------------------------------

    def register(self) -> Scope:
        """Make the scope in which whoever is further in finds this exchange."""
        return {**self._scope, _NAME: self}

    def tell(self, message: Message) -> Message:
        """Add to the start of a response what is to be told of the permits taken until now."""
        if not self._untold and self._preferred is None:
            return message
        headers = [*message.get("headers", ())]
        if self._untold:
            headers.append((b"server-timing", server_timing(self._untold).encode()))
            self._untold = []
        if self._preferred is not None:
            headers.append((b"preference-applied", f"wait={self._preferred:.0f}".encode()))
            self._preferred = None
        if self._has_asked and not any(
            name.lower() == b"vary" and b"refer" in value for name, value in headers
        ):
            headers.append((b"vary", b"Prefer"))
        return {**message, "headers": headers}

    async def send(self, message: Message) -> None:
        """Send to the client, and end what ends with what was sent.

        Raises:
            TimeoutError: the client didn't read on.
        """
        kind = message["type"]
        if kind == "http.response.start":
            self._has_started = True
        if self._kept:
            if kind == "http.response.start":
                self._release("handler")
                if not _has_open_end(message):
                    self._release("auto")
            await self._send_in_time(message)
        else:
            await self._send(message)
        if kind in _ENDS and not message.get("more_body", False):
            self.close()

    async def _send_in_time(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._send_timeout):
                await self._send(message)
        except TimeoutError:
            raise TimeoutError(
                f"the client did not read on for {self._send_timeout:g} s (send_timeout), so its response is "
                "cut off and the permit passes on"
            ) from None

    def _release(self, *holds: Hold, error: BaseException | None = None) -> None:
        if not self._kept:
            return
        with contextlib.ExitStack() as stack:  # all of them, even if one was lost and says so
            for permit, hold in self._kept:
                if hold in holds:
                    stack.callback(self._end, permit, error)
            self._kept = [kept for kept in self._kept if kept[1] not in holds]

    def _end(self, permit: Permit, error: BaseException | None) -> None:
        if permit in self._taken_over:
            permit.close_block(error)
        else:
            permit.end()

    def close(self) -> None:
        """End what ends with the response."""
        self._untie()
        self.inbox.unwatch()
        self._release("auto", "handler", "body")

    def end(self, error: BaseException | None) -> None:
        """End the rest, as the application has ended.

        Raises:
            PermitLost: it was interrupted, as a permit was lost.
        """
        self._untie()
        self.inbox.close()
        self._release("auto", "handler", "body", "background", error=error)

    def _untie(self) -> None:
        """Have nothing that is still under way depend on the client."""
        self.is_open = False
        self._waiting.clear()
        self._working.clear()


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
_WAIT: Final = re.compile(r'wait\s*=\s*(?:(\d{1,9})|"(\d{1,9})")\s*(?:;.*)?', re.ASCII | re.IGNORECASE)


def preferred_wait(headers: Any) -> float | None:
    """Read `Prefer: wait=SECONDS` (RFC 7240); None where it isn't there, or isn't what it should be."""
    for name, value in headers:
        if name.lower() == b"prefer":
            for preference in _PREFERENCE.findall(value.decode("latin-1")):
                preferred = preference.partition("=")[0].partition(";")[0].strip().lower()
                if preferred == "wait":  # the first counts, whatever follows
                    match = _WAIT.fullmatch(preference.strip())
                    return float(match[1] or match[2]) if match else None
    return None


def server_timing(permits: list[Permit]) -> str:
    """Write a Server-Timing value: for each guard, milliseconds queued and worked until now.

    A guard that was taken more than once has one pair of entries with the sums.
    """
    sums: dict[str, tuple[float, float]] = {}
    for permit in permits:
        waited, held = sums.get(permit.guard, (0.0, 0.0))
        sums[permit.guard] = (waited + permit.waited, held + permit.held)
    return ", ".join(
        f'queue;desc="{_quotable(guard)}";dur={waited * 1000:.1f}, work;dur={held * 1000:.1f}'
        for guard, (waited, held) in sums.items()
    )


@functools.lru_cache
def _quotable(name: str) -> str:
    return quote(name, _QUOTABLE)
