"""What becomes of the queue when the server is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from asyncguard.hub import AsyncGuard

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def draining_on_signals(ag: AsyncGuard) -> Iterator[None]:
    """Refuse who waits as soon as the process is told to stop, and have the server do what it does.

    A server lets its requests end before it ends the application's lifespan, and so would serve the
    whole queue first. Signals that nobody handles, and those of a server in another thread, are left
    alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    chained: dict[signal.Signals, tuple[Callable[..., object], Callable[..., object]]] = {}
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if callable(before):
            chained[number] = (before, _chain(loop, ag.drain, before))
            signal.signal(number, chained[number][1])
    try:
        yield
    finally:
        for number, (before, ours) in chained.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, before)


def _chain(
    loop: asyncio.AbstractEventLoop, drain: Callable[[], None], before: Callable[..., object]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):  # a closed loop: nobody waits there any more
            loop.call_soon_threadsafe(drain)
        before(number, frame)

    return handle
