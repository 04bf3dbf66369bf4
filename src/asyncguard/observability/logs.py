"""Guards in the log: a record of `logging` for each thing that happens to a ticket."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Final

from asyncguard.checks import check_hub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asyncguard.events import Event, Kind
    from asyncguard.hub import AsyncGuard

LEVELS: Final[Mapping[Kind, int]] = {
    "entered": logging.DEBUG,
    "granted": logging.DEBUG,
    "refused": logging.WARNING,
    "withdrawn": logging.INFO,
    "released": logging.DEBUG,
    "lost": logging.WARNING,
}
"""What asks for somebody's attention is a warning; that a client left may be of interest."""

_MESSAGES: Final[Mapping[Kind, str]] = {
    "entered": "entered",
    "granted": "was granted after %(waited).3f s, token %(token)d",
    "refused": "was refused (%(reason)s) after %(waited).3f s",
    "withdrawn": "was withdrawn after %(waited).3f s",
    "released": "was released after it held for %(held).3f s",
    "lost": "was lost after it held for %(held).3f s",
}


def log_events(
    ag: AsyncGuard, logger: logging.Logger | None = None, *, levels: Mapping[Kind, int] | None = None
) -> Callable[[], None]:
    """Log what happens to the tickets that enter from now on; what results ends that.

    The records go to the logger `asyncguard.events` unless another is given, at `LEVELS` unless
    `levels` says another one for a kind of event. The message is for people: keys and labels, which may
    come from anybody, are quoted, so that they can't feign a line of their own. The attribute
    `asyncguard` of a record has all fields of the `Event` as a dict, for machines.

    Raises:
        TypeError: `ag` is no AsyncGuard, `logger` no logger, or a level no number.
        ValueError: `levels` names what is no kind of event.
    """
    check_hub(ag)
    logger = logger or logging.getLogger("asyncguard.events")
    if not callable(getattr(logger, "isEnabledFor", None)):
        raise TypeError(f"logger: expected a logger, as logging.getLogger() gives, got {logger!r}")
    unknown = (levels or {}).keys() - LEVELS.keys()
    if unknown:
        raise ValueError(f"levels: expected some of {', '.join(LEVELS)}, got {min(unknown)!r}")
    for kind, level in (levels or {}).items():
        if not isinstance(level, int):
            raise TypeError(f"levels: expected a number such as logging.INFO for {kind!r}, got {level!r}")
    level_of = {**LEVELS, **(levels or {})}

    def log(event: Event) -> None:
        level = level_of[event.kind]
        if logger.isEnabledFor(level):
            fields = dataclasses.asdict(event)
            logger.log(level, _message(event), fields, extra={"asyncguard": fields})

    return ag.observe(log)


def _message(event: Event) -> str:
    """Choose the template: of few that are constant, so that what collects logs can group by it."""
    key = "" if event.key is None else ", key %(key)r"
    label = "" if not event.label else ", label %(label)r,"
    return f"guard %(guard)r{key}: ticket %(ticket)s{label} {_MESSAGES[event.kind]}"
