"""Worker processes that each guard only themselves: the second of them says so, once."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

_log = logging.getLogger("asyncguard")
_FIRST, _SECOND = 0, 1
"""Bytes of the file: one is locked by the first process for as long as it lives, one by who told."""
_OLD: Final = 3600
"""Seconds after which a file that nobody has locked is one that was left."""
# Another user may have put something else there, which is not to be followed or opened for long.
_FLAGS: Final = (
    os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
)
_MARKED: Final[dict[str, int]] = {}
"""The files of this process. None is closed before its end, as that would drop its locks on the file."""

_marking = threading.Lock()


def look_for_siblings(namespace: str) -> None:
    """Log an error if another process does what this one does, with permits of its own.

    That is one of the same user and parent, with the same arguments, directory and namespace: another
    worker of the same server. A thread looks, as it is about files, and what fails is let be.
    """
    with contextlib.suppress(RuntimeError):  # no thread can be started any more
        threading.Thread(target=_look, args=(namespace,), name="asyncguard: siblings", daemon=True).start()


def _look(namespace: str) -> None:
    with contextlib.suppress(OSError, ImportError, AttributeError):  # Windows has no such locks, nor users
        _mark(namespace)


def _mark(namespace: str) -> None:
    what = "\0".join([str(os.getppid()), namespace, str(Path.cwd()), *sys.argv])
    digest = hashlib.sha256(what.encode(errors="surrogatepass")).hexdigest()[:24]
    mine = Path(tempfile.gettempdir()) / f"asyncguard-{os.getuid()}-"
    name = f"{mine}{digest}"
    with _marking:
        if name in _MARKED:
            return
        _MARKED[name] = -1
        _sweep(mine)
    file = _MARKED[name] = os.open(name, _FLAGS | os.O_CREAT, 0o600)
    if os.fstat(file).st_uid != os.getuid():
        return
    if _lock(file, _FIRST):
        atexit.register(_unlink, name, os.getpid())
    elif _lock(file, _SECOND):
        _log.error(
            "another process of this service is alive, and the AsyncGuard of each has permits of its own: "
            "their work overlaps. Processes share permits and queue with "
            "ASYNCGUARD_URL=sqlite:///path/guards.db, or AsyncGuard(url), on Linux or macOS; "
            "if each is to guard only itself, say so with ASYNCGUARD_URL=memory:"
        )


def _sweep(mine: Path) -> None:
    """Remove what processes left here that were killed, or ended as forked ones do.

    Only what is old: to another process a lock of ours would look like that of a sibling.
    """
    for path in mine.parent.glob(f"{mine.name}*"):
        with contextlib.suppress(OSError):
            if str(path) in _MARKED or time.time() - path.lstat().st_mtime < _OLD:
                continue
            file = os.open(path, _FLAGS)
            try:
                if _lock(file, _FIRST) and _lock(file, _SECOND):
                    path.unlink()
            finally:
                os.close(file)


def _lock(file: int, byte: int) -> bool:
    """Lock a byte while this process lives; no child inherits such a lock. False: another one has it."""
    import fcntl  # noqa: PLC0415 - not on every system

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlink(name: str, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - at the end of a process little is left to rely upon
