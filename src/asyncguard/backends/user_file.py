"""The file of guards that a user's `serve`, `run` and `status` share where no URL is set."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

_OTHERS_MAY_WRITE = 0o022


def user_url(environ: Mapping[str, str] = os.environ) -> str:
    """Name the file, which is in the user's state directory; neither needs to be there.

    That directory is there in a cron job and after a logout, too, unlike the one for what runs.

    Raises:
        ValueError: the user has no home directory, and `XDG_STATE_HOME` isn't set.
    """
    return "sqlite://" + quote(str(_directory(environ) / "guards.db"))


def make_user_directory(environ: Mapping[str, str] = os.environ) -> None:
    """Make the directory of the file, if it isn't there, for this user alone.

    Raises:
        ValueError: it can't be made or written, or isn't this user's.
    """
    directory = _directory(environ)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = directory.stat()
    except OSError as error:
        raise _unusable(directory, f"it can't be made: {error.strerror}") from None
    if seen.st_uid != os.geteuid():
        raise _unusable(directory, f"it belongs to the user with id {seen.st_uid}, not {os.geteuid()}")
    if seen.st_mode & _OTHERS_MAY_WRITE:
        raise _unusable(directory, "other users may write to it: chmod 700 it")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable(directory, "it can't be written")


def _directory(environ: Mapping[str, str]) -> Path:
    state = environ.get("XDG_STATE_HOME", "")
    if state.startswith("/"):  # others are to be ignored, says the specification of base directories
        return Path(state) / "asyncguard"
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - which raises nothing
    if not home.startswith("/"):
        raise ValueError(
            "no ASYNCGUARD_URL is set, and this user has no home directory for a file of guards: set "
            "ASYNCGUARD_URL=sqlite:///path/guards.db, or ASYNCGUARD_URL=memory: for one process alone"
        )
    state = "Library/Application Support" if sys.platform == "darwin" else ".local/state"
    return Path(home) / state / "asyncguard"


def _unusable(directory: Path, why: str) -> ValueError:
    return ValueError(
        f"the directory {str(directory)!r} can't be used for the file of guards: {why}. Mend that, "
        "or set ASYNCGUARD_URL=sqlite:///path/guards.db (or, for a service of one process, "
        "ASYNCGUARD_URL=memory:)"
    )
