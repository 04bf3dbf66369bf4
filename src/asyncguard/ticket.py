"""What a guard declares, what a ticket asks for, and what a partition decides about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, final

from asyncguard.clock import TICKS

if TYPE_CHECKING:
    from asyncguard.admission import Partition
    from asyncguard.errors import Reason

Order = Literal["fifo", "lifo", "fair"]
State = Literal["new", "waiting", "held", "released", "withdrawn", "refused", "lost"]

_LONGEST = 1e9
NEW: State = "new"
ALL: Final = "all"
"""Every permit of a guard, whatever its limit is or becomes: `permits=ALL` is exclusive."""
EXCLUSIVE: Final = 0
"""How the terms of a ticket that asks for `ALL` say so."""


@final
@dataclass(frozen=True, slots=True)
class Rate:
    """A pace: `n` grants in `per` seconds, of which `burst` may come at once after a quiet time.

    Raises:
        TypeError: `n` or `burst` isn't a whole number, or `per` isn't a number.
        ValueError: `n` or `burst` is below 1, or `per` isn't above 0.
    """

    n: int
    per: float
    burst: int = 1

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("burst", self.burst)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"rate: expected {name} to be a whole number, got {value!r}")
            if not 1 <= value <= _LONGEST:
                raise ValueError(f"rate: expected {name} to be from 1 to 1e9, got {_shown(value)}")
        if not isinstance(self.per, int | float) or isinstance(self.per, bool):
            raise TypeError(f"rate: expected per to be a number of seconds, got {self.per!r}")
        if not 0 < self.per <= _LONGEST:
            raise ValueError(
                f"rate: expected per to be above 0 and at most 1e9 seconds, got {_shown(self.per)}"
            )

    @property
    def interval(self) -> int:
        """Ticks between two grants at this pace."""
        return max(1, round(self.per * TICKS / self.n))

    @property
    def tolerance(self) -> int:
        """Ticks by which grants may run ahead of the pace."""
        return (self.burst - 1) * self.interval


def _shown(value: float) -> str:
    """Write a number, but none that takes pages."""
    if isinstance(value, float) or abs(value) <= _LONGEST:
        return repr(value)
    return "more" if value > 0 else "less"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a guard declares about its partitions; those of the highest `revision` stand."""

    limit: int = 1
    max_waiting: int | None = 100
    order: Order = "fifo"
    rate: Rate | None = None
    max_keys: int = 100_000
    revision: int = 0


@final
@dataclass(frozen=True, slots=True)
class Declaration:
    """A guard's name with its rules, as they travel with each ticket."""

    name: str
    rules: Rules


@final
@dataclass(slots=True)
class Terms:
    """What a ticket asks for and on whose behalf: one object for all tickets that ask the same."""

    guard: Declaration
    owner: str = ""
    """Host and process of the client, for people to read."""
    permits: int = 1
    """How many permits it takes; `EXCLUSIVE` for all of them."""
    patience: int | None = None
    """Ticks that it is prepared to wait; None: for ever."""
    priority: int = 0
    """Its head start in ticks."""
    tenant: str = ""
    share: float = 1.0
    label: str = ""
    lease: int = 0
    """Ticks for which it is believed in unheard; 0 where the backend sees who is alive."""
    within: int | None = None
    """Ticks within which it wants to be done, work included; None: whenever."""
    plain: bool = field(init=False)
    """Whether it is for one permit, without head start, lease and hurry, as most are."""
    place: Any = field(init=False, default=None)
    """Where the backend last found the guard's state; its own affair."""

    def __post_init__(self) -> None:
        self.come_from(self.owner, self.lease)

    def come_from(self, owner: str, lease: int) -> None:
        """Note whose tickets these are: which client's, and how long its backend believes in them."""
        self.owner = owner
        self.lease = lease
        self.place = None
        self.plain = self.permits == 1 and not self.priority and not lease and self.within is None


@final
class Outlook(NamedTuple):
    """What a ticket meets that enters at some moment."""

    wait: float | None
    """Ticks that it would wait; None where too little is known."""
    waiting: int
    """Tickets that wait."""
    limit: int
    """Permits of the key."""


class Ticket:
    """One request to enter: what its client chose, and what its partition then decided.

    Made without a constructor, which would cost as much again as all the rest of entering: see
    `new_ticket`. What is annotated here and not set there is set by the step that gives it meaning.
    """

    __slots__ = (
        "arrival",
        "charged",
        "ended",
        "expires",
        "granted",
        "id",
        "key",
        "outlook",
        "partition",
        "reason",
        "score",
        "state",
        "terms",
    )

    id: int | str
    """Chosen by the client before anything is sent, and never used again; 0 where nobody asked yet."""
    terms: Terms
    key: str | None
    state: State
    partition: Partition
    """Where it holds or waits."""
    arrival: int
    """Tick at which it entered."""
    score: int
    """Its place in the order: the lowest is first."""
    granted: int
    """Tick of its grant, at least a microsecond after the one before it in the partition."""
    ended: int
    """Tick at which it stopped to hold."""
    expires: int
    """Tick at which its lease ends."""
    charged: float
    """What fair order charged its tenant for the grant."""
    reason: Reason
    """Why it was refused."""
    outlook: Outlook
    """What it met when it was refused."""

    def notify(self, interrupts: bool = False) -> bool:
        """Tell the client that the state was changed; False where nobody can hear it any more.

        `interrupts` says that the caller may be a finaliser or a signal handler, and so have come just
        as the client's loop fell asleep.
        """
        del interrupts
        return True


def new_ticket(ticket_id: int | str, terms: Terms, key: str | None = None) -> Ticket:
    """Make a ticket as its backend sees it."""
    ticket = Ticket()
    ticket.id = ticket_id
    ticket.terms = terms
    ticket.key = key
    ticket.state = "new"
    return ticket
