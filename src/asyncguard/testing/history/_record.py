"""What happened, as it was noted by whoever did it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final, get_args

from asyncguard.ticket import ALL

if TYPE_CHECKING:
    from collections.abc import Mapping

OfTicket = Literal[
    "asking",
    "queued",
    "granted",
    "working",
    "worked",
    "released",
    "refused",
    "withdrawn",
    "lost",
    "wrote",
    "stale",
]
OfGuard = Literal["limiting", "limited", "pausing", "paused", "resuming", "resumed"]
OfClient = Literal["killed", "stopped", "continued"]
Kind = OfTicket | OfGuard | OfClient

OF_TICKETS = frozenset(get_args(OfTicket))
OF_GUARDS = frozenset(get_args(OfGuard))
OF_CLIENTS = frozenset(get_args(OfClient))
_KINDS = OF_TICKETS | OF_GUARDS | OF_CLIENTS


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that happened.

    What is named in -ing is noted before it is done, as `killed` is; all else afterwards. The difference
    matters: from it follows what was so for certain at a moment, and what may have been.

    Raises:
        ValueError: the kind isn't known, or something is missing that it needs.
    """

    kind: Kind
    at: int
    """Nanoseconds of the host's monotonic clock, which all of its processes have in common."""
    client: str
    """The process that it happened to; for `killed`, `stopped` and `continued` not the one that noted it."""
    ticket: str | None = None
    """Which one, by a name that no other ticket of the history has."""
    guard: str | None = None
    """Of `asking`, and of what is done to a guard."""
    key: str | None = None
    """Beside the guard; of what is done to a guard, None means all keys."""
    permits: int | Literal["all"] = 1
    """Of `asking`: how many."""
    priority: float = 0.0
    """Of `asking`."""
    token: int | None = None
    """Of `granted`."""
    limit: int | None = None
    """Of `limiting` and `limited`; None clears what was set."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(sorted(_KINDS))}, got {self.kind!r}")
        for name, is_missing in (
            ("ticket", self.ticket is None and self.kind in OF_TICKETS),
            ("guard", self.guard is None and (self.kind == "asking" or self.kind in OF_GUARDS)),
            ("token", self.token is None and self.kind == "granted"),
        ):
            if is_missing:
                raise ValueError(f"{name}: expected one, as it is {self.kind!r}, got none")
        if self.permits != ALL and not (isinstance(self.permits, int) and self.permits > 0):
            raise ValueError(f"permits: expected a whole number above 0 or 'all', got {self.permits!r}")

    def as_json(self) -> Mapping[str, object]:
        """Name its fields, leaving out those that are as usual."""
        return {
            name: value
            for name in self.__slots__
            if (value := getattr(self, name)) != self.__dataclass_fields__[name].default
        }
