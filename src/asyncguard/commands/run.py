"""`asyncguard run`: a command under a guard."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from asyncguard.backends.user_file import make_user_directory
from asyncguard.checks import check_number, check_whole
from asyncguard.commands import USAGE_ERROR
from asyncguard.commands.shared import (
    MOMENT,
    declare_namespace,
    for_a_moment,
    open_shared,
    shared_path,
    shared_url,
    uses_own_file,
)
from asyncguard.errors import BackendUnavailable, Refused
from asyncguard.hub import AsyncGuard
from asyncguard.ticket import ALL, Declaration, Rules

if TYPE_CHECKING:
    from asyncguard.commands.child import Child
    from asyncguard.commands.shared import SharedBackend
    from asyncguard.permit import Permit

NOT_NOW: Final = 75
"""EX_TEMPFAIL of sysexits.h: it couldn't get in, or lost its permit; another try may do."""
_BELOW_APPLICATIONS: Final = -1
"""So that whatever an application declares, also later, stands instead."""
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
_SIGNALS: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_TO_THE_CHILD_ALONE: Final = ("SIGTSTP", "SIGCONT", "SIGWINCH")
"""Which stop nothing for good, and so do as usual while we wait."""


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "run",
        help="run a command under a guard",
        usage="asyncguard run --guard NAME [options] [--] command ...",
        description="Run a command once a permit of a guard is granted, and hold the permit until it ends.",
        epilog="Exit code: the command's; 128 + n if signal n ended it; 75 if it couldn't get in or lost its "
        "permit; 126 if it can't be run, 127 if there is no such command; 2 for a mistake in the options.",
    )
    parser.add_argument("--guard", metavar="NAME", required=True, help="whose permit to take")
    parser.add_argument("--key", help="which of its keys; each has permits and a queue of its own")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=int,
        help="permits of each key, if nobody else has the guard just now (default: 1, or what was)",
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, help="how long to wait; 0: not at all (default: for ever)"
    )
    parser.add_argument("--permits", metavar="N|all", type=_permits, default=1, help="to take (default: 1)")
    parser.add_argument(
        "--priority", metavar="SECONDS", type=float, default=0, help="a head start in the queue (default: 0)"
    )
    parser.add_argument("--label", help="what others see of it (default: the command's name)")
    declare_namespace(parser)
    parser.add_argument("words", metavar="command ...", nargs=argparse.REMAINDER, help="with its arguments")
    parser.set_defaults(run=run)


def _permits(text: str) -> int | str:
    return ALL if text == "all" else int(text)


def run(options: argparse.Namespace) -> int:
    """Run the command, and return the exit code."""
    words: list[str] = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        return _say("expected a command after the options, as in: -- rsync -a from to", USAGE_ERROR)
    if code := _why_not(words[0]):
        return code
    try:
        shared_url()
        if uses_own_file():
            make_user_directory()
        return asyncio.run(_Run(options, words).run())
    except (ValueError, TypeError) as error:
        return _say(error, USAGE_ERROR)


def _say(what: object, code: int) -> int:
    print(f"asyncguard run: {what}", file=sys.stderr)  # noqa: T201
    return code


def _why_not(name: str) -> int:
    """Say what is wrong with a command that can't be run, before it queues; 0: nothing is."""
    if shutil.which(name) is not None:
        return 0
    if "/" in name and Path(name).exists():
        return _say(f"{name}: expected a file that can be executed", _NOT_EXECUTABLE)
    return _say(f"{name}: there is no such command", _NOT_FOUND)


def _label_of(name: str) -> str:
    """Write a command's name, whatever bytes it is of, so that others can read it."""
    return Path(name).name.encode(errors="surrogateescape").decode(errors="backslashreplace")


@final
class _Run:
    """One run of a command: it waits, then the command does."""

    def __init__(self, options: argparse.Namespace, words: list[str]) -> None:
        self._options = options
        self._words = words
        self._child: Child | None = None
        self._waits: asyncio.Task[Any] | None = None
        self._told: int | None = None
        """The signal that ends the wait."""

    async def run(self) -> int:
        """Wait for the permit, run the command, and tell the exit code.

        Raises:
            ValueError, TypeError: an option can't be used.
        """
        backend = open_shared(self._options.namespace)
        self._heed(_SIGNALS)
        try:
            self._waits = asyncio.create_task(self._acquire(backend))
            permit = await self._waits
            try:
                return 128 + self._told if self._told else await self._run_under(permit)
            finally:
                with contextlib.suppress(Refused):  # then our end does it
                    await for_a_moment(permit.release())
        except Refused as refusal:
            return _say(f"can't get in: {refusal}", NOT_NOW)
        except asyncio.CancelledError:
            if self._told is None:
                raise
            return 128 + self._told
        finally:
            await for_a_moment(backend.aclose())

    async def _acquire(self, backend: SharedBackend) -> Permit:
        options = self._options
        asked = options.limit if options.limit is None else check_whole("--limit", options.limit, least=1)
        timeout = options.timeout if options.timeout is None else check_number("--timeout", options.timeout)
        began = time.monotonic()
        patience = None if timeout is None else max(timeout, MOMENT)
        try:
            rules = await asyncio.wait_for(self._declare(backend, asked), patience)
        except TimeoutError:
            path = shared_path()
            what = "the server" if path is None else f"the file {path!r}"
            raise BackendUnavailable(f"{what} was busy for all that time") from None
        ag = AsyncGuard(backend=lambda *_: backend, namespace=options.namespace)
        ag.revision = _BELOW_APPLICATIONS
        guard = ag.guard(
            options.guard,
            limit=rules.limit,
            max_waiting=rules.max_waiting,
            max_wait=None,
            order=rules.order,
            rate=rules.rate,
            max_keys=rules.max_keys,
        )
        return await guard.acquire(
            key=options.key,
            timeout=timeout and max(0, timeout - (time.monotonic() - began)),
            permits=options.permits,
            priority=options.priority,
            label=_label_of(self._words[0]) if options.label is None else options.label,
        )

    async def _declare(self, backend: SharedBackend, asked: int | None) -> Rules:
        """Find the rules that stand; others' if they have the guard, and else what they were, or ours."""
        rules = await self._standing(backend) or Rules(limit=asked or 1, max_waiting=None)
        if asked in (None, rules.limit):
            return rules
        # To ask for a picture declares it, below what other commands declared: we say that ourselves.
        ours = dataclasses.replace(rules, limit=asked, revision=_BELOW_APPLICATIONS - 1)
        await backend.inspect(Declaration(self._options.guard, ours), None)
        rules = await self._standing(backend) or ours
        if rules.limit != asked:
            _say(f"guard {self._options.guard!r} has limit {rules.limit}, as others have it, not {asked}", 0)
        return rules

    async def _standing(self, backend: SharedBackend) -> Rules | None:
        for declared in await backend.guards():
            if declared.name == self._options.guard:
                return declared.rules
        return None

    async def _run_under(self, permit: Permit) -> int:
        from asyncguard.commands.child import Child  # noqa: PLC0415 - not on every system

        if permit.lost:
            return _say("the permit was taken away before the command began", NOT_NOW)
        environ = {**os.environ, "ASYNCGUARD_TOKEN": str(permit.token)}
        try:
            child = self._child = Child(self._words, environ)
        except FileNotFoundError as error:
            return _say(f"{self._words[0]}: can't be run: {error.strerror}", _NOT_FOUND)
        except OSError as error:
            return _say(f"{self._words[0]}: can't be run: {error.strerror}", _NOT_EXECUTABLE)
        self._heed(_TO_THE_CHILD_ALONE)
        ends = asyncio.create_task(child.wait())
        is_lost = asyncio.create_task(permit.lost.wait())
        await asyncio.wait([ends, is_lost], return_when=asyncio.FIRST_COMPLETED)
        is_lost.cancel()
        if ends.done():
            return ends.result()
        await child.end()
        await ends
        return _say("the permit was taken away, so the command was ended", NOT_NOW)

    # --- signals -------------------------------------------------------------------------------

    def _heed(self, names: tuple[str, ...]) -> None:
        """Pass signals on, but for those that our caller has us ignore, as nohup does."""
        for number in [getattr(signal, name) for name in names]:
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._pass_on, number)

    def _pass_on(self, number: int) -> None:
        if self._child is not None:
            self._child.signal(number)
        else:
            self._told = number
            if self._waits is not None:
                self._waits.cancel()
