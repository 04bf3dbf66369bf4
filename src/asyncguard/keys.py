"""Keys and names: what may be one, and how it is written."""

from __future__ import annotations

import enum
import uuid

from asyncguard.checks import check_encodable

Key = str | int | uuid.UUID | enum.Enum
"""What can be a key; it is compared as text, so 7 and "7" are the same key."""

MAX_NAME = 128
MAX_KEY = 512
_LONGEST_INT = 1700
"""Bits of the longest number that may be a key."""


def as_name(name: str, what: str = "name") -> str:
    """Check the name of a guard or a namespace.

    Raises:
        TypeError: it isn't a string.
        ValueError: it is empty, too long, or can't be encoded as UTF-8.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what}: expected a str, got {type(name).__name__}")
    return _as_text(what, name, MAX_NAME)


def as_key(value: Key, what: str = "key") -> str:
    """Write a key as text.

    Raises:
        TypeError: it isn't a str, int, UUID or Enum; None in particular is no key.
        ValueError: it is empty, too long, or can't be encoded as UTF-8.
    """
    if type(value) is not str:
        if isinstance(value, enum.Enum):
            value = value.value
        if isinstance(value, int) and not isinstance(value, bool):
            if value.bit_length() > _LONGEST_INT:
                raise ValueError(f"{what}: expected a number of at most {MAX_KEY} digits")
            value = str(value)
        elif isinstance(value, uuid.UUID):
            value = str(value)
    if not isinstance(value, str):
        raise TypeError(f"{what}: expected a str, int, UUID or Enum, got {type(value).__name__}")
    return _as_text(what, value, MAX_KEY)


def _as_text(what: str, text: str, longest: int) -> str:
    if not 0 < len(text) <= longest:
        raise ValueError(f"{what}: expected 1 to {longest} characters, got {len(text)}")
    check_encodable(what, text)
    return text
