"""What happens to tickets, told to observers: for logs, metrics and tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
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
    or `lost`; or `refused`, with a reason; or `withdrawn`, where whoever waited was cancelled.
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
class Observers:
    """Those who hear of the tickets of an AsyncGuard."""

    def __init__(self) -> None:
        self._observers: tuple[Observer, ...] = ()
        self._late: deque[Event] = deque()
        """What happened in finalisers, where observers can't be called: they may take locks."""

    def __bool__(self) -> bool:
        return bool(self._observers)

    def add(self, observer: Observer) -> None:
        """Have an observer hear of all that happens from now on."""
        self._observers = (*self._observers, observer)

    def remove(self, observer: Observer) -> None:
        """Have it hear no more."""
        self._observers = tuple(other for other in self._observers if other is not observer)

    def tell(self, event: Event) -> None:
        """Tell all of them, now, and first what is late."""
        self.catch_up()
        self._tell(event)

    def tell_later(self, event: Event) -> None:
        """Tell them as soon as the loop that runs here comes to it; where none does, with the next event."""
        self._late.append(event)
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().call_soon_threadsafe(self.catch_up)

    def catch_up(self) -> None:
        """Tell what happened in finalisers."""
        while self._late:
            try:
                event = self._late.popleft()
            except IndexError:  # another thread was faster
                return
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001
                _log.exception("observer %r failed on %r", observer, event)


@final
class Audience:
    """The observers of one ticket, who hear of each thing once, whichever thread sees it first."""

    __slots__ = ("_observers", "_to_hear_of_its_end", "_to_hear_of_its_grant")

    def __init__(self, observers: Observers) -> None:
        self._observers = observers
        # Emptied by whoever tells: to pop is atomic, also for a finaliser, which may take no lock.
        self._to_hear_of_its_grant = [observers]
        self._to_hear_of_its_end = [observers]

    def hear_it_entered(self, permit: Permit) -> None:
        """Hear that it asked to enter."""
        self._observers.tell(_picture("entered", permit))

    def hear_it_was_granted(self, permit: Permit) -> None:
        """Hear that it became a permit."""
        if self._to_hear_of_its_grant:
            with contextlib.suppress(IndexError):
                self._to_hear_of_its_grant.pop().tell(_picture("granted", permit))

    def hear_it_ended(self, kind: Kind, permit: Permit, refusal: Refused | None = None) -> None:
        """Hear how it ended."""
        if kind in _AFTER_GRANTS:
            self.hear_it_was_granted(permit)
        if self._to_hear_of_its_end:
            with contextlib.suppress(IndexError):
                self._to_hear_of_its_end.pop().tell(_picture(kind, permit, refusal))

    def hear_it_was_abandoned(self, kind: Kind, permit: Permit) -> None:
        """Hear how it ended once the finaliser that says so is over."""
        if self._to_hear_of_its_end:
            with contextlib.suppress(IndexError):
                self._to_hear_of_its_end.pop().tell_later(_picture(kind, permit))


def _picture(kind: Kind, permit: Permit, refusal: Refused | None = None) -> Event:
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
