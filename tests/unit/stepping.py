"""Coroutines that are run step by step, so that something can be done before any one of the steps."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that calls `before_step` each time before it goes on."""

    def __init__(self, inner: Coroutine[Any, Any, Any], before_step: Callable[[], object]) -> None:
        self._inner = inner
        self._before_step = before_step

    def __await__(self) -> Any:
        return self._inner.__await__()

    def send(self, value: Any) -> Any:
        self._before_step()
        return self._inner.send(value)

    def throw(self, *error: Any) -> Any:
        self._before_step()
        return self._inner.throw(*error)

    def close(self) -> None:
        self._inner.close()
