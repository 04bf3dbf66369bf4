"""What operators set, and what therefore stood: for certain, or perhaps."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
@dataclass(slots=True)
class _Candidate(Generic[T]):
    value: T
    client: str
    began: int
    over: int | None
    """When setting it was over; None: it isn't, perhaps as its client was killed."""


@final
class Setting(Generic[T]):
    """A value that some set and others go by; each setting takes effect somewhen while it is being made."""

    def __init__(self, value: T) -> None:
        self._candidates = [_Candidate(value, "", -1, -1)]
        """What may stand."""
        self.moments: list[int] = [-1]
        self._possible: list[frozenset[T]] = [frozenset([value])]

    def begin(self, client: str, value: T, at: int) -> None:
        """Hear that a client is about to set it."""
        self._candidates.append(_Candidate(value, client, at, None))
        self._note(at)

    def end(self, client: str, value: T, at: int) -> None:
        """Hear that it has; what was set before it began doesn't stand any more.

        Raises:
            ValueError: nothing was heard of its beginning.
        """
        for ended in self._candidates:
            if ended.client == client and ended.value == value and ended.over is None:
                break
        else:
            raise ValueError(f"{client!r} has set {value!r} at {at} without a record of being about to")
        ended.over = at
        self._candidates = [
            other for other in self._candidates if other.over is None or other.over >= ended.began
        ]
        self._note(at)

    def _note(self, at: int) -> None:
        self.moments.append(at)
        self._possible.append(frozenset(each.value for each in self._candidates))

    def between(self, since: int, until: int) -> frozenset[T]:
        """Tell which values may have stood somewhen between two moments, these included."""
        first = bisect_right(self.moments, since) - 1
        last = bisect_right(self.moments, until) - 1
        if first == last:
            return self._possible[first]
        return frozenset().union(*self._possible[first : last + 1])


@final
class Settings:
    """Limits and pauses of one partition: those of its key, and those of its guard as a whole."""

    def __init__(self, declared: int) -> None:
        self._declared = declared
        self.limit_of_all: Setting[int | None] = Setting(None)
        self.limit_of_key: Setting[int | None] = Setting(None)
        self.pause_of_all = Setting(value=False)
        self.pause_of_key = Setting(value=False)

    def limits(self, since: int, until: int) -> set[int]:
        """Tell which limits may have stood between two moments."""
        limits = set(self.limit_of_key.between(since, until))
        if None in limits:
            limits.remove(None)
            limits |= self.limit_of_all.between(since, until)
        return {self._declared if limit is None else limit for limit in limits}

    def was_paused(self, since: int, until: int) -> bool:
        """Whether nothing could be granted from the first moment to the second, for certain."""
        return False not in self.pause_of_all.between(since, until) or (
            False not in self.pause_of_key.between(since, until)
        )

    def may_be_paused(self, at: int) -> bool:
        """Whether a pause may stand."""
        return True in self.pause_of_all.between(at, at) or True in self.pause_of_key.between(at, at)

    @property
    def moments(self) -> set[int]:
        """When something may have changed."""
        settings = (self.limit_of_all, self.limit_of_key, self.pause_of_all, self.pause_of_key)
        return {moment for setting in settings for moment in setting.moments[1:]}
