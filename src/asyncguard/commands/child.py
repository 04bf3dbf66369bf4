"""A command that runs as a child, in a process group of its own: signals, the terminal, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final, final

from asyncguard.backends.system import parent_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

GRACE: Final = 5.0
"""Seconds between telling the group to end and killing it."""
_POLL: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1
_FOR_THE_TERMINAL: Final = (signal.SIGTTIN, signal.SIGTTOU)


def code_of_signal(number: int) -> int:
    """Make the exit code of what a signal ended, as shells have it."""
    return 128 + number


@final
class Child:
    """The command, from its start to its end; for an event loop in the main thread.

    It is in the background of our terminal, so that what is typed there comes to us, who pass it on,
    until it reads or changes the terminal: then this is given to it.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it.

        Raises:
            OSError: it can't be started.
        """
        self._loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        self._has_terminal = False
        self._is_told_to_stop = False
        self._is_hung_up = False
        self._loop.add_signal_handler(signal.SIGCHLD, self._look)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])  # which who called us may have blocked
        try:
            self._process = subprocess.Popen(  # noqa: S603 - to run what it is told is what it is for
                command,
                env=environ,
                process_group=0,
                close_fds=False,  # what the caller opened for it, as `3<file`
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - no lock is taken in it
            )
        except BaseException:  # whose end is told, too
            self._loop.remove_signal_handler(signal.SIGCHLD)
            raise
        self._group = self._process.pid
        self._look()

    async def wait(self) -> int:
        """Wait for its end, and tell the exit code."""
        return await asyncio.shield(self._code)

    def signal(self, number: int) -> None:
        """Pass a signal on to the group."""
        if number in (signal.SIGTSTP, signal.SIGCONT):
            self._is_told_to_stop = number == signal.SIGTSTP
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, number)

    async def end(self) -> None:
        """Tell the group to end, and kill what of it doesn't within some seconds."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # one that is stopped hears nothing
        deadline = self._loop.time() + GRACE
        while self._is_there() and self._loop.time() < deadline:  # noqa: ASYNC110 - nothing tells of a group
            await asyncio.sleep(_POLL)
        self.signal(signal.SIGKILL)
        await self.wait()

    def _is_there(self) -> bool:
        try:
            os.killpg(self._group, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it is another user's by now, as with sudo
            return True
        return True

    # --- what becomes of it --------------------------------------------------------------------

    def _look(self) -> None:
        while not self._code.done():
            pid, status = os.waitpid(self._process.pid, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                self._stopped(os.WSTOPSIG(status))
                continue
            code = os.waitstatus_to_exitcode(status)
            self._process.returncode = code
            self._take_terminal()
            self._code.set_result(code if code >= 0 else code_of_signal(-code))

    def _stopped(self, number: int) -> None:
        """Give it the terminal if it wants that and we have it; else stop with it, as one job."""
        # To continue one that was told to stop meanwhile would have it miss that.
        if number in _FOR_THE_TERMINAL and not self._is_told_to_stop and self._give_terminal():
            self.signal(signal.SIGCONT)
        elif number in _FOR_THE_TERMINAL and _is_orphaned():
            # As the system does with a job that is left; who ignores that stays stopped.
            if not self._is_hung_up:
                self._is_hung_up = True
                self.signal(signal.SIGHUP)
                self.signal(signal.SIGCONT)
        elif number != signal.SIGSTOP:  # which somebody sent to it alone
            whole_job = self._has_terminal  # then the others of our job haven't heard of it
            self._take_terminal()
            with _as_usual(number):
                os.kill(0 if whole_job else os.getpid(), number)
            self.signal(signal.SIGCONT)

    def _give_terminal(self) -> bool:
        with contextlib.suppress(OSError), _terminal() as terminal:
            if os.tcgetpgrp(terminal) in (os.getpgrp(), self._group):
                os.tcsetpgrp(terminal, self._group)
                self._has_terminal = True
                return True
        return False

    def _take_terminal(self) -> None:
        if self._has_terminal:
            self._has_terminal = False
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
            try:
                with contextlib.suppress(OSError), _terminal() as terminal:
                    if os.tcgetpgrp(terminal) == self._group:
                        os.tcsetpgrp(terminal, os.getpgrp())
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _is_orphaned() -> bool:
    """Whether no shell is left that could give us the terminal: then nothing stops us, either."""
    parent = os.getppid()
    with contextlib.suppress(OSError):  # it is gone
        while parent and os.getsid(parent) == os.getsid(0):
            if os.getpgid(parent) != os.getpgrp():
                return False
            parent = parent_of(parent)
    return True


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield terminal
    finally:
        os.close(terminal)


@contextlib.contextmanager
def _as_usual(number: int) -> Iterator[None]:
    """Have a signal stop us, rather than be passed on."""
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)
        if callable(before):
            signal.siginterrupt(number, False)


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """Make what has a child killed when we are: our permit passes on then."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was faster
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare
