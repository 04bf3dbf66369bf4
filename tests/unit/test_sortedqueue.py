"""A SortedQueue is what a sorted list would be."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncguard import sortedqueue
from asyncguard.sortedqueue import SortedQueue

PLACES = st.tuples(st.integers(-3, 3), st.integers(0, 50))
"""A score, of which many are equal, and what tells them apart."""


@pytest.fixture(params=[2, 5, 512])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split chunks early, so that a few items make many."""
    monkeypatch.setattr(sortedqueue, "_CHUNK", request.param)


def same(queue: SortedQueue[str], plain: list[tuple[int, int]]) -> bool:
    ends = [queue.first(), queue.last()] == [str(plain[0]), str(plain[-1])] if plain else not queue
    return ends and len(queue) == len(plain) and list(queue) == [str(place) for place in plain]


@pytest.mark.usefixtures("chunk")
@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["add", "add", "remove", "pop", "rank"]), PLACES), max_size=80)
)
def test_it_is_what_a_sorted_list_would_be(steps: list[tuple[str, tuple[int, int]]]) -> None:
    queue: SortedQueue[str] = SortedQueue()
    plain: list[tuple[int, int]] = []
    for what, place in steps:
        at = bisect.bisect_left(plain, place)
        here = place in plain
        if what == "rank":
            assert queue.rank(*place) == at
        elif what == "add" and not here:
            queue.add(*place, str(place))
            plain.insert(at, place)
        elif what == "remove" and here:
            queue.remove(*place)
            del plain[at]
        elif what == "remove":
            with pytest.raises(KeyError):
                queue.remove(*place)
        elif what == "pop" and plain:
            queue.remove(*plain.pop(0))
        assert same(queue, plain)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("order", [1, -1, 7919])
def test_it_stays_in_order_whatever_order_things_come_and_leave_in(order: int) -> None:
    queue: SortedQueue[int] = SortedQueue()
    count = 2003  # a prime: steps of any length meet every number
    numbers = [index * order % count for index in range(count)]
    for number in numbers:
        queue.add(number, number, number)
    assert list(queue) == sorted(numbers)

    for number in numbers[: count - 3]:
        queue.remove(number, number)
    assert list(queue) == sorted(numbers[count - 3 :])
