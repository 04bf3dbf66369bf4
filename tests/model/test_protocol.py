"""Whatever the network does to what two clients and a server say, the protocol keeps its promises."""

from __future__ import annotations

import pytest
from protocol import Exploration, Setup, Step
from protocol_mutants import MUTANTS, QUEUE
from world import Violation

SETUPS = {
    "one client, whose clock is fast": Setup(
        rates=(101, 100), tickets=(1, 0), resends=1, crashes=1, stalls=1
    ),
    "two clients": Setup(depth=7),
    # a dead waiter stalls the queue: redisson#3004, #3730, #6150, #2883
    "one that crashes": Setup(rates=(99, 101), crashes=1, begins=QUEUE, depth=8),
    "one that stands still": Setup(rates=(101, 99), stalls=1, ticks=5, begins=QUEUE, depth=8),
    "requests sent again": Setup(rates=(99, 100), resends=2, begins=QUEUE, depth=7),
    "notices that come twice": Setup(tickets=(2, 1), duplicates=1, begins=QUEUE, depth=7),
    "a server that loses its data twice": Setup(losses=2, begins=QUEUE, depth=7),
    "all of it": Setup(
        rates=(99, 101),
        resends=1,
        duplicates=1,
        crashes=1,
        stalls=1,
        losses=1,
        begins=(Step("enter", 0), Step("enter", 1)),
        depth=5,
    ),
}


@pytest.mark.parametrize("name", SETUPS)
def test_every_interleaving_keeps_every_promise(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    explored = Exploration(SETUPS[name]).run()

    with capsys.disabled():
        print(f"\n{name}: {explored.states:,} states, {explored.steps:,} steps ", end="")
    assert explored.states > 10


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_protocol_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    mutant.make(monkeypatch)

    with pytest.raises(Violation):
        Exploration(mutant.setup).run()


@pytest.mark.parametrize("setup", {mutant.setup for mutant in MUTANTS.values()}, ids=lambda _: "")
def test_where_mutants_are_caught_nothing_is_wrong_without_them(setup: Setup) -> None:
    Exploration(setup).run()
