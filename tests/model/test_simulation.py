"""The simulation against closed forms of queueing theory, and against itself."""

from __future__ import annotations

import time
from dataclasses import replace
from math import exp, factorial, sqrt
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard.simulation import Load, Tenant, always, exponential, lognormal, simulate, uniform
from asyncguard.ticket import Rate, Rules

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncguard.simulation import Draw, Outcome, Result

    Compare = Callable[[str, float | None, float], None]

NEAR = 0.02
"""How far a figure may be from the theory, in parts of it."""


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Compare:
    """Hold together what was measured and what theory says, and print both."""

    def compare(what: str, measured: float | None, theory: float) -> None:
        assert measured is not None
        with capsys.disabled():
            print(f"\n{what}: {measured:.4g}, in theory {theory:.4g}: {measured / theory - 1:+.2%} ", end="")
        assert measured == pytest.approx(theory, rel=NEAR)

    return compare


def watch(clients: int, offered: float, *, service: Draw | None = None, **options: Any) -> Result:
    """Have about so many clients come, each for a second on average: `offered` of them a second."""
    tenant = Tenant(
        "", 1 / offered, service or exponential(1), leaves_after=options.pop("leaves_after", None)
    )
    rules = Rules(**{"max_waiting": None, **options})
    return simulate(Load(rules=rules, tenants=[tenant], seconds=clients / offered))


@pytest.mark.timeout(120)
def test_mm1_and_a_million_clients_take_less_than_a_minute(
    compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = time.perf_counter()
    result = watch(1_000_000, 0.8)
    taken = time.perf_counter() - begin

    with capsys.disabled():
        print(f"\na million clients: {taken:.1f} s ", end="")
    assert taken < 60
    compare("M/M/1, mean wait", result.total.wait.mean, 0.8 / 0.2)
    compare("M/M/1, mean queue", result.mean_waiting, 0.8**2 / 0.2)
    assert result.margin is not None
    assert abs(result.mean_waiting - 0.8**2 / 0.2) < result.margin < NEAR * result.mean_waiting
    compare("M/M/1, utilisation", result.utilisation, 0.8)
    compare("M/M/1, throughput", result.throughput, 0.8)


@pytest.mark.parametrize(("limit", "offered"), [(2, 1.2), (4, 2.8)])
def test_mmc(limit: int, offered: float, compare: Compare) -> None:
    result = watch(600_000, offered, limit=limit)

    waits = offered**limit / factorial(limit) * limit / (limit - offered)  # Erlang C
    waits /= waits + sum(offered**k / factorial(k) for k in range(limit))
    compare(f"M/M/{limit}, mean wait", result.total.wait.mean, waits / (limit - offered))
    compare(f"M/M/{limit}, utilisation", result.utilisation, offered / limit)


@pytest.mark.parametrize(("offered", "max_waiting"), [(0.9, 4), (2.0, 9)])
def test_mm1k(offered: float, max_waiting: int, compare: Compare) -> None:
    result = watch(400_000, offered, max_waiting=max_waiting)

    capacity = max_waiting + 1  # K counts who is served too
    weights = [offered**k for k in range(capacity + 1)]
    blocked = weights[-1] / sum(weights)
    waiting = sum((k - 1) * weight for k, weight in enumerate(weights) if k) / sum(weights)
    name = f"M/M/1/{capacity} at {offered}"
    compare(f"{name}, refused", result.total.refused["full"] / result.total.came, blocked)
    compare(f"{name}, mean wait", result.total.wait.mean, waiting / (offered * (1 - blocked)))
    compare(f"{name}, mean queue", result.mean_waiting, waiting)
    assert result.most_waiting == max_waiting


@pytest.mark.parametrize(
    ("name", "service", "variation"),
    [
        ("M/D/1", always(1), 0.0),
        ("uniform", uniform(0, 2), sqrt(1 / 3)),
        ("lognormal", lognormal(1, 1.2), 1.2),
    ],
)
def test_mg1(name: str, service: Draw, variation: float, compare: Compare) -> None:
    result = watch(400_000, 0.7, service=service)

    wait = 0.7 / (1 - 0.7) * (1 + variation**2) / 2  # Pollaczek and Khinchine
    compare(f"{name}, mean wait", result.total.wait.mean, wait)
    compare(f"{name}, offered", result.offered, 0.7)


def test_clients_that_leave(compare: Compare) -> None:
    result = watch(100_000, 0.9, leaves_after=2.0)

    early = exp(-(1 - 0.9) * 2)  # Barrer 1957: M/M/1 whose clients all wait for the same time
    compare("M/M/1+D, left", result.total.left / result.total.came, 0.1 * 0.9 * early / (1 - 0.81 * early))


def test_a_pace(compare: Compare) -> None:
    """Work of no time behind a pace waits as behind work that takes the pace's interval."""
    result = watch(100_000, 0.6, service=always(0), limit=10, rate=Rate(1, per=1))

    compare("a pace, mean wait", result.total.wait.mean, 0.6 / (1 - 0.6) / 2)


# --- against itself ------------------------------------------------------------------------------

CROWDED = Load(
    rules=Rules(limit=2, order="fair", max_waiting=20, rate=Rate(5, per=2, burst=2)),
    tenants=(
        Tenant("patient", 0.5, exponential(0.8)),
        Tenant("leaving", 0.5, uniform(0.1, 1.5), leaves_after=2, share=2),
        Tenant("two permits", 2, lognormal(0.5, 2), permits=2),
        Tenant("steady", 1, always(0.3), steady=True, priority=1),
        Tenant("never", 1e9, always(1)),
    ),
    max_wait=6,
    seconds=1_000,
)
LOADS = {
    "crowded": CROWDED,
    "no warm-up": replace(CROWDED, warm_up=0),
    "a warm-up that no slice ends with": replace(CROWDED, warm_up=0.4567),
    "last in, first out": replace(CROWDED, rules=Rules(order="lifo", max_waiting=5)),
    "nobody may wait": replace(CROWDED, rules=Rules(limit=3, max_waiting=0)),
    "nobody is prepared to wait": replace(CROWDED, max_wait=0),
    "one who asks for too much": replace(CROWDED, rules=Rules(limit=1)),
    "a moment": replace(CROWDED, seconds=1e-6),
}


def conserves(outcome: Outcome) -> bool:
    gone = outcome.finished + sum(outcome.refused.values()) + outcome.left
    return outcome.present + outcome.came == gone + outcome.holding + outcome.waiting


@pytest.mark.parametrize("name", LOADS)
def test_every_client_ends_once_or_is_still_there(name: str) -> None:
    result = simulate(LOADS[name])

    assert conserves(result.total)
    assert all(conserves(tenant) for tenant in result.tenants)
    assert result.total.came == sum(tenant.came for tenant in result.tenants)
    assert result.total.present == 0 or LOADS[name].warm_up
    assert 0 <= result.utilisation <= 1
    assert result.slices[0].starts == 0
    assert result.slices[-1].ends == pytest.approx(LOADS[name].seconds)


def test_every_way_to_end_is_told() -> None:
    result = simulate(CROWDED)

    assert result.total.refused.keys() == {"full", "hopeless", "timeout"}
    assert result.total.left
    assert simulate(LOADS["one who asks for too much"]).tenants[2].refused.keys() == {"too_large"}
    assert simulate(LOADS["nobody is prepared to wait"]).total.refused.keys() == {"timeout"}


def test_the_same_seed_has_the_same_result_and_another_has_another() -> None:
    assert simulate(CROWDED) == simulate(CROWDED)
    assert simulate(CROWDED) != simulate(replace(CROWDED, seed=2))


def test_waits_and_quantiles_agree() -> None:
    result = simulate(CROWDED)

    wait = result.total.wait
    assert wait.max is not None
    assert wait.max <= 6
    quantiles = result.quantiles
    assert (wait.p50, wait.p90, wait.p99, wait.max) == tuple(quantiles[at] for at in (500, 900, 990, 1000))
    assert list(quantiles) == sorted(quantiles)


def test_nobody_granted_has_no_wait() -> None:
    outcome = simulate(CROWDED).tenants[-1]

    assert (outcome.tenant, outcome.came) == ("never", 0)
    assert (outcome.wait.mean, outcome.wait.p50, outcome.wait.max) == (None, None, None)


def test_whoever_listens_hears_what_is_decided() -> None:
    heard: set[str] = set()

    simulate(CROWDED, hear=lambda ticket, _: heard.add(ticket.state))

    assert heard == {"waiting", "held", "refused", "withdrawn"}


def test_steady_clients_come_equally_far_apart() -> None:
    came: list[int] = []
    tenant = Tenant("", 10, always(1), steady=True)

    simulate(
        Load(rules=Rules(), tenants=[tenant], seconds=1000),
        hear=lambda _, tick: came.append(tick),
    )

    assert len(came) == 100
    assert {after - before for before, after in zip(came, came[1:], strict=False)} == {10_000_000_000}


def test_progress_goes_from_nothing_to_all() -> None:
    done: list[float] = []

    simulate(CROWDED, progress=done.append)

    assert done == sorted(done)
    assert done[-1] == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tenants": ()}, "tenants: expected one or more"),
        ({"seconds": 0}, "seconds: expected a microsecond or more, got 0"),
        ({"seconds": float("nan")}, "seconds: expected a microsecond or more, got nan"),
        ({"warm_up": 1}, "warm_up: expected 0 or more and below 1, got 1"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CROWDED, **wrong)
