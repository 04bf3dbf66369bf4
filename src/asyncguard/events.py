"""What happens to tickets, told to observers: for logs, metrics and tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, final

from asyncguard.clock import TICKS
from asyncguard.ticket import ALL

if TYPE_CHECKING:
    from asyncguard.errors import Reason, Refused
    from asyncguard.permit import Permit

Kind = Literal["entered", "granted", "refused", "withdrawn", "released", "lost"]

_AFTER_GRANTS = ("released", "lost")

_log = logging.getLogger("asyncguard")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a ticket.

    Of each ticket an observer hears `entered` first. Then either `granted`, and in the end `released`
    or `lost`; or `refused`, with a reason; or `withdrawn`, where whoever waited was cancelled. Work whose
    permit is `lost` may go on for a while: until it is cancelled, or, with `on_lost="notify"`, ends.
    """

    kind: Kind
    guard: str
    key: str | None
    ticket: str
    """Its id, as `inspect` tells it and `evict` takes it."""
    label: str
    owner: str
    tenant: str
    permits: int | Literal["all"]
    at: float
    """Seconds since 1970 at which it happened."""
    waited: float
    """Seconds from entering until it was granted or gave up."""
    held: float | None
    """Seconds from the grant until it ended; None unless it is `released` or `lost`."""
    token: int | None
    """The fencing token; None unless it was granted."""
    reason: Reason | None
    """Why it was refused; None unless it was."""
    estimated_wait: float | None
    """Seconds that a ticket would have waited that entered when this one was refused, if that is known."""


class Observer(Protocol):
    """Whatever can be called with an event."""

    def __call__(self, event: Event, /) -> object:
        """Hear of an event: at once, in the thread where it happened, so don't block."""


@final
class Observation:
    """An observer, from when it came until it is told no more."""

    __slots__ = ("ended", "observer")

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.ended = False


@final
class Observers:
    """Those who hear of the tickets of an AsyncGuard."""

    def __init__(self) -> None:
        self.observations: tuple[Observation, ...] = ()
        self.late: deque[Audience] = deque()
        """Those to whom something happened in a finaliser, where observers can't be called: they may lock."""

    def __bool__(self) -> bool:
        return bool(self.observations)

    def add(self, observer: Observer) -> Observation:
        """Have an observer hear of the tickets that enter from now on."""
        observation = Observation(observer)
        self.observations = (*self.observations, observation)
        return observation

    def remove(self, observation: Observation) -> None:
        """Have it hear no more."""
        observation.ended = True
        self.observations = tuple(other for other in self.observations if other is not observation)

    def catch_up(self) -> None:
        """Tell what happened in finalisers."""
        while self.late:
            try:
                audience = self.late.popleft()
            except IndexError:  # another thread was faster
                return
            audience.listen()


@final
class Audience:
    """Those who hear of one ticket: what happened, in order, each thing once, whoever saw it.

    One thread at a time tells; what others see meanwhile, or observers do themselves, comes after.
    """

    __slots__ = ("_all", "_has_ended", "_observations", "_pending", "_telling", "_was_granted")

    def __init__(self, observers: Observers) -> None:
        self._all = observers
        self._observations = observers.observations
        self._pending: deque[tuple[Kind, Permit, Refused | None]] = deque()
        self._telling = threading.Lock()
        self._telling.acquire()  # nobody tells before its entering is told
        self._was_granted = self._has_ended = False

    def hear_it_entered(self, permit: Permit) -> None:
        """Hear that it asked to enter; before this nothing of it is told."""
        self._all.catch_up()
        self._tell("entered", permit, None)
        self._telling.release()
        self.listen()

    def hear(self, kind: Kind, permit: Permit, refusal: Refused | None = None) -> None:
        """Hear what happened to it."""
        self._pending.append((kind, permit, refusal))
        self.listen()

    def hear_later(self, kind: Kind, permit: Permit) -> None:
        """Hear it as soon as the loop that runs here comes to it; where none does, with the next ticket."""
        self._pending.append((kind, permit, None))
        self._all.late.append(self)
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon_threadsafe(self._all.catch_up)

    def listen(self) -> None:
        """Tell what is pending, unless somebody does already, who then comes to it."""
        while self._pending and self._telling.acquire(blocking=False):
            try:
                while self._pending:
                    self._take(*self._pending.popleft())
            finally:
                self._telling.release()

    def _take(self, kind: Kind, permit: Permit, refusal: Refused | None) -> None:
        after_grant = kind == "granted" or kind in _AFTER_GRANTS
        if self._has_ended:
            return
        if after_grant and not self._was_granted:
            self._was_granted = True
            self._tell("granted", permit, None)
        if kind != "granted":
            self._has_ended = True
            self._tell(kind, permit, refusal)

    def _tell(self, kind: Kind, permit: Permit, refusal: Refused | None) -> None:
        event = _picture(kind, permit, refusal)
        for observation in self._observations:
            if not observation.ended:
                try:
                    observation.observer(event)
                except (Exception, asyncio.CancelledError):  # noqa: BLE001
                    _log.exception("observer %r failed on %r", observation.observer, event)


def _picture(kind: Kind, permit: Permit, refusal: Refused | None) -> Event:
    terms = permit.terms
    clock = permit.backend.clock
    was_granted = kind == "granted" or kind in _AFTER_GRANTS
    at = permit.arrival if kind == "entered" else permit.granted if kind == "granted" else clock.now()
    return Event(
        kind=kind,
        guard=permit.guard,
        key=permit.key,
        ticket=str(permit.id),
        label=terms.label,
        owner=terms.owner,
        tenant=terms.tenant,
        permits=terms.permits or ALL,
        at=(at + clock.epoch) / TICKS,
        waited=permit.waited if was_granted else max(0, at - permit.arrival) / TICKS,
        held=permit.held if kind in _AFTER_GRANTS else None,
        token=permit.token if was_granted else None,
        reason=None if refusal is None else refusal.reason,
        estimated_wait=None if refusal is None else refusal.estimated_wait,
    )
