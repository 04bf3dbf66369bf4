"""Refusals and losses on demand, so that an application's answers to them can be tested."""

# A guard offers nobody to put a fault in; tests may.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, final

from asyncguard import hub
from asyncguard.checks import check_number
from asyncguard.clock import TICKS
from asyncguard.keys import as_name
from asyncguard.permit import Permit
from asyncguard.testing._proxy import Proxy
from asyncguard.ticket import Outlook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from asyncguard.backends import Backend
    from asyncguard.hub import AsyncGuard
    from asyncguard.ticket import Ticket


@contextlib.contextmanager
def force_full(name: str, *, estimated_wait: float | None = 30.0) -> Iterator[None]:
    """Have the guards of a name refuse every new ticket as `QueueFull` while the block lasts.

    They are those of every AsyncGuard in this process. Who holds or waits is left alone. As with a
    queue that is really full, `acquire_nowait` raises `WouldBlock`. The refusal says `estimated_wait`,
    in seconds; None says, as a guard does at first, that too little is known.

    Raises, on entering the block:
        LookupError: no AsyncGuard has a guard of that name.
        TypeError, ValueError: the name can't be one, or the estimate isn't 0 or more.
    """
    estimate = None if estimated_wait is None else check_number("estimated_wait", estimated_wait, finite=True)
    families = _families_with(as_name(name))
    full = [_Full(ag.open(), name, estimate) for ag in families]
    for ag, backend in zip(families, full, strict=True):
        _put(ag, backend)
    try:
        yield
    finally:
        for ag, backend in zip(families, full, strict=True):
            backend.refuses = False
            if ag._backend is backend:
                _put(ag, backend.behind)


def force_lost(permit: Permit) -> None:
    """Take a permit away, as an operator or the end of its lease would; from any thread.

    It passes on at once. The work under it is cancelled and ends with `PermitLost`; that of a permit
    by hand, or of a guard with `on_lost="notify"`, only finds `permit.lost` set.

    Raises:
        TypeError: it isn't a permit.
        ValueError: it isn't held.
    """
    if not isinstance(permit, Permit):
        raise TypeError(f"permit: expected the Permit that a block or acquire() gave, got {permit!r}")
    known = permit._real
    if known.state != "held":
        raise ValueError(f"permit: expected one that is held, got {permit!r}")
    known.take_away()


def _families_with(name: str) -> list[AsyncGuard]:
    live = list(hub._live)
    families = [ag for ag in live if name in ag._guards]
    if not families:
        known = sorted({repr(guard) for ag in live for guard in ag._guards})
        raise LookupError(
            f"no AsyncGuard has a guard named {name!r}; there are: {', '.join(known) or 'none'}. A guard is "
            "known once it was declared: import the module that does it"
        )
    return families


def _put(ag: AsyncGuard, backend: Backend) -> None:
    """Have all guards use a backend that has the same partitions, without a moment between."""
    with ag._lock:
        ag._backend = backend
        for guard in ag._bound:
            guard.bound_to = backend


@final
class _Full(Proxy):
    """A backend that the tickets of one guard don't get through to."""

    def __init__(self, behind: Backend, guard: str, estimated_wait: float | None) -> None:
        super().__init__(behind)
        self.refuses = True
        """Not any more once the block has ended, even if this backend is still in somebody's use."""
        self._guard = guard
        self._estimate = None if estimated_wait is None else estimated_wait * TICKS

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        if not self.refuses or ticket.terms.guard.name != self._guard:
            return super().enter(ticket, wait=wait)
        if wait:
            ticket.state = "refused"
            ticket.reason = "full"
            rules = ticket.terms.guard.rules
            ticket.outlook = Outlook(self._estimate, rules.max_waiting or 0, rules.limit)
        return None
