"""A test of its own: an AsyncGuard that starts empty, and must be idle in the end."""

# A guard offers nobody to swap its backend; tests may.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar, final

from asyncguard.backends import open_backend
from asyncguard.permit import Permit
from asyncguard.testing._proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from asyncguard.backends import Backend
    from asyncguard.guard import Guard
    from asyncguard.hub import AsyncGuard
    from asyncguard.ticket import Ticket

T = TypeVar("T")


@contextlib.contextmanager
def fresh(ag: AsyncGuard) -> Iterator[AsyncGuard]:
    """Give an AsyncGuard an empty in-process backend while the block lasts, whatever its URL.

    In the end all permits must have been released, and nobody may wait. Then the AsyncGuard is as
    before, on the backend that it had. Guards that are declared within the block stay declared; what
    replaced one that existed before is undone. A block that raises is not checked.

    Raises, at the end of the block:
        AssertionError: permits are still held or were dropped, or tickets still wait; it names each.
    """
    __tracebackhide__ = True
    backend = _Watched(open_backend("memory:", clock=ag.clock, namespace=ag.namespace))
    with ag._lock:
        before, was_draining, declared = ag._backend, ag._draining, dict(ag._guards)
    for guard in declared.values():
        backend.redeclare(guard.declaration)
    _move(ag, backend, draining=False)
    try:
        yield ag
    finally:
        guards = list(ag._guards.values())
        _move(ag, before, draining=was_draining)
        ag._guards.update(declared)
    leaks = _leaks(backend, guards)
    if leaks:
        raise AssertionError(
            "\n  ".join([f"leaked on {ag!r}:", *leaks])
            + "\nRelease each permit, as `async with guard` does; await or cancel each task that waits."
        )


def _move(ag: AsyncGuard, backend: Backend | None, *, draining: bool) -> None:
    """Have all guards use another backend from their next ticket on."""
    with ag._lock:
        guards = [*ag._bound, *ag._guards.values()]
        ag._backend = backend
        ag._draining = draining
        ag._unbind()
        for guard in guards:
            guard._terms.come_from("", 0)


def _leaks(backend: _Watched, guards: Iterable[Guard]) -> list[str]:
    """Describe what was dropped, what is held, and who waits."""
    _run(backend.aclose())  # it sees to what was abandoned first
    leaks = list(backend.dropped)
    for guard in guards:
        picture = _run(backend.inspect(guard.declaration, None))
        leaks += [
            f"permit of {_describe(guard.name, holder.key, holder.label)}: held for {holder.held:.3f} s and "
            "not released"
            for holder in picture.holders
        ]
        leaks += [
            f"ticket of {_describe(guard.name, waiter.key, waiter.label)}: still waiting after "
            f"{waiter.waited:.3f} s"
            for waiter in picture.queue
        ]
    return leaks


def _describe(guard: str, key: str | None, label: str) -> str:
    return f"guard {guard!r}" + (f", key {key!r}" if key else "") + (f", label {label!r}" if label else "")


@final
class _Watched(Proxy):
    """A backend that notes which permits were dropped: these pass on, so that nothing else shows them."""

    def __init__(self, behind: Backend) -> None:
        super().__init__(behind)
        self.dropped: list[str] = []

    def abandon(self, ticket: Ticket) -> None:
        if (
            isinstance(ticket, Permit)
            and ticket.state == "held"
            and ticket.extra is not None
            and ticket.extra.handle is not None
        ):
            described = _describe(ticket.guard, ticket.key, ticket.terms.label)
            self.dropped.append(f"permit of {described}: held for {ticket.held:.3f} s, dropped, not released")
        super().abandon(ticket)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the in-process backend, which waits for nothing, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the in-process backend waits for something")
