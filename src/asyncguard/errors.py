"""The errors of AsyncGuard: short states, each saying what was wrong and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Reason = Literal[
    "full",
    "hopeless",
    "timeout",
    "too_large",
    "paused",
    "draining",
    "evicted",
    "superseded",
    "too_many_keys",
    "unavailable",
]
"""Why a ticket was refused: a closed set, the same in code, on HTTP and in metrics."""


Status = Literal[503, 429]


class GuardError(Exception):
    """Something about a guard went wrong; the base of every error here."""


class Refused(GuardError):
    """The guard did not let this ticket in, so its work did not run."""

    reason: ClassVar[Reason]

    def __init__(
        self,
        message: str | None = None,
        *,
        guard: str = "",
        key: str | None = None,
        estimated_wait: float | None = None,
    ) -> None:
        super().__init__(message or type(self).__doc__)
        self.guard = guard
        """Name of the guard that refused."""
        self.key = key
        """Key of the partition that refused; None where the guard has no key."""
        self.estimated_wait = estimated_wait
        """Seconds that a ticket entering now would wait; None where too little is known."""
        self.waiting: int | None = None
        """Tickets that waited; None where that isn't known."""
        self.limit: int | None = None
        """Permits of the key; None where that isn't known."""
        self.status: Status = 503
        """How to answer on HTTP where the caller asked too often: 429 if it is known who that is."""


class QueueFull(Refused):
    """As many tickets wait as the guard allows: try later, or raise `max_waiting`."""

    reason = "full"


class HopelessWait(Refused):
    """The queue is too long for the time this ticket is prepared to wait: try later."""

    reason = "hopeless"


class WaitTimeout(Refused):
    """The ticket waited for as long as it was prepared to and was not granted: try later."""

    reason = "timeout"


class TooLarge(Refused):
    """The ticket asks for more permits than the guard has: ask for fewer, or raise `limit`."""

    reason = "too_large"


class Paused(Refused):
    """The guard is paused by its operator and grants nothing: try once it is resumed."""

    reason = "paused"


class Draining(Refused):
    """This process is shutting down and lets nobody in: ask another one."""

    reason = "draining"


class Evicted(Refused):
    """An operator took this ticket out of the queue."""

    reason = "evicted"


class Superseded(Refused):
    """The ticket had already left when its request to enter arrived: enter with a new one."""

    reason = "superseded"


class TooManyKeys(Refused):
    """As many keys are in use as the guard allows: try later, or raise `max_keys`."""

    reason = "too_many_keys"


class BackendUnavailable(Refused):
    """The backend can't be asked, so nobody is let in: check that it runs and is reachable."""

    reason = "unavailable"


class WouldBlock(GuardError):
    """No permit is free right now: `await acquire()` to wait for one."""


class WouldDeadlock(GuardError):
    """This task already holds the permit it asks for: take the guard once, around all the work."""


class ClientLeft(GuardError):
    """The client that the work was for has left while its ticket waited, so nobody needs an answer."""


class PermitLost(GuardError):
    """The permit was taken away while the work ran, so the work was cancelled."""


class HoldExceeded(PermitLost):
    """The work ran for longer than the guard's `max_hold`, so it was cancelled."""


REFUSALS: Mapping[Reason, type[Refused]] = {cls.reason: cls for cls in Refused.__subclasses__()}
"""The error of each reason."""
