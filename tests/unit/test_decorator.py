"""`@guard` and `@guard(key=...)` on coroutine functions, and what they refuse."""

# The guard reads the arguments that its functions do not use.
# ruff: noqa: ARG001, ARG002, ARG003, ARG004

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import uuid
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from fastapi import FastAPI, Query
from fastapi.testclient import TestClient

from asyncguard import AsyncGuard, WaitTimeout, WouldDeadlock, current_permit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from asyncguard import Guard

ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


class Account(enum.Enum):
    MAIN = "main"
    NONE = None


@pytest.fixture
async def guard(hub: AsyncGuard) -> Guard:
    return hub.guard("report")


async def test_a_decorated_function_runs_one_at_a_time(guard: Guard) -> None:
    running = 0

    @guard
    async def build(seconds: float) -> float:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(seconds)
        running -= 1
        return seconds

    assert list(await asyncio.gather(build(3), build(seconds=2), build(1))) == [3, 2, 1]


async def test_it_is_a_coroutine_function_with_the_signature_it_had(guard: Guard) -> None:
    async def build(account: int, *parts: str, big: bool = False, **more: object) -> str:
        """Build it."""
        return f"{account}{parts}{big}{more}"

    for decorated in (guard(build), guard(key="account")(build)):
        assert inspect.iscoroutinefunction(decorated)
        assert asyncio.iscoroutinefunction(decorated)
        assert inspect.signature(decorated) == inspect.signature(build)
        assert (decorated.__name__, decorated.__doc__) == ("build", "Build it.")
        assert inspect.unwrap(decorated) is build
        assert await decorated(7, "a", big=True, x=1) == await build(7, "a", big=True, x=1)


async def test_a_decorated_def_is_a_coroutine_function_too(guard: Guard) -> None:
    @guard
    def build(account: int) -> int:
        return account

    assert inspect.iscoroutinefunction(build)


@pytest.mark.parametrize(
    ("args", "kwargs", "key"),
    [
        (("s", 7), {}, "7"),
        (("s", "seven"), {}, "seven"),
        (("s",), {"account": ID}, str(ID)),
        (("s",), {"account": Account.MAIN}, "main"),
        (("s",), {}, "usual"),
        ((), {"account": 1, "service": "s"}, "1"),
    ],
)
async def test_a_key_is_read_from_the_parameter_that_it_names(
    guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any], key: str
) -> None:
    @guard(key="account")
    async def build(service: str, account: object = "usual") -> str | None:
        return current_permit().key

    assert await build(*args, **kwargs) == key


async def test_a_keyword_only_parameter_can_be_the_key(guard: Guard) -> None:
    @guard(key="account")
    async def build(*parts: str, account: int = 4) -> str | None:
        return current_permit().key

    assert await build("a", "b") == "4"
    assert await build("a", "b", account=5) == "5"


async def test_a_positional_only_parameter_can_be_the_key(guard: Guard) -> None:
    @guard(key="account")
    async def build(account: int, /, **more: int) -> str | None:
        return current_permit().key

    assert await build(1) == "1"
    assert await build(1, account=2) == "1", "the other `account` is one of `more`"


async def test_a_key_can_be_computed(guard: Guard) -> None:
    @guard(key=lambda account, part: f"{account}/{part}")
    async def build(account: int, part: str) -> str | None:
        return current_permit().key

    assert await build(7, part="a") == "7/a"


@pytest.mark.parametrize("value", [None, 1.5, b"a", ("a",), Account.NONE])
async def test_what_is_no_key_is_a_type_error_that_names_it(guard: Guard, value: Any) -> None:
    @guard(key="account")
    async def build(account: object) -> None:
        pytest.fail("ran")

    @guard(key=lambda account: account)
    async def compute(account: object) -> None:
        pytest.fail("ran")

    with pytest.raises(TypeError, match=r"key 'account' of .*build\(\)"):
        await build(value)
    with pytest.raises(TypeError, match="key"):
        await compute(value)


@pytest.mark.parametrize("value", ["", "a" * 513, "\ud800"])
async def test_a_text_that_is_no_key_is_a_value_error_that_names_it(guard: Guard, value: str) -> None:
    @guard(key="account")
    async def build(account: str) -> None:
        pytest.fail("ran")

    with pytest.raises(ValueError, match="account"):
        await build(value)


@pytest.mark.parametrize("name", ["acount", "args", "kwargs", ""])
async def test_an_unknown_parameter_fails_at_decoration_and_says_which_there_are(
    guard: Guard, name: str
) -> None:
    async def build(account: int, *args: int, **kwargs: int) -> None:
        pass

    with pytest.raises(ValueError, match=r"build\(\) has no parameter .* account"):
        guard(key=name)(build)


async def test_a_call_that_does_not_fit_fails_as_it_would_without_the_guard(guard: Guard) -> None:
    @guard(key="account")
    async def build(account: int) -> None:
        pytest.fail("ran")

    with pytest.raises(TypeError, match="account"):
        await build()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        await build(1, 2)  # type: ignore[call-arg]
    assert (await guard.inspect()).in_use == 0


async def test_generator_functions_are_refused_at_decoration(guard: Guard) -> None:
    def rows() -> Iterator[int]:
        yield 1

    async def lines() -> AsyncIterator[int]:
        yield 1

    for function in (rows, lines, functools.partial(rows)):
        with pytest.raises(TypeError, match="generator"):
            guard(function)


async def test_a_def_that_makes_a_generator_is_refused_when_it_does(guard: Guard) -> None:
    @guard
    def rows() -> Iterator[int]:
        return (number for number in range(3))

    with pytest.raises(TypeError, match="generator"):
        await rows()


@pytest.mark.parametrize("value", [3, "report", int])
async def test_what_is_no_function_is_refused(guard: Guard, value: Any) -> None:
    with pytest.raises(TypeError):
        guard(value)


async def test_a_key_that_names_nothing_is_refused(guard: Guard) -> None:
    with pytest.raises(TypeError, match="key"):
        guard(key=3)  # type: ignore[call-overload]


async def test_methods_are_guarded(guard: Guard) -> None:
    class Ledger:
        name = "main"

        @guard(key="account")
        async def book(self, account: int) -> tuple[str, str | None]:
            return self.name, current_permit().key

        @classmethod
        @guard(key="account")
        async def open(cls, account: int) -> tuple[str, str | None]:
            return cls.name, current_permit().key

        @staticmethod
        @guard(key="account")
        async def check(account: int) -> str | None:
            return current_permit().key

    assert await Ledger().book(1) == ("main", "1")
    assert await Ledger().book(account=2) == ("main", "2")
    assert await Ledger.open(3) == ("main", "3")
    assert await Ledger().check(4) == "4"


async def test_a_bound_method_is_guarded(guard: Guard) -> None:
    class Ledger:
        async def book(self, account: int) -> tuple[Ledger, str | None]:
            return self, current_permit().key

    ledger = Ledger()
    assert await guard(key="account")(ledger.book)(5) == (ledger, "5")


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
async def test_static_and_class_methods_say_how_to_order_the_decorators(
    guard: Guard, kind: Callable[[Any], Any]
) -> None:
    async def check(account: int) -> None:
        pass

    with pytest.raises(TypeError, match=kind.__name__):
        guard(kind(check))


async def test_partial_functions_and_callable_objects_are_guarded(guard: Guard) -> None:
    async def build(account: int, part: str) -> tuple[str | None, str]:
        return current_permit().key, part

    class Builder:
        async def __call__(self, account: int) -> str | None:
            return current_permit().key

    assert await guard(functools.partial(build, part="a"))(7) == (None, "a")
    assert await guard(key="account")(functools.partial(build, part="a"))(7) == ("7", "a")
    assert await guard(Builder())(7) is None
    assert await guard(key="account")(Builder())(7) == "7"


async def test_what_the_decorator_asks_holds_for_every_call(guard: Guard) -> None:
    @guard(timeout=2, label="monthly")
    async def build() -> str:
        return (await guard.inspect()).holders[0].label

    assert await build() == "monthly"
    async with guard:

        async def outside() -> None:
            with pytest.raises(WaitTimeout):
                await build()

        start = asyncio.get_running_loop().time()
        await asyncio.create_task(outside())
        assert asyncio.get_running_loop().time() - start == pytest.approx(2)


@pytest.mark.parametrize("ask", [{"timeout": -1}, {"permits": 2}, {"permits": 0}, {"label": "a" * 513}])
async def test_what_it_may_not_ask_fails_at_decoration(guard: Guard, ask: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(ask))):
        guard(**ask)


async def test_a_function_that_calls_itself_is_told_of_the_deadlock(guard: Guard) -> None:
    @guard
    async def build(depth: int) -> None:
        if depth:
            await build(depth - 1)

    with pytest.raises(WouldDeadlock):
        await build(1)


async def test_an_error_of_the_work_comes_out_as_it_is(guard: Guard) -> None:
    @guard
    async def build() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await build()


def test_fastapi_sees_an_endpoint_as_it_was_written() -> None:
    guard = AsyncGuard().guard("report")

    async def plain(account: int, part: Annotated[str, Query(max_length=3)] = "all") -> dict[str, str | None]:
        """Build a report."""
        return {"account": str(account), "part": part}

    @guard(key="account")
    async def guarded(
        account: int, part: Annotated[str, Query(max_length=3)] = "all"
    ) -> dict[str, str | None]:
        """Build a report."""
        return {"account": current_permit().key, "part": part}

    @guard(key="account")
    def in_a_thread(account: int, part: Annotated[str, Query(max_length=3)] = "all") -> dict[str, str | None]:
        """Build a report."""
        return {"account": current_permit().key, "part": part}

    documented, answers, refusals = [], [], []
    for endpoint in (plain, guarded, in_a_thread):
        app = FastAPI()
        app.get("/report/{account}", operation_id="report", name="report")(endpoint)
        client = TestClient(app)
        documented.append(client.get("/openapi.json").json())
        answers.append(client.get("/report/7?part=a").json())
        refusals.append(client.get("/report/seven?part=long").json())
    assert documented[0] == documented[1] == documented[2]
    assert answers[0] == answers[1] == answers[2] == {"account": "7", "part": "a"}
    assert refusals[0] == refusals[1] == refusals[2]
