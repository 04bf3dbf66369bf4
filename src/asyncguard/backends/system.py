"""What the sqlite backend asks of the system: of Linux its own means, and where they aren't, others."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, final

PROC = Path("/proc")
"""Where the system tells of processes, if it does."""
SYSCTL = "/usr/sbin/sysctl"
"""The command that tells where nothing else does, on macOS."""
PLATFORM = sys.platform
"""Whose `struct flock` is used."""
_ONCE: Final = (1).to_bytes(8, sys.byteorder)
_LONGEST_ADDRESS: Final = 103
"""Bytes of a socket's path on macOS: its address has room for 104, with the NUL at its end."""
_LONGEST_CLIENT: Final = 9
"""Of a client's number, with the slash before it."""
_PATIENCE: Final = 10.0


@final
class Waker:
    """Has a selector return that another thread waits in."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._reads: int = os.eventfd(0)
            self._writes = self._reads
        else:
            self._reads, self._writes = os.pipe()
        os.set_blocking(self._reads, False)
        os.set_blocking(self._writes, False)

    def fileno(self) -> int:
        """Tell the descriptor to wait for."""
        return self._reads

    def wake(self) -> None:
        """Have the selector return, from any thread; once it is closed, do nothing."""
        with contextlib.suppress(OSError):  # it is closed, or full, and so wakes already
            os.write(self._writes, _ONCE)

    def clear(self) -> None:
        """Have it wake no more, until it is told to again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reads, 4096)

    def close(self) -> None:
        """Give the descriptors back; what they stand for may be another's file from now on."""
        descriptors = {self._reads, self._writes}
        self._reads = self._writes = -1
        for descriptor in descriptors:
            os.close(descriptor)


def watch_process(pid: int) -> int | None:
    """Open a descriptor that is readable once a process has ended; None: it has, or nothing tells."""
    descriptor: int | None = None
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # it is dead
            descriptor = os.pidfd_open(pid)
    return descriptor


def parent_of(process: int) -> int:
    """Tell which process is another's parent.

    Raises:
        OSError: it is gone, or nothing tells.
    """
    if PROC.exists():
        return int((PROC / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
    command = ["ps", "-o", "ppid=", "-p", str(process)]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
    if not told:
        raise ProcessLookupError(process)
    return int(told)


def process_namespace() -> int:
    """Tell the namespace of processes that this one is in; 0 where there are none."""
    with contextlib.suppress(FileNotFoundError):
        return (PROC / "self/ns/pid").stat().st_ino
    return 0


def is_locked(descriptor: int, byte: int) -> bool:
    """Tell whether another process has locked a byte of a file."""
    if PLATFORM == "darwin":
        asked = struct.pack("qqihh", byte, 1, 0, fcntl.F_WRLCK, os.SEEK_SET)
        kind = struct.unpack("qqihh", fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[3]
    else:
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        kind = struct.unpack("hhqqi", fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
    return bool(kind != fcntl.F_UNLCK)


@functools.cache
def boot_id() -> str:
    """Tell the host's boots from each other; may take a while.

    Raises:
        OSError: nothing tells.
    """
    with contextlib.suppress(FileNotFoundError):
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    command = [SYSCTL, "-n", "kern.bootsessionuuid"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise OSError(f"nothing tells one boot of this host from another: {error}") from error
    if not (told := done.stdout.strip()):
        raise OSError(f"nothing tells one boot of this host from another: {' '.join(command)} said nothing")
    return told


def mounts() -> list[list[str]]:
    """List the mounts, with the fields of /proc/self/mountinfo; none where nothing tells."""
    with contextlib.suppress(FileNotFoundError):
        return [line.split() for line in (PROC / "self/mountinfo").read_text().splitlines()]
    return []


def short_name(directory: Path, descriptor: int) -> str:
    """Name a directory that is open, for addresses of sockets in it, which have little room.

    Raises:
        OSError: no name is short enough.
    """
    if (PROC / "self/fd").exists():
        return f"{PROC}/self/fd/{descriptor}"
    directory = directory.absolute()
    if _fits(name := str(directory)):
        return name
    # Through a link sockets are in the same place as for those whose name for it is short enough.
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    link = Path(tempfile.gettempdir()) / f"asyncguard-bells-{os.getuid()}-{digest}"
    if not _fits(str(link)):
        raise OSError(
            f"its path is too long for addresses of sockets, which have {_LONGEST_ADDRESS} bytes, and so is "
            "the temporary directory's: give either a shorter one"
        )
    with contextlib.suppress(FileExistsError):
        link.symlink_to(directory)
    if link.lstat().st_uid != os.getuid() or link.readlink() != directory:
        raise OSError(f"{str(link)!r} isn't a link of ours to {str(directory)!r}: remove it, or set TMPDIR")
    return str(link)


def _fits(name: str) -> bool:
    return len(os.fsencode(name)) + _LONGEST_CLIENT <= _LONGEST_ADDRESS
