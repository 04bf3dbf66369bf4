"""The threads that talk to a Redis or Valkey server for one client: whatever its event loops do meanwhile."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from asyncguard.backends.lane import Lane
from asyncguard.backends.redis_rules import SCRIPT, SHA
from asyncguard.backends.redis_url import FAULTS, unavailable
from asyncguard.clock import TICKS
from asyncguard.errors import BackendUnavailable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from asyncguard.backends.redis_rules import Call

_log = logging.getLogger("asyncguard")
_OFTEN: Final = 16
"""How often a loop has to ask until it gets a lane of its own: many live for one request only."""
_MOST_AT_ONCE: Final = 100
"""Requests that are sent before the first of their answers is read."""
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
"""Seconds between two attempts to connect: twice as many after each that failed, up to here."""
_DETOUR: Final = 0.05
"""Seconds after which it is asked again for what is in a slot that was nowhere."""
_EACH: Final = 1.0
"""Seconds after which a listener that heard nothing asks whether the server is there."""
_DENIED: Final = 10.0
"""Seconds after which one that may not listen tries again."""
_PASSING: Final = (ReadOnlyError,)
"""Answers that say that the server can't decide just now."""
_ASTRAY: Final = {
    "MOVED": MovedError,
    "ASK": AskError,
    "TRYAGAIN": TryAgainError,
    "CLUSTERDOWN": ClusterDownError,
}
"""Answers of a cluster that say that a guard isn't there, or not wholly: its slot is elsewhere, or moving.

Newer versions of redis-py have errors for them, and take the word off; older ones leave it where it is.
Nothing follows where ASK points to. A guard's first key names its slot and isn't stored, so that a node says
ASK of all guards in a slot that it is about to give away: they rest until it has been given. Else a
script would run where a part of the guard is, and find that nobody holds anything.
"""
_LASTING: Final = (AuthenticationError, NoPermissionError)
"""What time won't mend."""


class Server(Protocol):
    """Where connections are made to; `asyncguard.backends.redis_url` makes it of a URL."""

    name: str
    """What people know it by; no password."""
    timeout: float
    """Seconds that anything asked of it may take."""
    in_cluster: bool
    """Whether it has only some of the slots; then channels are in slots, too."""

    def connect(self) -> Any:
        """Make a connection of redis-py, and connect it."""
        ...

    def has_moved(self, connection: Any) -> bool:
        """Tell whether connections would be made to elsewhere by now; may take its time."""
        ...

    def look_again(self, connection: Any) -> None:
        """Find out by a connection to it where the slots are that it hasn't got."""


class Receiver(Protocol):
    """For whom the threads work: they hold it weakly, and end when it is gone."""

    @property
    def expects_news(self) -> bool:
        """Whether notices may come: then the server is asked each second whether it is there."""
        ...

    def connected(self, moment: int) -> None:
        """Hear that a server answers, and what time it has there: microseconds since 1970."""
        ...

    def passes_on(self, server: Server, request: Request) -> bool:
        """Have a request sent by another courier, if it is for another server; False: it isn't."""
        ...

    def tick(self) -> float | None:
        """Do what time has brought; give the seconds until that is to be done again."""
        ...

    def end_overdue(self) -> float | None:
        """Tell those whose leases end; give the seconds until that is to be done again."""
        ...

    def heard(self, message: bytes) -> None:
        """Hear a notice."""

    def listens(self, *, anew: bool) -> None:
        """Hear that notices come from now on; `anew`: some may have been missed."""

    def out_of_reach(self, server: Server, key: str | None = None) -> None:
        """Hear that a server hasn't been reached for as long as anybody waits for that; or one key there."""


class Request:
    """Something to be sent, until it is answered, or isn't needed any more."""

    __slots__ = ("answered", "call", "failed", "sent")

    def __init__(
        self,
        call: Call,
        answered: Callable[[Any, int], None],
        failed: Callable[[BackendUnavailable, bool], bool],
    ) -> None:
        self.call = call
        self.answered = answered
        """Is called with the answer, and when it was first sent."""
        self.failed = failed
        """Is called with what is wrong, and whether the courier gives it up; else says whether to go on."""
        self.sent = 0

    @property
    def command(self) -> tuple[Any, ...]:
        """What is sent."""
        return ("EVALSHA", SHA, 1, self.call.key, *self.call.args)

    def bring(self, answer: Any) -> None:
        """Give the answer to whoever asked; if it can't be read, nothing else is held up by that."""
        try:
            self.answered(answer, self.sent)
        except Exception as error:  # noqa: BLE001 - it is told to whoever asked
            _log.exception("asyncguard can't read what the server answers")
            self.failed(BackendUnavailable(f"the server's answer can't be read: {error!r}"), True)


def _read(connection: Any) -> Any:
    """Read what a listener hears; None: a channel is elsewhere, which its courier finds out about guards."""
    try:
        return connection.read_response()
    except ResponseError as fault:
        if not _is_astray(fault):
            raise
        return None


def _is_astray(fault: ResponseError) -> bool:
    return isinstance(fault, (*_ASTRAY.values(),)) or str(fault).startswith((*_ASTRAY,))


def _explain(fault: ResponseError) -> object:
    if not _is_astray(fault):
        return fault
    return f"{fault}: it is one node of a cluster, and a cluster's URL is redis+cluster://host:6379/"


def _will_pass(fault: ResponseError) -> bool:
    return isinstance(fault, _PASSING) or str(fault).startswith(("BUSY", "UNKILLABLE", "LOADING"))


@final
class Listener(threading.Thread):
    """Hears notices on a connection of its own, and has it renewed when it ends."""

    def __init__(self, server: Server, receiver: Receiver, wake: Callable[[], None]) -> None:
        super().__init__(name="asyncguard: listener", daemon=True)
        self._server = server
        self._wake = wake
        self._receiver = weakref.ref(receiver)
        self._connection: Any = None
        self._sending = threading.Lock()
        self._channels: set[str] = set()
        self._news: deque[str] = deque()
        """Those of which the server hasn't been told."""
        self.has_moved = False
        """Whether another server has been found to be the one, and the courier hasn't connected to it yet."""
        self._over = threading.Event()
        self._pause = _FIRST_PAUSE
        self._was_denied = False

    def listen(self, channel: str) -> None:
        """Hear what comes on a channel, once the courier has said so to the server."""
        self._channels.add(channel)
        self._news.append(channel)

    def forget(self, channel: str) -> None:
        """Hear no more of what comes on a channel: it is another server's by now."""
        self._channels.discard(channel)

    def subscribe(self) -> None:
        """Say to the server what is to be heard; from the courier's thread."""
        channels = []
        with contextlib.suppress(IndexError):
            while True:
                channels.append(self._news.popleft())
        for command in self._subscriptions(channels):
            self._say(*command)

    def _subscriptions(self, channels: Iterable[str]) -> list[tuple[str, ...]]:
        if self._server.in_cluster:  # one command can't be about several slots
            return [("SSUBSCRIBE", channel) for channel in channels]
        return [("SUBSCRIBE", *channels)] if channels else []

    def stop(self) -> None:
        """Have it end, soon; from the courier's thread."""
        self._over.set()
        self._say("PING")

    def _say(self, *command: str) -> None:
        with self._sending:
            connection = self._connection
            if connection is not None:
                with contextlib.suppress(*FAULTS):  # its thread notices, too
                    connection.send_command(*command, check_health=False)

    # --- its thread ----------------------------------------------------------------------------

    def run(self) -> None:
        """Listen until it is told to stop."""
        is_new = True
        while not self._over.is_set():
            try:
                self._connect(anew=not is_new)
                self._listen()
            except NoPermissionError as fault:
                self._note_denial(fault)
            except FAULTS:
                pass  # that the server is out of reach is said by the courier, who asks it
            except Exception:  # noqa: BLE001 - notices are hints, and another connection may do
                _log.exception("asyncguard's listener of %s", self._server.name)
            finally:
                self._drop_connection()
            is_new = False
            self._over.wait(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _note_denial(self, fault: NoPermissionError) -> None:
        self._pause = _DENIED
        if not self._was_denied:
            self._was_denied = True
            _log.warning(
                "asyncguard hears no notices from %s: %s. Grants are found out within a second instead; "
                "give the user `&asyncguard:*`",
                self._server.name,
                fault,
            )

    def _connect(self, *, anew: bool) -> None:
        connection = self._server.connect()
        with self._sending:
            self._connection = connection
            for command in self._subscriptions(list(self._channels)):
                connection.send_command(*command, check_health=False)
        receiver = self._receiver()
        if receiver is not None:
            receiver.listens(anew=anew)

    def _listen(self) -> None:
        connection = self._connection
        is_quiet = False
        looked = time.monotonic()
        while not self._over.is_set():
            if time.monotonic() - looked >= _EACH and self._expects_news():
                looked = time.monotonic()
                if self._server.has_moved(connection):
                    self.has_moved = True
                    self._wake()
                    return
            if connection.can_read(timeout=_EACH):
                is_quiet = False
                answer = _read(connection)
                self._pause = _FIRST_PAUSE
                self._hear(answer)
            elif self._expects_news():
                if is_quiet:
                    raise TimeoutError("the server doesn't answer")
                is_quiet = True
                self._say("PING")

    def _expects_news(self) -> bool:
        receiver = self._receiver()  # not for longer: it may be dropped meanwhile
        return receiver is not None and receiver.expects_news

    def _hear(self, answer: Any) -> None:
        receiver = self._receiver()
        if receiver is None or not isinstance(answer, list):  # such as PONG, where nothing is listened to yet
            return
        if answer[0] in (b"message", b"smessage"):
            receiver.heard(answer[2])
        elif answer[0] in (b"subscribe", b"ssubscribe", b"sunsubscribe"):  # the last: a slot has moved
            receiver.listens(anew=False)

    def _drop_connection(self) -> None:
        with self._sending:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*FAULTS):
                connection.disconnect()


@final
class Watch(threading.Thread):
    """Tells holders in time that their leases end; it asks no server, so that none can keep it from that."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__(name="asyncguard: watch", daemon=True)
        self._receiver = weakref.ref(receiver, lambda _: self.stop())
        self._changed = threading.Event()
        self._is_over = False
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done once nothing of it is left."""

    def wake(self) -> None:
        """Have it look, as a lease may end sooner now."""
        self._changed.set()

    def stop(self) -> None:
        """Have it end."""
        self._is_over = True
        self._changed.set()

    def run(self) -> None:
        """Watch until it is told to stop."""
        while not self._is_over:
            self._changed.wait(self._look())
            self._changed.clear()
        self.ended.set_result(None)

    def _look(self) -> float | None:
        receiver = self._receiver()  # not for longer: it may be dropped meanwhile
        try:
            return 0 if receiver is None else receiver.end_overdue()
        except Exception:  # noqa: BLE001 - of some application's: all others are to be told nevertheless
            _log.exception("asyncguard's watch")
            return _FIRST_PAUSE


@final
class Courier(threading.Thread):
    """Sends requests in order on one connection, and brings the answers."""

    def __init__(self, server: Server, receiver: Receiver, now: Callable[[], int]) -> None:
        super().__init__(name="asyncguard: courier", daemon=True)
        self.listener = Listener(server, receiver, self.wake)
        self._server = server
        self._receiver = weakref.ref(receiver, lambda _: self.stop())
        self._now = now
        self._inbox: queue.SimpleQueue[Request | asyncio.AbstractEventLoop | None] = queue.SimpleQueue()
        """Also from finalisers: it needs no lock that these may hold already."""
        self._waiting: deque[Request] = deque()
        """Taken out of there, and not answered yet."""
        self._lanes: dict[asyncio.AbstractEventLoop, Lane | None] = {}
        """Of loops that ask often; None: one is being opened."""
        self._asked: dict[asyncio.AbstractEventLoop, int] = {}
        """How often other loops have."""
        self._openings: list[asyncio.AbstractEventLoop] = []
        self._connection: Any = None
        self._is_over = False
        self._down_since: float | None = None
        self._fault: BaseException | None = None
        self._has_told = False
        """Whether it was said that the server is out of reach."""
        self._pause = self._retry_at = 0.0
        self._aside: deque[Request] = deque()
        """Those of guards whose slots are nowhere at the moment; the node's others don't wait for them."""
        self._aside_until = 0.0
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done once nothing of it is left."""

    def send(self, request: Request) -> None:
        """Have something sent, after what was given before."""
        self._inbox.put(request)
        if self._is_over:
            self._fail_all()

    def send_from(self, loop: asyncio.AbstractEventLoop | None, request: Request) -> None:
        """Have something sent by whatever runs on a loop: by its own lane, if it has one."""
        lane = self._lanes.get(loop) if loop is not None else None
        if lane is not None and lane.is_open:
            lane.send(request)
            return
        self.send(request)
        if loop is not None and loop not in self._lanes:
            self._count(loop)

    def _count(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count what a loop asks; if it asks often, have a lane opened for it."""
        asked = self._asked.get(loop)
        if asked is None:
            self._forget_closed_loops()
            asked = 0
        self._asked[loop] = asked + 1
        if asked + 1 == _OFTEN:
            self._lanes[loop] = None
            self._inbox.put(loop)

    def _forget_closed_loops(self) -> None:
        for loop in [loop for loop in list(self._asked) if loop.is_closed()]:
            self._asked.pop(loop, None)
            lane = self._lanes.pop(loop, None)
            if lane is not None:
                lane.close()

    def wake(self) -> None:
        """Have it see what time has brought, as that may come sooner now."""
        self._inbox.put(None)

    def stop(self) -> None:
        """Have it end, once what was given before is answered or can't be."""
        self._is_over = True
        self._inbox.put(None)

    # --- its thread ----------------------------------------------------------------------------

    def run(self) -> None:
        """Work until it is told to stop."""
        self.listener.start()
        try:
            while True:
                pause = self._tick()
                self._collect(pause)
                self.listener.subscribe()
                if self.listener.has_moved:
                    self.listener.has_moved = False
                    self._drop_connection()
                    self._close_lanes()
                if self._waiting:
                    self._deliver()
                    self._open_lanes()
                elif self._is_over and not self._aside:
                    break
        except BaseException as fault:  # noqa: BLE001 - it is told to whoever waits
            self._fault = fault
            _log.exception("asyncguard's courier of %s", self._server.name)
        finally:
            self._is_over = True
            self._drop_connection()
            self._close_lanes()
            self._fail_all()
            self.listener.stop()
            self.listener.join()
            self.ended.set_result(None)

    def _tick(self) -> float | None:
        receiver = self._receiver()
        if receiver is None:
            self._is_over = True
            return 0
        if self._is_over:
            return 0
        return receiver.tick()

    def _collect(self, pause: float | None) -> None:
        """Take what was given; wait for it if there is nothing else to do."""
        now = time.monotonic()
        if self._aside and self._aside_until <= now:
            self._waiting.extend(self._aside)
            self._aside.clear()
        if self._waiting:
            pause = max(0.0, self._retry_at - now)
        elif self._aside:
            left = self._aside_until - now
            pause = left if pause is None or self._is_over else min(pause, left)
        elif self._is_over:
            pause = 0.0
        with contextlib.suppress(queue.Empty):
            request = self._inbox.get(timeout=pause) if pause is None or pause else self._inbox.get_nowait()
            while True:
                if isinstance(request, Request):
                    self._waiting.append(request)
                elif request is not None:
                    self._openings.append(request)
                request = self._inbox.get_nowait()

    def _open_lanes(self) -> None:
        """Connect the loops that ask often, if all is well."""
        while self._openings and self._connection is not None:
            loop = self._openings.pop()
            try:
                connection = self._server.connect()
            except FAULTS:
                self._lanes.pop(loop, None)
                continue
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile
                loop.call_soon_threadsafe(self._open_lane, loop, connection)

    def _open_lane(self, loop: asyncio.AbstractEventLoop, connection: Any) -> None:
        """Open a loop's lane, on that loop."""
        if self._is_over:
            return
        with contextlib.suppress(NotImplementedError):  # it can't watch sockets: then the courier does all
            lane = Lane(connection, loop, self._now, self._server.timeout / 4, self._take_back)
            self._lanes[loop] = lane

    def _close_lanes(self) -> None:
        for lane in list(self._lanes.values()):
            if lane is not None:
                lane.close_from_elsewhere()

    def _take_back(self, request: Request, lane: Lane) -> None:
        """Take what a lane couldn't see to, or could no more."""
        if not lane.is_open and self._lanes.get(lane.loop) is lane:
            del self._lanes[lane.loop]
            self._asked[lane.loop] = 0
        self.send(request)

    def _deliver(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        began = time.monotonic()
        try:
            if self._connection is None:
                self._connect()
                self._pass_on()
            if self._waiting:
                self._exchange()
        except FAULTS as fault:
            self._drop_connection()
            self._note_outage(fault, began)

    def _connect(self) -> None:
        connection = self._server.connect()
        self._connection = connection
        began = self._now()
        connection.send_command("TIME", check_health=False)
        seconds, microseconds = connection.read_response()
        moment = int(seconds) * 1_000_000 + int(microseconds)
        receiver = self._receiver()
        if receiver is not None:
            receiver.connected(moment - (self._now() - began) // 2000)

    def _exchange(self) -> None:
        """Send some of what waits, and read the answers."""
        connection = self._connection
        batch = [self._waiting[i] for i in range(min(_MOST_AT_ONCE, len(self._waiting)))]
        now = self._now()
        for request in batch:
            request.sent = request.sent or now
        connection.send_packed_command(
            connection.pack_commands(request.command for request in batch), check_health=False
        )
        has_script = True
        astray: dict[Request, ResponseError] = {}
        for request in batch:
            try:
                answer = connection.read_response()
            except NoScriptError:
                has_script = False
                self._waiting.rotate(-1)  # to the end, in their order
                continue
            except ResponseError as fault:
                if self._server.in_cluster and _is_astray(fault):
                    astray[request] = fault
                    self._waiting.rotate(-1)
                    continue
                if _will_pass(fault):
                    raise
                self._waiting.popleft().failed(unavailable(self._server.name, _explain(fault)), True)
            else:
                self._waiting.popleft()
                request.bring(answer)
            self._note_answer()
        if not has_script:
            connection.send_command("SCRIPT LOAD", SCRIPT, check_health=False)
            connection.read_response()
        if astray:
            self._redirect(astray)

    def _redirect(self, astray: dict[Request, ResponseError]) -> None:
        """Have requests go where their guards are by now; else they are sent here again, after a pause."""
        self._server.look_again(self._connection)
        self._pass_on()
        hopeless: set[str] = set()
        if not self._aside:
            self._aside_until = time.monotonic() + _DETOUR
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            fault = astray.get(request)
            if fault is None:
                self._waiting.append(request)
                continue
            if self._now() - request.sent > self._server.timeout * TICKS:
                hopeless.add(request.call.key)
                error = unavailable(
                    self._server.name,
                    f"nobody has all of the guard's slot for now ({fault})",
                )
                if not request.failed(error, self._is_over):
                    continue
            self._aside.append(request)
        receiver = self._receiver()
        if receiver is not None:
            for key in hopeless:
                receiver.out_of_reach(self._server, key)

    def _pass_on(self) -> None:
        """Give to other couriers what is theirs, as far as that is known by now."""
        self._waiting = deque(request for request in self._waiting if not self._is_for_another(request))

    def _is_for_another(self, request: Request) -> bool:
        receiver = self._receiver()
        return receiver is not None and receiver.passes_on(self._server, request)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*FAULTS):
                connection.disconnect()

    def _note_answer(self) -> None:
        """Note that it has answered a request: one that is read-only tells the time, and no more."""
        self._down_since = self._fault = None
        if self._has_told:
            self._has_told = False
            _log.warning("the server %s answers again", self._server.name)

    def _note_outage(self, fault: BaseException, began: float) -> None:
        self._fault = fault
        if self._down_since is None:
            first = self._waiting[0].sent if self._waiting else 0
            unheard = (self._now() - first) / TICKS if first else 0.0
            self._down_since = min(began, time.monotonic() - unheard)
            self._pause = 0.0  # perhaps only this connection had ended
        now = time.monotonic()
        self._pass_on()
        self._retry_at = now + self._pause
        self._pause = min(2 * self._pause + _FIRST_PAUSE, _LONGEST_PAUSE, self._server.timeout / 4)
        if now - self._down_since >= self._server.timeout or self._is_over or isinstance(fault, _LASTING):
            error = unavailable(self._server.name, fault)
            if not self._has_told:
                self._has_told = True
                _log.warning(
                    "%s: nobody is let in, and who holds a permit keeps it until its lease ends", error
                )
            self._waiting = deque(
                request for request in self._waiting if request.failed(error, self._is_over)
            )
            receiver = self._receiver()
            if receiver is not None:
                receiver.out_of_reach(self._server)

    def _fail_all(self) -> None:
        error = unavailable(self._server.name, self._fault or "it is being closed; try again")
        with contextlib.suppress(queue.Empty):
            while True:
                request = self._inbox.get_nowait()
                if isinstance(request, Request):
                    self._waiting.append(request)
        self._waiting.extend(self._aside)
        self._pass_on()
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.popleft().failed(error, True)
