"""From errors to HTTP: problem details (RFC 9457) and when to try again."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, final
from urllib.parse import quote

from asyncguard.checks import check_text
from asyncguard.errors import REFUSALS, HoldExceeded, PermitLost, Refused, WouldBlock
from asyncguard.http.sources import NoKey

if TYPE_CHECKING:
    from asyncguard.http import Expose

MEDIA_TYPE: Final = "application/problem+json"

ANSWERED: Final = (Refused, WouldBlock, PermitLost, NoKey)
"""The errors that are answers to a request; any other error of a guard is a mistake in the code."""

_SPREAD = 0.25
"""By which share a Retry-After may exceed the estimate, so that the refused don't return all at once."""
_UNKNOWN_WAIT = 3
"""Seconds within which to return where nothing can be estimated."""
_LARGEST: Final = 999_999_999_999_999
"""As large as an integer may be in a structured field (RFC 9651); other fields keep to it too."""


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
    error: Refused | WouldBlock | PermitLost | NoKey, *, expose: Expose = "nothing", problems: str = ""
) -> Problem:
    """Say on HTTP what an error says in code."""
    reason = _reason(error)
    kind = _KINDS[reason]
    status = HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, NoKey):
        status = HTTPStatus.BAD_REQUEST
    elif isinstance(error, Refused) and reason in _TOO_OFTEN:
        status = HTTPStatus(error.status)
    members: dict[str, Any] = {
        "type": problems + page_name(reason) if problems else "about:blank",
        "title": kind.title if problems else status.phrase,
        "status": status.value,
        "detail": kind.detail,
    }
    headers = [("content-type", MEDIA_TYPE), ("cache-control", "no-store"), ("vary", "Prefer")]
    estimated_wait = None
    if isinstance(error, Refused):
        members["guard"] = error.guard
        members["reason"] = reason
        if error.estimated_wait is not None and math.isfinite(error.estimated_wait):
            estimated_wait = min(error.estimated_wait, _LARGEST)
            members["estimated_wait"] = round(estimated_wait, 3)
    if status != HTTPStatus.BAD_REQUEST:  # which doesn't become better by being sent again
        seconds = retry_after(estimated_wait)
        headers.append(("retry-after", str(seconds)))
        if expose == "capacity" and isinstance(error, Refused) and error.limit is not None:
            members["limit"] = error.limit
            members["waiting"] = error.waiting
            headers += _rate_limit(error.guard, error.limit, seconds)
    content = json.dumps(members).encode()
    headers.append(("content-length", str(len(content))))
    return Problem(status.value, tuple(headers), content, reason)


def _reason(error: Exception) -> str:
    """Say in a word what an error is, or what it is a subclass of."""
    return next((_REASONS[cls] for cls in type(error).__mro__ if cls in _REASONS), "unavailable")


def _rate_limit(guard: str, limit: int, seconds: int) -> list[tuple[str, str]]:
    """Write the fields of draft-ietf-httpapi-ratelimit-headers-10, with nothing left for this caller."""
    name = quote(guard, " !#$&'()*+,/:;<=>?@[]^`{|}")  # a structured field's string is ASCII
    return [
        ("ratelimit-policy", f'"{name}";q={min(limit, _LARGEST)};qu="concurrent-requests"'),
        ("ratelimit", f'"{name}";r=0;t={min(seconds, _LARGEST)}'),
    ]


_TOO_OFTEN: Final = ("full", "hopeless", "timeout")
"""The reasons that a caller who asks less often won't meet."""
_REASONS: Final[dict[type, str]] = {
    **{error: reason for reason, error in REFUSALS.items()},
    WouldBlock: "would_block",
    PermitLost: "lost",
    HoldExceeded: "hold_exceeded",
    NoKey: "no_key",
}


class _Kind(NamedTuple):
    """A type of problem."""

    title: str
    detail: str
    """What clients are told: an error's own message is for operators, and tells the guard's limits."""


_KINDS: Final = {
    "full": _Kind("The queue is full", "As many requests wait as may wait."),
    "hopeless": _Kind("The wait would be too long", "The wait would be longer than the request may wait."),
    "timeout": _Kind(
        "The wait was too long", "The request waited for as long as it may, and its turn did not come."
    ),
    "too_large": _Kind(
        "The request asks for too much at once", "The request asks for more at once than there is."
    ),
    "paused": _Kind("The work is paused", "The work is paused."),
    "draining": _Kind("The server is shutting down", "The server is shutting down."),
    "evicted": _Kind(
        "The request was taken out of the queue", "An operator took the request out of the queue."
    ),
    "superseded": _Kind("The request was given up", "The request had been given up before it arrived."),
    "too_many_keys": _Kind("Too many keys are in use", "Too many different keys are in use."),
    "unavailable": _Kind("The guard can't be asked", "It can't be found out whose turn it is."),
    "would_block": _Kind("It is somebody else's turn", "It is somebody else's turn."),
    "lost": _Kind("The work was cancelled", "The work was cancelled before it was done."),
    "hold_exceeded": _Kind("The work took too long", "The work took longer than it may, and was cancelled."),
    "no_key": _Kind(
        "The request has no key", "The request doesn't say for whom or what it is, as it has to."
    ),
}
"""The types of problems; each has a page in problem_pages."""


def page_name(reason: str) -> str:
    """Write a reason as the end of a problem's type, and as the name of its page."""
    return reason.replace("_", "-")


def pages() -> dict[str, str]:
    """Read the page of each type of problem, in Markdown, by the end of the type."""
    folder = resources.files("asyncguard.http") / "problem_pages"
    return {name: (folder / f"{name}.md").read_text(encoding="utf-8") for name in map(page_name, _KINDS)}


def check_problems(value: Any) -> str:
    """Check the URL before the names of problem types; "" where there is none.

    Raises:
        TypeError: it isn't a str.
        ValueError: it ends where no name can begin, or is too long.
    """
    url = check_text("problems", value)
    if url and url[-1] not in "/#=:":
        raise ValueError(f'problems: expected a URL up to the name, such as "/problems/", got {url!r}')
    return url


def retry_after(estimated_wait: float | None) -> int:
    """Choose after how many whole seconds to try again, at least one."""
    if estimated_wait is None:
        return random.randint(1, _UNKNOWN_WAIT)  # noqa: S311
    return max(1, math.ceil(estimated_wait * random.uniform(1, 1 + _SPREAD)))  # noqa: S311


# --- for OpenAPI -------------------------------------------------------------------------------


def responses_with(*statuses: Literal[400, 429]) -> dict[int | str, dict[str, Any]]:
    """Describe a guarded endpoint that may answer with these besides: `responses=responses_with(429)`.

    429 tells callers that ask too often, and 400 those whose request has no key where it needs one.

    Raises:
        ValueError: guards answer with no such status.
    """
    for status in statuses:
        if status not in _DESCRIPTIONS:
            raise ValueError(f"expected statuses among 400, 429 and 503, got {status!r}")
    return {status: _response(HTTPStatus(status)) for status in (503, *statuses)}


def _response(status: HTTPStatus) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": _DESCRIPTIONS[status],
        "content": {MEDIA_TYPE: {"schema": _schema(status)}},
    }
    if status != HTTPStatus.BAD_REQUEST:
        described["headers"] = {
            "Retry-After": {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer", "minimum": 1},
            },
        }
    return described


def _schema(status: HTTPStatus) -> dict[str, Any]:
    reason = _EXAMPLES[status]
    example: dict[str, Any] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": _KINDS[reason].detail,
    }
    if reason in REFUSALS:
        example |= {"guard": "report", "reason": reason, "estimated_wait": 42.5}
    return {
        "title": "Problem",
        "description": "Problem details as of RFC 9457.",
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {
                "type": "string",
                "format": "uri-reference",
                "description": "What happened, for programs.",
            },
            "title": {"type": "string", "description": "What happened, in short."},
            "status": {
                "type": "integer",
                "enum": [status.value],
                "description": "The status of the response.",
            },
            "detail": {"type": "string", "description": "What happened, for people."},
            "guard": {"type": "string", "description": "Name of the guard that refused."},
            "reason": {"type": "string", "enum": list(REFUSALS), "description": "Why it refused."},
            "estimated_wait": {
                "type": "number",
                "minimum": 0,
                "description": "Seconds that a new request would wait; absent where too little is known.",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "description": "How many may work at once, where the service tells capacities.",
            },
            "waiting": {"type": "integer", "minimum": 0, "description": "How many wait, where it does."},
        },
        "example": example,
    }


_DESCRIPTIONS: Final = {
    503: "The guard let nobody in, or took the permit away: try again after `Retry-After`.",
    429: "The caller asks too often: try again after `Retry-After`.",
    400: "The request doesn't say for whom or what it is.",
}
_EXAMPLES: Final = {503: "hopeless", 429: "full", 400: "no_key"}

RESPONSES: Final = responses_with()
"""What a guarded endpoint may answer besides its own: `@app.get("/report", responses=RESPONSES)`."""
