"""An event loop beside the threads that block: where they wait, and where their timers ring."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


@final
class SideLoop:
    """An event loop in a thread of its own, which ends when it is told to and nobody uses it any more.

    It is told to when its owner is gone, too. No lock is taken, so that a finaliser may be the one who
    leaves: a user comes in first, and then looks whether it is over; who ends it says so first, and
    then looks for users.
    """

    def __init__(self, owner: object) -> None:
        self.loop = asyncio.new_event_loop()
        self._users: set[object] = set()
        self._is_over = False
        self.is_left_behind = False
        """Whether it is that of a forked child's parent."""
        self._owner: weakref.ref[object] | None = weakref.ref(owner, lambda _: self.end())
        try:
            threading.Thread(target=self._run, name="asyncguard: blocking", daemon=True).start()
        except RuntimeError:  # there can be no more threads
            self.loop.close()
            raise
        except BaseException:  # a signal handler's, and the thread may run already: it closes the loop
            self._stop()
            raise

    def _run(self) -> None:
        while True:
            try:
                self.loop.run_forever()
            except (KeyboardInterrupt, SystemExit):  # an observer's, say: it is told to whoever waits for it
                continue
            break
        self.loop.close()

    def join(self, user: object) -> bool:
        """Have it run for as long as `user` needs it; False if it has ended."""
        self._users.add(user)
        if not self._is_over:
            return True
        self.leave(user)
        return False

    def leave(self, user: object) -> None:
        """Need it no more."""
        self._users.discard(user)
        if self._is_over and not self._users:
            self._stop()

    def end(self) -> None:
        """Take no more users, and stop when the last has left."""
        self._is_over = True
        if not self._users:
            self._stop()

    def _stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has stopped already
            self.loop.call_soon_threadsafe(self.loop.stop)

    def leave_behind(self) -> None:
        """Be the parent's, in a forked child: there is no thread here, and what it holds is shared."""
        self._owner = None
        self.is_left_behind = True
        _of_parents.append(self)  # to collect the loop would close what the parent's waits on

    def run(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have the loop run a coroutine, and block the calling thread until it is done."""
        return asyncio.run_coroutine_threadsafe(start(), self.loop).result()


_of_parents: list[SideLoop] = []
