"""`asyncguard status`: who holds and who waits, from any process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asyncguard.commands import USAGE_ERROR, print_any_letter, print_no_more
from asyncguard.commands.shared import declare_namespace, for_a_moment, open_shared, shared_path
from asyncguard.errors import BackendUnavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from asyncguard.commands.shared import SharedBackend
    from asyncguard.statistics import Holder, Snapshot, Waiter

_FAILED: Final = 1
_EVERY: Final = 1.0
"""Seconds between two looks."""
_ANEW: Final = "\x1b[H\x1b[2J\x1b[3J"
"""Clears a terminal."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "status",
        help="tell who holds and who waits",
        description="Tell who holds permits of the guards of this host or server, who waits, and since when.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="of a guard (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON, one line for each look")
    parser.add_argument("--watch", action="store_true", help="look each second, until Ctrl-C")
    declare_namespace(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Look and tell, and return the exit code."""
    print_any_letter()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            return asyncio.run(_run(options))
    except (ValueError, TypeError) as error:
        return _say(error, USAGE_ERROR)
    except BackendUnavailable as error:
        return _say(error, _FAILED)
    except BrokenPipeError:
        print_no_more()
    except OSError as error:  # the directory can't be entered, or the disk is full that it is printed to
        return _say(error, _FAILED)
    return 0


def _say(what: object, code: int) -> int:
    print(f"asyncguard status: {what}", file=sys.stderr)  # noqa: T201
    return code


async def _run(options: argparse.Namespace) -> int:
    backend: SharedBackend | None = None
    try:
        while True:
            if backend is None and _is_there():
                backend = open_shared(options.namespace)
            pictures = [] if backend is None else await _look(backend)
            chosen = [each for each in pictures if options.name in (None, each.guard)]
            if not chosen and options.name is not None and not options.watch:
                known = ", ".join(each.guard for each in pictures) or "none yet"
                return _say(f"no guard goes by the name {options.name!r}; there are: {known}", _FAILED)
            _show(chosen, options)
            if not options.watch:
                return 0
            await asyncio.sleep(_EVERY)
    finally:
        if backend is not None:
            await for_a_moment(backend.aclose())


def _is_there() -> bool:
    """Whether there is a file, where it would be one: to look makes none."""
    path = shared_path()
    return path is None or Path(path).exists()


async def _look(backend: SharedBackend) -> list[Snapshot]:
    return [await backend.inspect(declared, None) for declared in await backend.guards()]


def _show(pictures: list[Snapshot], options: argparse.Namespace) -> None:
    if options.json:
        text = json.dumps(
            {"namespace": options.namespace, "at": time.time(), "guards": [*map(_as_json, pictures)]}
        )
    else:
        text = _as_text(pictures) or _nothing(options.namespace)
        if options.watch:
            text = _ANEW + text if sys.stdout.isatty() else text + "\n"
    print(text, flush=True)  # noqa: T201


def _nothing(namespace: str) -> str:
    path = shared_path()
    if path is None:
        return f"Nobody has used a guard on the server, namespace {namespace!r}."
    if not Path(path).exists():
        return f"Nobody has used a guard yet: there is no file {path}."
    return f"Nobody has used a guard in {path}, namespace {namespace!r}, since the host started."


# --- JSON ----------------------------------------------------------------------------------------


def _as_json(picture: Snapshot) -> dict[str, Any]:
    """Make what is documented to stay as it is."""
    return {
        "guard": picture.guard,
        "limit": picture.limit,
        "in_use": picture.in_use,
        "waiting": picture.waiting,
        "keys": picture.keys,
        "paused": picture.paused,
        "mean_hold": picture.mean_hold,
        "granted": picture.granted,
        "refused": dict(picture.refused),
        "holders": [dataclasses.asdict(holder) for holder in picture.holders],
        "queue": [dataclasses.asdict(waiter) for waiter in picture.queue],
    }


# --- for people ----------------------------------------------------------------------------------


def _as_text(pictures: list[Snapshot]) -> str:
    rows: list[tuple[str, ...]] = [("GUARD", "KEY", "LIMIT", "IN USE", "WAITING", "", "")]
    for picture in pictures:
        holders, queues = _by_key(picture.holders), _by_key(picture.queue)
        for key in sorted({*holders, *queues}, key=lambda key: (key is not None, key)) or [None]:
            holding, waiting = holders.get(key, []), queues.get(key, [])
            rows.append(
                (
                    _printable(picture.guard),
                    "-" if key is None else _printable(key),
                    str(picture.limit),
                    str(sum(holder.permits for holder in holding)),
                    str(len(waiting)),
                    "paused" if picture.paused else "",
                    "",
                )
            )
            rows += [_row("holds", each, each.held) for each in holding]
            rows += [_row(f"{place}.", each, each.waited) for place, each in enumerate(waiting, 1)]
    return "\n".join(_align(rows)) if pictures else ""


def _by_key(tickets: Iterable[Any]) -> dict[str | None, list[Any]]:
    grouped: dict[str | None, list[Any]] = {}
    for ticket in tickets:
        grouped.setdefault(ticket.key, []).append(ticket)
    return grouped


def _row(place: str, ticket: Holder | Waiter, seconds: float) -> tuple[str, ...]:
    since = time.localtime(ticket.since)
    is_today = since[:3] == time.localtime()[:3]
    permits = "" if ticket.permits == 1 else f" ({ticket.permits} permits)"
    return (
        f"  {place}",
        _printable(ticket.owner),
        _printable(ticket.label) + permits,
        f"for {_duration(seconds)}",
        time.strftime("since %H:%M:%S" if is_today else "since %d %b %H:%M:%S", since),
    )


def _printable(text: str) -> str:
    """Write what others chose so that it can't steer the terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    """Put what is of guards in columns, and below each what is of its tickets in others."""
    lines = [""] * len(rows)
    for width in {len(row) for row in rows}:
        alike = [(number, row) for number, row in enumerate(rows) if len(row) == width]
        widths = [max(map(len, column)) for column in zip(*(row for _, row in alike), strict=True)]
        for number, row in alike:
            padded = (text.ljust(size) for text, size in zip(row, widths, strict=True))
            lines[number] = "  ".join(padded).rstrip()
    return lines
