"""The blocking form: a guard for threads, scripts and frameworks without an event loop."""

# A guard, the blocks on it and their permits are one mechanism.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import types
from typing import TYPE_CHECKING, Any, Unpack, cast, final, overload

from asyncguard.errors import BackendUnavailable
from asyncguard.permit import ThreadScope, scope_of_thread
from asyncguard.wrap import check_function, check_key_source, is_async, key_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asyncguard.guard import Ask, Guard
    from asyncguard.keys import Key
    from asyncguard.permit import Permit
    from asyncguard.sideloop import SideLoop
    from asyncguard.wrap import KeySource, P, R

_GENERATOR = (
    "{0!r} makes a generator, whose body runs when the permit is gone: "
    "put `with guard.blocking()` around the work in its body"
)
_COROUTINE = "{0!r} makes a coroutine, which runs on an event loop: put it under `@guard`"


@final
class Blocking:
    """A guard as code takes it that blocks; what `Guard.blocking` is."""

    __slots__ = ("_guard",)

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __repr__(self) -> str:
        return f"{self._guard!r}.blocking"

    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, /, *, key: Key | KeySource | None = None, **ask: Unpack[Ask]) -> BlockingEntry: ...
    def __call__(
        self,
        func: Callable[..., Any] | None = None,
        /,
        *,
        key: Key | KeySource | None = None,
        **ask: Unpack[Ask],
    ) -> Any:
        """Make a block, or put a `def` under the guard; see `Guard.blocking`."""
        entry = BlockingEntry(self._guard, key, ask)
        return entry if func is None else entry(func)


@final
class BlockingEntry:
    """A block of a thread's, to be entered once; or what decorates a `def`, each call of which is one."""

    __slots__ = ("_ask", "_guard", "_is_entered", "_key", "_permit", "_side", "_terms", "_text")

    def __init__(self, guard: Guard, key: Key | KeySource | None, ask: Ask) -> None:
        self._permit: Permit | None = None
        self._side: SideLoop | None = None
        """The loop that the block needs for as long as it lasts."""
        self._is_entered = False
        self._guard = guard
        self._key = key
        self._ask = ask
        self._terms, self._text = guard._terms_for(None if callable(key) else key, ask)

    # --- the block -----------------------------------------------------------------------------

    def __enter__(self) -> Permit:
        if self._is_entered:
            raise RuntimeError("this block was entered before: call guard.blocking() for each")
        if callable(self._key):
            raise TypeError(
                f"key: {self._key!r} is for the decorator, which calls it with the arguments; "
                "a block takes the key itself"
            )
        guard = self._guard
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                f"an event loop runs in this thread, and waiting for {guard!r} would block it: use "
                "`async with guard`, or `@guard`"
            )
        backend = guard.bound_to or guard._bind()
        self._is_entered = True
        needs_loop = not backend.answers_at_once or guard.options.max_hold is not None
        scope = scope_of_thread()
        wait: _Wait | None = None
        try:
            if not needs_loop:
                # It may only be busy, for which the loop waits.
                with contextlib.suppress(BackendUnavailable):
                    self._permit = guard._enter_at_once(self._terms, self._text, backend)
            if self._permit is None:
                self._side = guard._hub.side_loop(self)
                wait = _Wait(self._side, lambda: guard._enter(self._terms, self._text, scope))
                self._permit = wait.sleep()
                if not needs_loop:
                    self._let_go()
            guard._open_block(self._permit, scope)
        except BaseException as error:
            try:
                if self._permit is not None:
                    self._close(self._permit, error)
                elif wait is not None:
                    wait.give_up()
            finally:
                self._let_go()
                scope.close()
                self._is_entered, self._permit = False, None
            raise
        return self._permit

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        permit = self._permit
        if permit is None:
            raise RuntimeError("this block was not entered")
        scope = permit.scope
        try:
            self._close(permit, exc)
        finally:
            self._let_go()
            if isinstance(scope, ThreadScope):
                scope.close()
        self._permit = None
        if exc is None:
            permit.say_if_lost()

    def __del__(self) -> None:
        # It may have been interrupted before it had the attribute.
        permit: Permit | None = getattr(self, "_permit", None)
        if permit is not None:  # an interrupt came just as the block was to end
            permit.close_block(GeneratorExit())
            self._let_go()

    def _close(self, permit: Permit, exc: BaseException | None) -> None:
        if permit.backend.answers_at_once or self._side is None or isinstance(exc, GeneratorExit):
            permit.close_block(exc)
            return
        if self._side.is_left_behind:  # in a forked child, and the permit is the parent's
            return

        async def close() -> None:
            acknowledged = permit.close_block(exc)
            if acknowledged is not None:
                await acknowledged

        self._side.run(close)

    def _let_go(self) -> None:
        side, self._side = self._side, None
        if side is not None:
            side.leave(self)

    # --- the decorator -------------------------------------------------------------------------

    def __call__(self, func: Callable[P, R], /) -> Callable[P, R]:
        """Put a plain `def` under the guard.

        Raises:
            TypeError: it is something else.
            ValueError: no parameter goes by the name `key`.
        """
        check_key_source(self._key)
        check_function(func, _GENERATOR)
        if is_async(func):
            raise TypeError(_COROUTINE.format(func))
        guard, ask = self._guard, self._ask
        key_of = None if self._key is None else key_reader(func, cast("KeySource", self._key))

        @functools.wraps(func)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            key = None if key_of is None else key_of(args, kwargs)
            with BlockingEntry(guard, key, ask):
                result = func(*args, **kwargs)
                if isinstance(result, types.CoroutineType):
                    result.close()
                    raise TypeError(_COROUTINE.format(func))
                if isinstance(result, types.GeneratorType | types.AsyncGeneratorType):
                    raise TypeError(_GENERATOR.format(func))
                return result

        return guarded


@final
class _Wait:
    """A ticket's wait on the side loop, for which a thread sleeps.

    Only the loop decides what comes of it, so that the thread may be interrupted at any moment, and the
    permit passes on nevertheless.
    """

    __slots__ = ("_awake", "_error", "_is_given_up", "_permit", "_side", "_start", "_task")

    def __init__(self, side: SideLoop, start: Callable[[], Coroutine[Any, Any, Permit]]) -> None:
        self._side = side
        self._start = start
        self._awake = threading.Event()
        self._task: asyncio.Task[Permit] | None = None
        self._permit: Permit | None = None
        self._error: BaseException | None = None
        self._is_given_up = False

    def sleep(self) -> Permit:
        """Block the calling thread until there is a permit.

        Raises:
            GuardError: there won't be one; as `Guard.acquire`.
        """
        self._side.loop.call_soon_threadsafe(self._begin)
        self._awake.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # whose traceback knows us
        return cast("Permit", self._permit)

    def give_up(self) -> None:
        """Leave no trace, whatever came of it; if it was granted, the permit passes on."""
        self._side.loop.call_soon_threadsafe(self._withdraw)
        self._awake.wait()

    # --- on the loop ---------------------------------------------------------------------------

    def _begin(self) -> None:
        self._side.join(self)
        self._task = self._side.loop.create_task(self._start())
        self._task.add_done_callback(self._end)

    def _withdraw(self) -> None:
        self._is_given_up = True
        if self._permit is not None:
            self._permit.end(finished=False)
        if self._task is not None:
            self._task.cancel()
        else:
            self._awake.set()

    def _end(self, task: asyncio.Task[Permit]) -> None:
        if task.cancelled():
            self._error = asyncio.CancelledError()
        else:
            self._error = task.exception()
        if self._error is None:
            self._permit = task.result()
            if self._is_given_up:
                self._permit.end(finished=False)
        self._task = None
        self._side.leave(self)
        self._awake.set()
