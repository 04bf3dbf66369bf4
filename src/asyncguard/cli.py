"""The command `asyncguard`."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from asyncguard import AsyncGuard, __version__
from asyncguard.commands import USAGE_ERROR, check_extra, doctor, run, simulate, status
from asyncguard.service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAST_PORT = 65535
_GRACE = 1
"""Seconds that a shutdown waits for beyond the time of the work that is running."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; without arguments, those of the process."""
    parser = argparse.ArgumentParser(
        prog="asyncguard", description="Guarded work runs one at a time, in order, in a bounded queue."
    )
    parser.add_argument("--version", action="version", version=f"asyncguard {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        help="run the service",
        description="Run the service: GET /test runs the guarded work, GET /healthz answers meanwhile.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on")
    serve.add_argument("--port", type=int, default=8000, help="port to listen on; 0: any that is free")
    serve.add_argument(
        "--workers",
        type=int,
        default=1,
        help="worker processes, whose work doesn't overlap either",
    )
    serve.add_argument("--reload", action="store_true", help="start again when a source file changes")
    serve.set_defaults(run=_serve)
    run.declare(commands)
    status.declare(commands)
    doctor.declare(commands)
    simulate.declare(commands)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


def _serve(options: argparse.Namespace) -> int:
    try:
        _check_port(options.port)
        check_extra("the service", "fastapi", "uvicorn", extra="service")
        settings = Settings.from_environ()
        AsyncGuard(settings.url)
        _check_workers(options.workers, settings)
    except (ValueError, ImportError) as error:
        print(f"asyncguard serve: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR

    from asyncguard.service.server import serve  # noqa: PLC0415

    return serve(
        settings,
        host=options.host,
        port=options.port,
        reload=options.reload,
        workers=options.workers,
        grace=math.ceil(settings.work_seconds) + _GRACE,
    )


def _check_workers(workers: int, settings: Settings) -> None:
    """Refuse to run workers that would each guard only themselves.

    Raises:
        ValueError: more than one was asked for, or none.
    """
    if workers < 1:
        raise ValueError(f"--workers: expected 1 or more, got {workers}")
    if workers > 1 and not settings.is_shared:
        raise ValueError(
            f"--workers {workers}: several workers need a shared backend, as their work would overlap in "
            "memory: unset ASYNCGUARD_URL, or set ASYNCGUARD_URL=sqlite:///path/guards.db (both need Linux "
            "or macOS, and SQLite 3.40), or use --workers 1"
        )


def _check_port(port: int) -> None:
    """Refuse what is no port.

    Raises:
        ValueError: it isn't between 0 and 65535.
    """
    if not 0 <= port <= _LAST_PORT:
        raise ValueError(f"--port: expected 0 to {_LAST_PORT}, got {port}")
