"""What type checkers make of the public API; checked, and never run."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, assert_type

from asyncguard import (
    ALL,
    AsyncGuard,
    Clock,
    Guard,
    Holder,
    Loss,
    Permit,
    QueueFull,
    Rate,
    Reason,
    Refused,
    Snapshot,
    SystemClock,
    Waiter,
    current_permit,
)
from asyncguard.fence import RedisFence
from asyncguard.testing import ManualClock, force_full, force_lost, fresh

if TYPE_CHECKING:
    import redis.asyncio

ag = AsyncGuard("memory:", namespace="shop", revision=3, clock=SystemClock())
guard = ag.guard(
    "report",
    limit=2,
    max_waiting=None,
    max_wait=None,
    max_hold=1.5,
    order="fair",
    rate=Rate(10, per=60, burst=2),
    max_keys=7,
    on_lost="notify",
)
assert_type(guard, Guard)
assert_type(guard.replace(limit=3, order="lifo"), Guard)
assert_type(guard.name, str)
assert_type(guard.limit, int)
assert_type(ag.explain(), str)
clock: Clock = SystemClock()
clock = ManualClock()


class Account(enum.Enum):
    MAIN = 1


async def blocks() -> None:
    async with guard as permit:
        assert_type(permit, Permit)
    async with guard.permit(
        key=uuid.uuid4(), timeout=3, permits=ALL, priority=1.5, tenant="t", share=2, label="l"
    ) as permit:
        assert_type(permit, Permit)
        assert_type(permit.token, int)
        assert_type(permit.key, str | None)
        assert_type(permit.waited, float)
        assert_type(permit.held, float)
        assert_type(permit.lost, Loss)
        assert_type(bool(permit.lost), bool)
        assert_type(await permit.lost.wait(), None)
    async with guard.permit(key=Account.MAIN), guard.permit(key=7), guard.permit(key="7"), ag:
        assert_type(current_permit(), Permit)


async def by_hand() -> None:
    permit = await guard.acquire(key="a", timeout=None, permits=2)
    assert_type(permit, Permit)
    assert_type(await permit.release(), None)
    assert_type(guard.acquire_nowait(permits=ALL), Permit)
    await guard.acquire(timeout="3")  # type: ignore[arg-type]
    await guard.acquire(timeuot=3)  # type: ignore[call-arg]
    await guard.acquire(key=1.5)  # type: ignore[arg-type]
    guard.acquire_nowait(permits="some")  # type: ignore[arg-type]


def threads() -> None:
    with guard.blocking() as permit:
        assert_type(permit, Permit)
    with guard.blocking(
        key=7, timeout=3, permits=ALL, priority=1.5, tenant="t", share=2, label="l"
    ) as permit:
        assert_type(permit.lost, Loss)
    with guard.blocking(key=Account.MAIN), guard.blocking(key=uuid.uuid4()):
        pass
    guard.blocking(timeout="3")  # type: ignore[call-overload]
    guard.blocking(timeuot=3)  # type: ignore[call-overload]
    guard.blocking(key=1.5)  # type: ignore[call-overload]


@guard.blocking
def blocking(account: int, *, big: bool = False) -> str:
    return f"{account}{big}"


@guard.blocking(key="account", timeout=3)
def blocking_keyed(account: int) -> bytes:
    return str(account).encode()


class Books:
    @guard.blocking(key=lambda _, account: account)
    def book(self, account: int) -> float:
        return float(account)


assert_type(blocking(1, big=True), str)
assert_type(blocking_keyed(1), bytes)
assert_type(Books().book(1), float)
blocking("1")  # type: ignore[arg-type]
blocking(1, small=True)  # type: ignore[call-arg]


async def pictures() -> None:
    picture = await guard.inspect("a")
    assert_type(picture, Snapshot)
    assert_type(picture.holders, tuple[Holder, ...])
    assert_type(picture.queue, tuple[Waiter, ...])
    assert_type(picture.estimated_wait, float | None)
    assert_type(picture.refused, Mapping[Reason, int])
    picture.limit = 3  # type: ignore[misc]


@guard
async def bare(account: int, *, big: bool = False) -> str:
    return f"{account}{big}"


@guard
def bare_def(account: int) -> str:
    return str(account)


@guard(key="account", timeout=3)
async def keyed(account: int, part: str = "all") -> bytes:
    return f"{account}{part}".encode()


@guard(key=lambda account: account)
def keyed_def(account: int) -> bytes:
    return str(account).encode()


@guard()
async def with_empty_parentheses() -> None: ...


@guard
def that_returns_an_awaitable(account: int) -> Awaitable[int]:
    async def work() -> int:
        return account

    return work()


class Ledger:
    @guard(key="account")
    async def book(self, account: int) -> float:
        return float(account)

    @guard
    def close(self) -> Ledger:
        return self

    @classmethod
    @guard
    async def open(cls) -> Ledger:
        return cls()

    @staticmethod
    @guard
    async def check(account: int) -> bool:
        return bool(account)


async def decorated() -> None:
    coroutine = bare(1, big=True)
    _ = assert_type(coroutine, Coroutine[Any, Any, str])
    assert_type(await coroutine, str)
    assert_type(await bare(1), str)
    assert_type(await bare_def(1), str)
    assert_type(await keyed(1, part="a"), bytes)
    assert_type(await keyed_def(1), bytes)
    assert_type(await with_empty_parentheses(), None)
    assert_type(await that_returns_an_awaitable(1), int)
    assert_type(await Ledger().book(1), float)
    assert_type(await Ledger().close(), Ledger)
    assert_type(await Ledger.open(), Ledger)
    assert_type(await Ledger.check(1), bool)
    await bare("1")  # type: ignore[arg-type]
    await bare(1, small=True)  # type: ignore[call-arg]
    await keyed()  # type: ignore[call-arg]
    await Ledger().book("1")  # type: ignore[arg-type]


def endpoints() -> Iterator[Callable[..., Awaitable[object]]]:
    yield bare
    yield keyed_def
    yield Ledger().book


def refusals(error: Refused) -> Reason:
    assert_type(error.estimated_wait, float | None)
    assert_type(error.guard, str)
    assert_type(error.key, str | None)
    reason: Reason = QueueFull.reason
    assert_type(error.reason, Reason)
    return reason


ag.guard("report", limit="2")  # type: ignore[arg-type]
ag.guard("report", order="random")  # type: ignore[arg-type]
ag.guard("report", 2)  # type: ignore[call-arg]
guard.replace(max_wiat=3)  # type: ignore[call-arg]


def tests(permit: Permit) -> None:
    with fresh(ag) as empty, force_full("report"), force_full("report", estimated_wait=None):
        assert_type(empty, AsyncGuard)
    assert_type(force_lost(permit), None)
    assert_type(ManualClock().advance(1.5), None)
    force_full(guard)  # type: ignore[arg-type]


async def fences(client: redis.asyncio.Redis, permit: Permit) -> None:
    store = await RedisFence(client, "report").open(permit.token)
    assert_type(store.token, int)
    assert_type(await store.set("report", "text", ex=60), None)
    assert_type(await store.hset("report", {"rows": 7}), int)
    assert_type(await store.delete("report", b"other"), int)
    await store.set("report", "text", ex="60")  # type: ignore[arg-type]
