"""`asyncguard doctor`: what is wrong with the server that guards would be on."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asyncguard.backends import REDIS_SCHEMES, check_sqlite, path_of, scheme_of
from asyncguard.backends.user_file import user_url
from asyncguard.commands import USAGE_ERROR, check_extra, print_any_letter, print_no_more
from asyncguard.commands.examination import Finding
from asyncguard.commands.shared import declare_namespace
from asyncguard.keys import as_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

_WRONG: Final = 1
_REDIS: Final = (*REDIS_SCHEMES, "redis+cluster")
_COLUMNS: Final = "{:<8} {:<12} "


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "doctor",
        help="tell what is wrong with a server",
        description="Examine the Redis or Valkey server that guards are to be on: look, measure, and try. "
        "Nothing is left behind on it.",
        epilog="Exit code: 0 if nothing is wrong, though there may be warnings; 1 if something is; 2 for a "
        "mistake in the options or the URL.",
    )
    parser.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        help="as in redis://user:password@host:6379/0 (default: ASYNCGUARD_URL, which others can't read)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    declare_namespace(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Examine and tell, and return the exit code."""
    print_any_letter()
    try:
        url = options.url or os.environ.get("ASYNCGUARD_URL") or user_url()
        name, findings = _examine(url, as_name(options.namespace, "--namespace"))
        show = _show_json if options.json else _show
        with contextlib.suppress(KeyboardInterrupt):
            return _WRONG if show(name, findings) else 0
    except (ValueError, ImportError) as error:
        print(f"asyncguard doctor: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    except BrokenPipeError:
        print_no_more()
    return _WRONG  # nobody knows


def _examine(url: str, namespace: str) -> tuple[str, Iterable[Finding]]:
    """Find out how to examine what a URL names, and its name without a password.

    Raises:
        ValueError: it names nothing that can be examined.
        ImportError: the driver is missing.
    """
    scheme = scheme_of(url)
    if scheme in _REDIS:
        check_extra(f"{scheme}://", "redis", extra="redis")
        from asyncguard.commands.examination import server  # noqa: PLC0415 - not every host has the driver

        return server.public(url), server.examine(url, namespace)
    if scheme == "sqlite":
        return url, _examine_file(Path(path_of(url)))
    if scheme == "memory":
        said = "guards are in memory, each process's own: there is nothing to examine"
        return url, [Finding("backend", "ok", said)]
    known = ", ".join(f"{each}://" for each in _REDIS)
    raise ValueError(f"URL: expected one that begins with {known}, sqlite: or memory:, got {scheme!r}")


def _examine_file(path: Path) -> Iterator[Finding]:
    """See that guards can be kept in a file; what else could be wrong is told when it is opened."""
    try:
        check_sqlite()
    except ValueError as error:
        yield Finding("system", "wrong", str(error).removeprefix("url: "))
    else:
        yield Finding("system", "ok", "it has what guards in a file need")
    place = path if path.exists() else path.parent
    if os.access(place, os.R_OK | os.W_OK):
        there = "is there, and" if place is path else "isn't there yet: its directory"
        yield Finding("file", "ok", f"{path} {there} can be read and written")
    elif place.exists():
        yield Finding("file", "wrong", f"{place} can't be read and written", "See whose it is")
    elif str(path) == path_of(user_url()):
        yield Finding("file", "ok", f"{path} isn't there yet, and is made at its first use")
    else:
        yield Finding("file", "wrong", f"the directory {place} isn't there", "Make it")


def _show(_: str, findings: Iterable[Finding]) -> bool:
    """Print each finding once it is there, and tell whether something is wrong."""
    counts = {"wrong": 0, "warning": 0, "unseen": 0}
    for finding in findings:
        counts[finding.verdict] = counts.get(finding.verdict, 0) + 1
        text = f"{finding.said}. {finding.advice}." if finding.advice else f"{finding.said}."
        printable = text if text.isprintable() else text.encode("unicode_escape").decode()
        print(_COLUMNS.format(finding.verdict, finding.check) + printable, flush=True)  # noqa: T201
    wrong, warnings, unseen = counts["wrong"], counts["warning"], counts["unseen"]
    s = "" if warnings == 1 else "s"
    print(f"{wrong or 'nothing'} wrong, {warnings} warning{s}, {unseen} unseen")  # noqa: T201
    return bool(wrong)


def _show_json(name: str, findings: Iterable[Finding]) -> bool:
    found = list(findings)
    checks = [finding._asdict() for finding in found]
    print(json.dumps({"url": name, "at": time.time(), "checks": checks}))  # noqa: T201
    return any(finding.verdict == "wrong" for finding in found)
