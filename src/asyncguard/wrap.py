"""The decorator: a function under a guard, with its signature as it was."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final, overload

from asyncguard.checks import check_choice
from asyncguard.keys import as_key
from asyncguard.permit import Hold, Permit, hear_that_it_left, open_scope_of_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from asyncguard.guard import Ask, Entry, Guard
    from asyncguard.keys import Key

    KeySource = str | Callable[..., Key]
    """The name of a parameter, or what computes the key from the arguments."""

P = ParamSpec("P")
R = TypeVar("R")


@final
class Wrapper:
    """What `@guard(key=...)` decorates with."""

    __slots__ = ("_ask", "_guard", "_hold", "_key")

    def __init__(self, guard: Guard, key: KeySource | None, hold: Hold, ask: Ask) -> None:
        self._guard = guard
        self._key = key
        check_choice("hold", hold, Hold)
        self._hold: Hold = hold
        self._ask = ask
        check_key_source(key)

    @overload
    def __call__(self, func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __call__(self, func: Callable[..., Any], /) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Put a function under the guard."""
        check_function(func)
        key_of = None if self._key is None else key_reader(func, self._key)
        guard, hold, ask = self._guard, self._hold, self._ask
        awaits = is_async(func)
        plain = awaits and key_of is None and not ask
        ends = hold in ("auto", "handler")
        run = _run if awaits else functools.partial(_run_in_thread, guard)

        @functools.wraps(func)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            if not plain:
                key = None if key_of is None else key_of(args, kwargs)
                return await run(guard.permit(key=key, **ask), hold, func, args, kwargs)
            entered = guard.enter()  # what follows is `async with guard`, without two coroutines
            permit = entered if type(entered) is Permit else await entered
            try:
                result = await func(*args, **kwargs)
                if not ends or type(result) not in _PLAIN:
                    result = _returned(func, result, permit, hold)
            except BaseException as error:
                acknowledged = permit.close_block(error)
                if acknowledged is not None:
                    await hear_that_it_left(acknowledged, error)
                raise
            acknowledged = permit.close_quickly()
            if acknowledged is not None:
                await acknowledged
            return result

        return guarded


async def _run(
    entry: Entry, hold: Hold, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    async with entry as permit:
        return _returned(func, await func(*args, **kwargs), permit, hold)


async def _run_in_thread(
    guard: Guard,
    entry: Entry,
    hold: Hold,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    async with entry as permit:
        context = contextvars.copy_context()
        entry.work = guard.submit(context.run, _work, permit, func, args, kwargs)
        result = await asyncio.wrap_future(entry.work)
        result = await result if inspect.isawaitable(result) else result
        return _returned(func, result, permit, hold)


def _returned(func: Callable[..., Any], result: Any, permit: Permit, hold: Hold) -> Any:
    """Return what the function did, and see to a permit that should outlive it."""
    if isinstance(result, _GENERATORS):
        raise TypeError(_GENERATOR.format(func))
    scope = permit.scope
    if scope is not None and scope.served is not None:
        scope.served.take_over(permit, hold, result)
    return result


def _work(permit: Permit, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    open_scope_of_thread(permit)
    try:
        return func(*args, **kwargs)
    except StopIteration as error:
        # No future can carry one; a coroutine makes the same of it.
        raise RuntimeError(f"{func!r} raised StopIteration") from error


_PLAIN = frozenset({type(None), bool, int, float, str, bytes, list, dict})
"""What is no generator, and no response."""
_GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)
_GENERATOR = (
    "{0!r} makes a generator, whose body runs when the permit is gone: "
    "put `async with guard.permit()` around the work in its body"
)


def _computing(source: Callable[..., Key], what: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Key]:
    if is_async(source):
        raise TypeError(f"{what}: expected a plain function, got the coroutine function {source!r}")

    def compute(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        try:
            key = source(*args, **kwargs)
        except Exception as error:
            error.add_note(f"raised by {what}, which is called with the arguments of the call")
            raise
        return as_key(key, f"{what}, as computed")

    return compute


def check_key_source(key: object) -> None:
    """Check what should say the key of a decorated function's call.

    Raises:
        TypeError: it can't.
    """
    if key is not None and not isinstance(key, str) and not callable(key):
        raise TypeError(f"key: expected a parameter's name or a callable, got {key!r}")
    if getattr(key, "reads_requests", False):
        raise TypeError(
            f"key: {key!r} is for require() and GuardMiddleware; the decorator sees the endpoint's "
            "arguments: name one of them, or give a function of them"
        )


def check_function(func: Any, generator: str = _GENERATOR) -> None:
    """Check that something is a function whose body runs when it is called.

    Raises:
        TypeError: it isn't; for a generator function with the message `generator`.
    """
    if isinstance(func, staticmethod | classmethod):
        kind = type(func).__name__
        raise TypeError(f"the guard must be under @{kind}, next to the function: swap the two decorators")
    if isinstance(func, type) or not callable(func):
        raise TypeError(f"expected a function to guard, got {func!r}")
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(generator.format(func))


def is_async(func: Any) -> bool:
    """Tell whether calls of it are to be awaited."""
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def key_reader(
    func: Callable[..., Any], source: KeySource
) -> Callable[[tuple[Any, ...], dict[str, Any]], Key]:
    """Make what finds the key among a call's arguments.

    Raises:
        ValueError: no parameter goes by the name.
    """
    name = getattr(func, "__qualname__", repr(func))
    if not isinstance(source, str):
        return _computing(source, f"key= of {name}()")
    signature = inspect.signature(func)
    parameter = signature.parameters.get(source)
    if parameter is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        parameters = ", ".join(signature.parameters) or "none"
        raise ValueError(f"key: {name}() has no parameter {source!r}; it has {parameters}")
    index = list(signature.parameters).index(source)
    by_position = parameter.kind is not parameter.KEYWORD_ONLY
    by_keyword = parameter.kind is not parameter.POSITIONAL_ONLY
    what = f"key {source!r} of {name}()"

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
        if by_keyword and source in kwargs:
            return as_key(kwargs[source], what)
        if by_position and index < len(args):
            return as_key(args[index], what)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return as_key(bound.arguments[source], what)

    return read
