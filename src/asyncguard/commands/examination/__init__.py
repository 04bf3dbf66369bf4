"""What an examination finds: one thing about a server, or a file, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "warning", "wrong", "unseen"]
"""`wrong` breaks a guarantee, or has guards not work at all; `unseen` couldn't be found out."""


class Finding(NamedTuple):
    """One check, in the words that people read."""

    check: str
    verdict: Verdict
    said: str
    """What there is, and what it means."""
    advice: str = ""
    """What to do."""


def unseen(check: str, command: str, what: str = "") -> Finding:
    """Say that a command isn't allowed that would have told."""
    said = f"{command} isn't allowed, so this couldn't be seen{what}"
    return Finding(check, "unseen", said, "Look as a user that may")
