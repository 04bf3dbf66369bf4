"""Take from Python what only Linux has; each process imports this first, whose PYTHONPATH has this directory."""

from __future__ import annotations

import os
import socket
from pathlib import Path

for module, names in (
    (os, ("eventfd", "eventfd_read", "eventfd_write", "pidfd_open")),
    (socket, ("SOCK_NONBLOCK", "SOCK_CLOEXEC")),
):
    for name in names:
        delattr(module, name)

from asyncguard.backends import system  # noqa: E402

system.PROC = Path("/there is none")
system.SYSCTL = str(Path(__file__).with_name("sysctl"))
