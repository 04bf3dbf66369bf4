"""Who is alive: each client holds a byte of a file locked for as long as its process lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from asyncguard.backends import system

if TYPE_CHECKING:
    from collections.abc import Callable

_files: dict[str, Lives] = {}
"""By identity. None is ever closed: that would drop all locks that the process has on the file."""
_opening = threading.Lock()
_NOBODY: Final = 0
"""The byte of no client."""


@final
class Lives:
    """The file whose bytes are locked; one object for each file in a process.

    POSIX record locks go when their process ends, however it ends, and aren't inherited by what it
    forks. (An flock would be held on by a forked child.)
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.identity = str(os.fstat(descriptor).st_ino)
        """Which file it is; another one of the same name has another, as long as anybody has this one open.

        Its device doesn't count: a container that is started again finds its files on another one.
        """
        self._ours: set[int] = set()
        """A process doesn't see its own locks."""
        self._is_busy = threading.Lock()
        """Nor do its threads."""

    @classmethod
    def of(cls, path: Path) -> Lives:
        """Open the file, which is made if there is none.

        Raises:
            OSError: it can't be.
        """
        with _opening:
            with contextlib.suppress(FileNotFoundError):
                if (known := _files.get(_identity(path.stat()))) is not None:
                    return known
            lives = cls(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            return _files.setdefault(_identity(os.fstat(lives._descriptor)), lives)

    def hold(self, client: int) -> None:
        """Be alive as this client from now on."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, client)
        self._ours.add(client)

    def let_go(self, client: int) -> None:
        """Be this client no more."""
        self._ours.discard(client)
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, client)

    def is_alive(self, client: int) -> bool:
        """Tell whether some process is this client."""
        return client in self._ours or system.is_locked(self._descriptor, client)

    def alone(self, work: Callable[[], object]) -> None:
        """Do something, unless somebody is at it already, in this process or another."""
        if not self._is_busy.acquire(blocking=False):
            return
        try:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _NOBODY)
            except OSError:
                return
            try:
                work()
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _NOBODY)
        finally:
            self._is_busy.release()


def _identity(file: os.stat_result) -> str:
    return f"{file.st_dev}:{file.st_ino}"


_WRITING: Final = "120"
"""The byte of the file with -shm that SQLite has locked while it writes, in WAL mode."""


def writer_of(path: Path) -> str:
    """Name the process that is inside a step on a database, as far as the system tells."""
    with contextlib.suppress(OSError, ValueError):
        locks = (system.PROC / "locks").read_text().splitlines()
        shared = Path(f"{path}-shm").stat()
        place = f"{os.major(shared.st_dev):02x}:{os.minor(shared.st_dev):02x}:{shared.st_ino}"
        for line in locks:
            _, _, _, kind, pid, where, first, _ = line.split()[:8]
            if where == place and kind == "WRITE" and first == _WRITING:
                command = (system.PROC / pid / "comm").read_text().strip()
                return f"process {pid} ({command})"
    return "another process"


def _forget_the_parent() -> None:
    global _opening  # noqa: PLW0603
    _opening = threading.Lock()
    for lives in _files.values():
        lives._ours.clear()  # noqa: SLF001
        lives._is_busy = threading.Lock()  # noqa: SLF001 - another thread of the parent may have held it


os.register_at_fork(after_in_child=_forget_the_parent)
