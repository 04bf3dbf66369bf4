"""A queue kept in order, from which anything may leave at any time."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

_CHUNK = 512
"""Entries a chunk may hold before it is split: moving so many pointers costs less than a call."""


@final
class SortedQueue(Generic[T]):
    """Items in ascending (score, tie), in short sorted chunks.

    Adding at an end, taking the first, and leaving from the middle each cost a binary search over
    the chunks, one within a chunk, and moving at most `_CHUNK` pointers. (score, tie) is unique.
    """

    __slots__ = ("_chunks", "_lasts", "_size")

    def __init__(self) -> None:
        self._chunks: list[list[tuple[float, int, T]]] = []
        self._lasts: list[tuple[float, int, T]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        return (item for chunk in self._chunks for _, _, item in chunk)

    def first(self) -> T:
        """The item with the lowest score."""
        return self._chunks[0][0][2]

    def last(self) -> T:
        """The item with the highest score."""
        return self._lasts[-1][2]

    def rank(self, score: float, tie: int) -> int:
        """How many items come before (score, tie)."""
        place: Any = (score, tie)
        at = bisect_left(self._lasts, place)
        before = sum(map(len, self._chunks[:at]))
        return before + (bisect_left(self._chunks[at], place) if at < len(self._chunks) else 0)

    def add(self, score: float, tie: int, item: T) -> None:
        """Put an item in its place."""
        entry = (score, tie, item)
        self._size += 1
        lasts = self._lasts
        if not lasts:
            self._chunks.append([entry])
            lasts.append(entry)
            return
        if entry > lasts[-1]:
            at = -1
            chunk = self._chunks[-1]
            chunk.append(entry)
            lasts[-1] = entry
        else:
            at = bisect_left(lasts, entry)
            chunk = self._chunks[at]
            insort(chunk, entry)
        if len(chunk) > _CHUNK:
            self._split(at % len(lasts))

    def _split(self, at: int) -> None:
        chunk = self._chunks[at]
        half = len(chunk) // 2
        self._chunks.insert(at + 1, chunk[half:])
        del chunk[half:]
        self._lasts.insert(at, chunk[-1])

    def remove(self, score: float, tie: int) -> None:
        """Take out the item with exactly this score and tie.

        Raises:
            KeyError: no such item is here.
        """
        place: Any = (score, tie)
        chunks = self._chunks
        at = bisect_left(self._lasts, place)
        if at == len(chunks):
            raise KeyError(place)
        chunk = chunks[at]
        index = bisect_left(chunk, place)
        if chunk[index][1] != tie or chunk[index][0] != score:
            raise KeyError(place)
        del chunk[index]
        self._size -= 1
        if not chunk:
            del chunks[at], self._lasts[at]
        elif index == len(chunk):
            self._lasts[at] = chunk[-1]
