"""Bad options and arguments are told at the call, and by their name."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard import AsyncGuard, Rate
from asyncguard.http.problems import responses_with
from asyncguard.http.sources import header
from asyncguard.observability.logs import log_events
from asyncguard.testing import force_lost

if TYPE_CHECKING:
    from collections.abc import Callable

INF = float("inf")
NAN = float("nan")


class Empty(enum.Enum):
    NOTHING = None
    PAIR = (1, 2)


def wrongs(**by_name: list[Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in by_name.items() for value in values]


OUT_OF_BOUNDS = wrongs(
    limit=[0, -1],
    max_waiting=[-1],
    max_wait=[-1, -0.001, NAN],
    max_hold=[0, -1, NAN],
    order=["", "random", "FIFO"],
    max_keys=[0, -1],
    on_lost=["", "ignore"],
)
OF_THE_WRONG_TYPE = wrongs(
    limit=["1", 1.0, None, True],
    max_waiting=["1", 1.5, False],
    max_wait=["30", True, [30]],
    max_hold=["1", False],
    rate=[5, "1/s", (1, 2)],
    max_keys=[None, 1.0],
)


@pytest.mark.parametrize(("option", "value"), OUT_OF_BOUNDS)
def test_an_option_out_of_bounds_is_a_value_error(option: str, value: Any) -> None:
    ag = AsyncGuard()
    with pytest.raises(ValueError, match=f"^{option}: "):
        ag.guard("report", **{option: value})
    guard = ag.guard("report")
    with pytest.raises(ValueError, match=f"^{option}: "):
        guard.replace(**{option: value})


@pytest.mark.parametrize(("option", "value"), OF_THE_WRONG_TYPE)
def test_an_option_of_the_wrong_type_is_a_type_error(option: str, value: Any) -> None:
    ag = AsyncGuard()
    with pytest.raises(TypeError, match=f"^{option}: "):
        ag.guard("report", **{option: value})
    guard = ag.guard("report")
    with pytest.raises(TypeError, match=f"^{option}: "):
        guard.replace(**{option: value})


def test_a_bad_option_declares_nothing() -> None:
    ag = AsyncGuard()
    with pytest.raises(ValueError, match="limit"):
        ag.guard("report", limit=0)
    assert ag.guard("report", limit=2).limit == 2


@pytest.mark.parametrize("name", ["", "a" * 129, "\ud800"])
def test_a_name_out_of_bounds_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"^name: "):
        AsyncGuard().guard(name)
    with pytest.raises(ValueError, match=r"^name: "):
        AsyncGuard().guard("report").replace(name=name)


@pytest.mark.parametrize("name", [None, 7, b"report"])
def test_a_name_of_the_wrong_type_is_a_type_error(name: Any) -> None:
    with pytest.raises(TypeError, match=r"^name: "):
        AsyncGuard().guard(name)


def test_names_may_be_long_and_odd() -> None:
    for name in ("a" * 128, "ключ", "a b:{c}\0%"):
        assert AsyncGuard().guard(name).name == name


def test_unknown_options_are_named() -> None:
    with pytest.raises(TypeError, match="max_wiat"):
        AsyncGuard().guard("report", max_wiat=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="max_wiat"):
        AsyncGuard().guard("report").replace(max_wiat=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("namespace", "", ValueError),
        ("namespace", "a" * 129, ValueError),
        ("namespace", 7, TypeError),
        ("revision", -1, ValueError),
        ("revision", 1.5, TypeError),
        ("revision", "1", TypeError),
        ("url", 7, TypeError),
    ],
)
def test_what_a_hub_is_made_with_is_checked(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{option}: "):
        AsyncGuard(**{option: value})


@pytest.mark.parametrize(
    "rate", [(0, 1), (-1, 1), (1, 0), (1, -1), (1, NAN), (1, INF), (1, 1, 0), (1, 1, -1)]
)
def test_a_pace_out_of_bounds_is_a_value_error(rate: tuple[Any, ...]) -> None:
    n, per, *burst = rate
    with pytest.raises(ValueError, match="rate"):
        Rate(n, per, *burst)


@pytest.mark.parametrize("rate", [("1", 1), (1.5, 1), (1, "1"), (1, 1, 1.5), (1, None)])
def test_a_pace_of_the_wrong_type_is_a_type_error_that_names_it(rate: tuple[Any, ...]) -> None:
    n, per, *burst = rate
    with pytest.raises(TypeError, match="rate"):
        Rate(n, per, *burst)


CALL_OUT_OF_BOUNDS = wrongs(
    key=["", "a" * 513, "\ud800"],
    timeout=[-1, -0.001, NAN],
    permits=[0, -1, 4],
    priority=[-1, NAN, INF],
    share=[0, -1, NAN, INF],
    tenant=["a" * 513],
    label=["a" * 513],
)
CALL_OF_THE_WRONG_TYPE = wrongs(
    key=[1.5, b"a", (), Empty.NOTHING, Empty.PAIR],
    timeout=["1", True],
    permits=["2", 1.5, None, True],
    priority=["1", None],
    share=["1", None],
    tenant=[7, None],
    label=[7, None],
)


@pytest.mark.parametrize(("argument", "value"), CALL_OUT_OF_BOUNDS)
def test_an_argument_out_of_bounds_is_a_value_error_at_the_call(argument: str, value: Any) -> None:
    guard = AsyncGuard().guard("report", limit=3)
    for call in (guard.acquire, guard.acquire_nowait, guard.permit):
        with pytest.raises(ValueError, match=f"^{argument}: "):
            call(**{argument: value})


@pytest.mark.parametrize(("argument", "value"), CALL_OF_THE_WRONG_TYPE)
def test_an_argument_of_the_wrong_type_is_a_type_error_at_the_call(argument: str, value: Any) -> None:
    guard = AsyncGuard().guard("report", limit=3)
    for call in (guard.acquire, guard.acquire_nowait, guard.permit):
        with pytest.raises(TypeError, match=f"^{argument}: "):
            call(**{argument: value})


def test_unknown_arguments_are_named() -> None:
    guard = AsyncGuard().guard("report")
    unknown: dict[str, Any] = {"timeuot": 3}
    for call in (guard.acquire, guard.acquire_nowait, guard.permit, guard):
        with pytest.raises(TypeError, match="timeuot"):
            call(**unknown)


async def test_generous_arguments_are_fine(hub: AsyncGuard) -> None:
    guard = hub.guard("report", limit=10**9, max_waiting=0, max_wait=INF, max_hold=INF, max_keys=1)
    async with guard.permit(
        timeout=INF, permits=10**9, priority=10**6, share=1e-3, tenant="", label="a" * 512
    ):
        pass


def test_an_unknown_scheme_names_itself_and_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"'oracle'.*memory") as caught:
        AsyncGuard("oracle://scott:tiger@host/db")
    assert "tiger" not in str(caught.value), "a URL may hold a password"


@pytest.mark.parametrize("url", ["memory:", "memory://", "MEMORY:", ""])
def test_the_memory_of_this_process_is_a_url_too(url: str) -> None:
    assert "this process alone" in AsyncGuard(url).explain()


def test_an_unknown_scheme_in_the_environment_is_told_at_the_first_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ASYNCGUARD_URL", "oracle://host")
    guard = AsyncGuard().guard("report")
    with pytest.raises(ValueError, match="ASYNCGUARD_URL"):
        guard.acquire_nowait()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rate(10, per=0), "per to be above 0 and at most 1e9 seconds, got 0"),
        (lambda: Rate(10, per=float("nan")), "per .* got nan"),
        (lambda: Rate(0, per=1), "n to be from 1 to 1e9, got 0"),
        (lambda: Rate(1, per=1, burst=10**5000), "burst to be from 1 to 1e9, got more"),
        (
            lambda: AsyncGuard().guard("report").permit(priority=float("inf")),
            "at most 1,000,000,000, got inf",
        ),
        (lambda: AsyncGuard().guard("report").permit(priority=1e12), "at most 1,000,000,000, got more"),
    ],
)
def test_what_is_out_of_bounds_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_clock_is_one() -> None:
    with pytest.raises(TypeError, match="ManualClock"):
        AsyncGuard(clock=time.monotonic)  # type: ignore[arg-type]


async def test_only_a_permit_can_be_lost(hub: AsyncGuard) -> None:
    with pytest.raises(TypeError, match="expected the Permit"):
        force_lost(hub.guard("report"))  # type: ignore[arg-type]


async def test_a_key_function_is_named_when_it_fails(hub: AsyncGuard) -> None:
    @hub.guard("report")(key=lambda: "a")
    async def build(account: int) -> None:
        pytest.fail(str(account))

    with pytest.raises(TypeError, match="positional argument") as caught:
        await build(1)
    assert "build(), which is called with" in caught.value.__notes__[0]

    async def asynchronous(account: int) -> str:
        return str(account)

    with pytest.raises(TypeError, match="expected a plain function"):
        hub.guard("report")(key=asynchronous)(build)  # type: ignore[arg-type]


def test_sources_of_requests_are_not_the_decorator_s() -> None:
    with pytest.raises(TypeError, match=r"is for require\(\)"):
        AsyncGuard().guard("report")(key=header("x-api-key"))


def test_statuses_that_guards_do_not_answer_with_are_named() -> None:
    with pytest.raises(ValueError, match="400, 429 and 503, got 404"):
        responses_with(404)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logger": "shop"}, "expected a logger"),
        ({"levels": {"entered": "INFO"}}, "for 'entered', got 'INFO'"),
    ],
)
def test_what_cannot_be_logged_with_is_named(settings: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        log_events(AsyncGuard(), **settings)
