"""The subcommands of `asyncguard`, and what they have in common."""

from __future__ import annotations

import importlib.util

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
