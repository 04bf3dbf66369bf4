"""The guards that commands share with all other processes of the host."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final

from asyncguard.backends import path_of, scheme_of
from asyncguard.backends.user_file import user_url
from asyncguard.clock import SystemClock
from asyncguard.keys import as_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable

    from asyncguard.backends.sqlite import SqliteBackend

_NAMESPACE: Final = "asyncguard"
MOMENT: Final = 1.0
"""Seconds within which a file is opened, and a permit passed on, unless another process stopped inside it."""


def declare_namespace(parser: argparse.ArgumentParser) -> None:
    """Declare the option for it."""
    parser.add_argument(
        "--namespace",
        metavar="NAME",
        default=_NAMESPACE,
        help="the application's, where its AsyncGuard has one (default: %(default)s)",
    )


def open_shared(namespace: str) -> SqliteBackend:
    """Open the file that `ASYNCGUARD_URL` names, or else the user's own, at its first use.

    Raises:
        ValueError: it names no file.
    """
    from asyncguard.backends.sqlite import SqliteBackend  # noqa: PLC0415 - not on every system

    return SqliteBackend(shared_path(), SystemClock(), as_name(namespace, "--namespace"))


async def for_a_moment(what: Awaitable[None]) -> None:
    """Wait for what the end of this process does too, but not for as long as another keeps the file busy."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(what, MOMENT)


def shared_path() -> str:
    """Find that file, which needn't be there.

    Raises:
        ValueError: `ASYNCGUARD_URL` names none.
    """
    url = os.environ.get("ASYNCGUARD_URL") or user_url()
    if scheme_of(url) != "sqlite":
        raise ValueError(
            f"ASYNCGUARD_URL: expected sqlite:///path/guards.db, which processes share, or none; got {url!r}"
        )
    return path_of(url)


def uses_own_file() -> bool:
    """Whether no URL is set."""
    return not os.environ.get("ASYNCGUARD_URL")
