"""What the environment says about the service."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, final

if TYPE_CHECKING:
    from collections.abc import Mapping


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """Each from the variable that is called `ASYNCGUARD_` and its name."""

    work_seconds: float = 3.0
    """How long the guarded work takes."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            ValueError: a variable's value can't be used; the message names it.
        """
        return cls(work_seconds=_seconds(environ, "ASYNCGUARD_WORK_SECONDS", cls().work_seconds))


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
