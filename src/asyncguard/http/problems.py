"""From errors to HTTP: problem details (RFC 9457) and when to try again."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import quote

from asyncguard.errors import REFUSALS, HoldExceeded, PermitLost, Refused, WouldBlock

if TYPE_CHECKING:
    from asyncguard.http import Expose

MEDIA_TYPE: Final = "application/problem+json"

ANSWERED: Final = (Refused, WouldBlock, PermitLost)
"""The errors that are answers to a request; any other error of a guard is a mistake in the code."""

_SPREAD = 0.25
"""By which share a Retry-After may exceed the estimate, so that the refused don't return all at once."""
_UNKNOWN_WAIT = 3
"""Seconds within which to return where nothing can be estimated."""


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """A response that says why the work didn't run, or didn't finish."""

    status: int
    headers: tuple[tuple[str, str], ...]
    content: bytes
    reason: str
    """In a word."""

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers as ASGI wants them, the content's type and length included."""
        return [(name.encode(), value.encode()) for name, value in self.headers]


def problem(
    error: Refused | WouldBlock | PermitLost, *, expose: Expose = "nothing", problems: str = ""
) -> Problem:
    """Say on HTTP what an error says in code."""
    reason = getattr(error, "reason", _OTHERS.get(type(error), "lost"))
    status = HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, Refused) and reason in _TOO_OFTEN:
        status = HTTPStatus(error.status)
    members: dict[str, Any] = {
        "type": f"{problems}{reason.replace('_', '-')}" if problems else "about:blank",
        "title": _TITLES[reason] if problems else status.phrase,
        "status": status.value,
        "detail": _DETAILS[reason],
    }
    estimated_wait = None
    if isinstance(error, Refused):
        members["guard"] = error.guard
        members["reason"] = reason
        estimated_wait = error.estimated_wait
    if estimated_wait is not None:
        members["estimated_wait"] = round(estimated_wait, 3)
    seconds = retry_after(estimated_wait)
    headers = [
        ("content-type", MEDIA_TYPE),
        ("cache-control", "no-store"),
        ("vary", "Prefer"),
        ("retry-after", str(seconds)),
    ]
    if expose == "capacity" and isinstance(error, Refused) and error.limit is not None:
        members["limit"] = error.limit
        members["waiting"] = error.waiting
        headers += _rate_limit(error.guard, error.limit, seconds)
    content = json.dumps(members).encode()
    headers.append(("content-length", str(len(content))))
    return Problem(status.value, tuple(headers), content, reason)


def _rate_limit(guard: str, limit: int, seconds: int) -> list[tuple[str, str]]:
    """Write the fields of draft-ietf-httpapi-ratelimit-headers-10, with nothing left for this caller."""
    name = quote(guard, " !#$&'()*+,/:;<=>?@[]^`{|}")  # a structured field's string is ASCII
    return [
        ("ratelimit-policy", f'"{name}";q={limit};qu="concurrent-requests"'),
        ("ratelimit", f'"{name}";r=0;t={seconds}'),
    ]


_TOO_OFTEN: Final = ("full", "hopeless", "timeout")
"""The reasons that a caller who asks less often won't meet."""
_OTHERS: Final[dict[type[Exception], str]] = {WouldBlock: "would_block", HoldExceeded: "hold_exceeded"}

_TITLES: Final[dict[str, str]] = {
    "full": "The queue is full",
    "hopeless": "The wait would be too long",
    "timeout": "The wait was too long",
    "too_large": "The request asks for too much at once",
    "paused": "The work is paused",
    "draining": "The server is shutting down",
    "evicted": "The request was taken out of the queue",
    "superseded": "The request was given up",
    "too_many_keys": "Too many keys are in use",
    "unavailable": "The guard can't be asked",
    "would_block": "It is somebody else's turn",
    "lost": "The work was cancelled",
    "hold_exceeded": "The work took too long",
}
"""The problem types; each has a page in docs/problems."""
_DETAILS: Final[dict[str, str]] = {
    "full": "As many requests wait as may wait.",
    "hopeless": "The wait would be longer than the request may wait.",
    "timeout": "The request waited for as long as it may, and its turn did not come.",
    "too_large": "The request asks for more at once than there is.",
    "paused": "The work is paused.",
    "draining": "The server is shutting down.",
    "evicted": "An operator took the request out of the queue.",
    "superseded": "The request had been given up before it arrived.",
    "too_many_keys": "Too many different keys are in use.",
    "unavailable": "It can't be found out whose turn it is.",
    "would_block": "It is somebody else's turn.",
    "lost": "The work was cancelled before it was done.",
    "hold_exceeded": "The work took longer than it may, and was cancelled.",
}
"""What clients are told: an error's own message is for those who run the service, and tells its limits."""


def retry_after(estimated_wait: float | None) -> int:
    """Choose after how many whole seconds to try again, at least one."""
    if estimated_wait is None:
        return random.randint(1, _UNKNOWN_WAIT)  # noqa: S311
    return max(1, math.ceil(estimated_wait * random.uniform(1, 1 + _SPREAD)))  # noqa: S311


_SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "Problem details as of RFC 9457.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "What happened, for programs."},
        "title": {"type": "string", "description": "What happened, in short."},
        "status": {"type": "integer", "enum": [429, 503], "description": "The status of the response."},
        "detail": {"type": "string", "description": "What happened, for people."},
        "guard": {"type": "string", "description": "Name of the guard that refused."},
        "reason": {"type": "string", "enum": list(REFUSALS), "description": "Why it refused."},
        "estimated_wait": {
            "type": "number",
            "minimum": 0,
            "description": "Seconds that a request made now would wait; absent where too little is known.",
        },
    },
    "example": {
        "type": "about:blank",
        "title": HTTPStatus.SERVICE_UNAVAILABLE.phrase,
        "status": HTTPStatus.SERVICE_UNAVAILABLE.value,
        "detail": _DETAILS["hopeless"],
        "guard": "report",
        "reason": "hopeless",
        "estimated_wait": 42.5,
    },
}

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    HTTPStatus.SERVICE_UNAVAILABLE.value: {
        "description": "The guard let nobody in, or took the permit away: try again after `Retry-After`.",
        "headers": {
            "Retry-After": {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer", "minimum": 1},
            },
        },
        "content": {MEDIA_TYPE: {"schema": _SCHEMA}},
    },
}
"""What a guarded endpoint may answer besides its own: `@app.get("/report", responses=RESPONSES)`."""
