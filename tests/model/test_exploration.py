"""Every interleaving of three clients, and whatever else may happen, keeps every rule of admission."""

from __future__ import annotations

import pytest
from exploration import explore
from world import BURST, PACE, Ask, Setup

ONES = (Ask(), Ask(), Ask())
MIXED = (Ask(), Ask(permits=2), Ask(permits=0))
HEAD_STARTS = (Ask(), Ask(priority=1), Ask(permits=2, priority=1))
IMPATIENT = (Ask(), Ask(patience=0), Ask(permits=0))
TENANTS = (Ask(tenant="a"), Ask(tenant="b"), Ask(permits=2, tenant="b", share=2.0))
SETUPS = {
    "one permit": Setup(ONES, limits=(2,), pauses=("key",), evicts=True, tries=True),
    "one permit, nobody may wait": Setup(
        ONES, max_waiting=0, limits=(2,), pauses=("key", "guard"), tries=True
    ),
    "one permit, one may wait": Setup(ONES, max_waiting=1, limits=(2,), evicts=True),
    "newest first": Setup(
        ONES, max_waiting=1, order="lifo", limits=(2,), pauses=("key",), evicts=True, tries=True
    ),
    "one, two or all permits": Setup(MIXED, limit=2, limits=(1, 3), pauses=("key",), evicts=True, tries=True),
    "one, two or all permits, newest first": Setup(
        MIXED, limit=2, order="lifo", max_waiting=1, limits=(1,), pauses=("guard",), evicts=True, tries=True
    ),
    "at a pace": Setup(MIXED, limit=2, rate=PACE, pauses=("key",), evicts=True),
    "at a pace, one may wait": Setup(ONES, max_waiting=1, rate=PACE, limits=(2,), tries=True),
    "in bursts, newest first": Setup(MIXED, limit=2, rate=BURST, limits=(1,), order="lifo"),
    "with head starts": Setup(HEAD_STARTS, limit=2, evicts=True, limits=(1,), pauses=("guard",)),
    "with head starts, one may wait": Setup(HEAD_STARTS, limit=2, max_waiting=1, limits=(1,)),
    "without patience": Setup(IMPATIENT, limit=2, limits=(1,), rate=PACE, pauses=("key",)),
    "tenants": Setup(TENANTS, limit=2, order="fair", max_waiting=2, limits=(1,), depth=6),
    "tenants of unequal shares, one may wait": Setup(
        (Ask(tenant="h"), Ask(tenant="a", permits=2, share=0.5), Ask(tenant="b")),
        limit=2,
        order="fair",
        max_waiting=1,
        depth=5,
    ),
    "newest first, without patience": Setup(IMPATIENT, limit=1, max_waiting=1, order="lifo", limits=(2,)),
    "tenants, one may wait": Setup(TENANTS, limit=2, order="fair", max_waiting=1, evicts=True, depth=6),
    "leases": Setup(ONES, lease=1, evicts=True),
    "leases, newest first": Setup(ONES, lease=2, max_waiting=1, order="lifo"),
    "leases, one or two permits": Setup((Ask(), Ask(permits=2)), limit=2, lease=2, limits=(1,), evicts=True),
    "leases, one, two or all permits": Setup(MIXED, limit=2, lease=1, limits=(1,)),
    "leases at a pace": Setup((Ask(permits=2), Ask(permits=0)), limit=2, lease=2, rate=PACE),
    "leases in bursts": Setup(ONES, limit=2, lease=1, rate=BURST, max_waiting=0),
    "late enters": Setup((Ask(), Ask()), lease=2, vanishes=True, max_waiting=1, evicts=True),
    "late enters at a pace": Setup((Ask(), Ask()), lease=2, vanishes=True, rate=PACE),
    "late enters of all permits": Setup(
        (Ask(permits=2), Ask(permits=0)), limit=2, lease=1, vanishes=True, limits=(1,)
    ),
    "leases of tenants": Setup(TENANTS, limit=2, order="fair", lease=2, depth=5),
}


@pytest.mark.parametrize("name", SETUPS)
def test_every_interleaving_keeps_every_rule(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    explored = explore(SETUPS[name])

    with capsys.disabled():
        print(f"\n{name}: {explored.states:,} states, {explored.steps:,} steps ", end="")
    assert explored.states > 10
