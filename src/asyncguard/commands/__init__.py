"""The subcommands of `asyncguard`, and what they have in common."""

from __future__ import annotations

import importlib.util
import io
import os
import sys

USAGE_ERROR = 2
"""The exit code for what the caller must change, as argparse has it."""


def check_extra(what: str, *modules: str, extra: str) -> None:
    """Look for what a command needs beyond the library.

    Raises:
        ImportError: something is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'{what} needs {" and ".join(missing)}: run `pip install "asyncguard[{extra}]"`', name=missing[0]
        )


def print_any_letter() -> None:
    """Have what can't be written where it is printed to, as of a key or of what a server says, be escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def print_no_more() -> None:
    """Have nothing written at the end, either: who reads it has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
