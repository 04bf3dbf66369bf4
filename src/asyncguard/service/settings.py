"""What the environment says about the service."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

from asyncguard.backends import check_sqlite, scheme_of
from asyncguard.backends.user_file import make_user_directory, user_url

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("asyncguard")


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """Each from the variable that is called `ASYNCGUARD_` and its name."""

    work_seconds: float = 3.0
    """How long the guarded work takes."""
    url: str = "memory:"
    """Where the guard's permits and queue are."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the settings; where no URL is set, it is that of the user's own file.

        Raises:
            ValueError: a variable's value can't be used, and the message names it; or that file's
                directory can't.
        """
        return cls(
            work_seconds=_seconds(environ, "ASYNCGUARD_WORK_SECONDS", cls().work_seconds),
            url=environ.get("ASYNCGUARD_URL") or _default_url(environ),
        )

    @property
    def is_shared(self) -> bool:
        """Whether several processes have one guard."""
        return scheme_of(self.url) != "memory"


def _default_url(environ: Mapping[str, str]) -> str:
    try:
        check_sqlite()
    except (ValueError, ImportError) as missing:
        _log.warning("no file of guards is used, so run one worker process only: %s", missing)
        return "memory:"
    make_user_directory(environ)
    return user_url(environ)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name}: expected a number of seconds, 0 or more, got {text!r}")
    return seconds
