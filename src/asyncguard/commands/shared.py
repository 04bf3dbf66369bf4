"""The guards that commands share with all other processes, of the host or of many."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, Protocol, cast

from asyncguard.backends import Backend, check_sqlite, open_backend, path_of, scheme_of
from asyncguard.backends.user_file import user_url
from asyncguard.clock import SystemClock
from asyncguard.keys import as_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable

    from asyncguard.ticket import Declaration

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


class SharedBackend(Backend, Protocol):
    """One that processes share, and that can list its guards."""

    async def guards(self) -> list[Declaration]:
        """List the guards that are known in the namespace, by name."""
        ...


def open_shared(namespace: str) -> SharedBackend:
    """Open what `ASYNCGUARD_URL` names, or else the user's own file, at its first use.

    Raises:
        ValueError: it names nothing that processes share.
    """
    opened = open_backend(shared_url(), clock=SystemClock(), namespace=as_name(namespace, "--namespace"))
    return cast("SharedBackend", opened)


async def for_a_moment(what: Awaitable[None]) -> None:
    """Wait for what the end of this process does too, but not for as long as another keeps the file busy."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(what, MOMENT)


def shared_url() -> str:
    """Find the URL of what processes share; a file needn't be there.

    Raises:
        ValueError: `ASYNCGUARD_URL` names nothing of the kind, or this system can't use a file.
    """
    url = os.environ.get("ASYNCGUARD_URL") or user_url()
    if scheme_of(url) == "memory":
        raise ValueError(
            "ASYNCGUARD_URL: expected sqlite:///path/guards.db or redis://host:6379/0, which processes "
            f"share, or none; got {url!r}"
        )
    if scheme_of(url) == "sqlite":
        check_sqlite()
    return url


def shared_path() -> str | None:
    """Find the file that processes share; None where they share a server.

    Raises:
        ValueError: `ASYNCGUARD_URL` names nothing that they can share.
    """
    url = shared_url()
    return path_of(url) if scheme_of(url) == "sqlite" else None


def uses_own_file() -> bool:
    """Whether no URL is set."""
    return not os.environ.get("ASYNCGUARD_URL")
