"""What options and arguments may be: errors name the argument, what was expected, and what came."""

from __future__ import annotations

import math
from typing import Any, get_args

from asyncguard.ticket import Rate

MAX_TEXT = 512
MOST = 1_000_000_000
"""Seconds that an option may name: some thirty years."""
LEAST_SHARE, MOST_SHARE = 0.001, 1000.0


def check_whole(name: str, value: Any, *, least: int) -> int:
    """Check a whole number.

    Raises:
        TypeError: it isn't an int.
        ValueError: it is below `least`, or larger than anybody means.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if not least <= value <= MOST:
        got = value if abs(value) <= MOST else "more" if value > 0 else "less"
        raise ValueError(f"{name}: expected {least} to {MOST:,}, got {got}")
    return value


def check_number(name: str, value: Any, *, above: bool = False, finite: bool = False) -> float:
    """Check a number that may not be negative, or must be above zero, or below infinity.

    Raises:
        TypeError: it isn't a number.
        ValueError: it is out of bounds.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if value > MOST and (finite or value != math.inf):
        most = f"{MOST:,}" if finite else f"{MOST:,} (or infinity)"
        raise ValueError(
            f"{name}: expected at most {most}, got {'infinity' if value == math.inf else 'more'}"
        )
    if math.isnan(value) or value < 0 or (above and value == 0):
        raise ValueError(f"{name}: expected {'more than 0' if above else '0 or more'}, got {value}")
    return float(value)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Check one of a closed set of words.

    Raises:
        ValueError: it isn't among them.
    """
    if not any(value == choice and type(value) is type(choice) for choice in get_args(choices)):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")


def check_text(name: str, value: Any) -> str:
    """Check a text for people or a tenant's name, of at most 512 characters.

    Raises:
        TypeError: it isn't a str.
        ValueError: it is too long, or can't be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a str, got {value!r}")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{name}: expected at most {MAX_TEXT} characters, got {len(value)}")
    check_encodable(name, value)
    return value


def check_encodable(name: str, text: str) -> None:
    """Check that a text has no lone surrogates in it.

    Raises:
        ValueError: it can't be encoded as UTF-8.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}: {text!r} can't be encoded as UTF-8") from error


def check_rate(value: Any) -> None:
    """Check a pace.

    Raises:
        TypeError: it isn't a Rate.
    """
    if value is not None and not isinstance(value, Rate):
        raise TypeError(f"rate: expected a Rate, as in Rate(10, per=60), got {value!r}")


def check_share(value: Any) -> float:
    """Check what a tenant should get in proportion to others.

    Raises:
        TypeError: it isn't a number.
        ValueError: it is out of bounds.
    """
    share = check_number("share", value)
    if not LEAST_SHARE <= share <= MOST_SHARE:
        raise ValueError(f"share: expected {LEAST_SHARE:g} to {MOST_SHARE:g}, got {value}")
    return share


def check_hub(value: Any) -> None:
    """Check what should be an AsyncGuard, and may be the application by mistake.

    Raises:
        TypeError: it is none.
    """
    if not callable(getattr(value, "observe", None)):
        raise TypeError(f"ag: expected an AsyncGuard, got {value!r}")
