"""`asyncguard simulate`: which limit and which queue a load needs, before it comes."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncguard.checks import LEAST_SHARE, MOST_SHARE, check_choice, check_number, check_whole
from asyncguard.commands import USAGE_ERROR, check_extra
from asyncguard.commands.simulation_report import as_json, as_tables, plot
from asyncguard.simulation import Load, Tenant, always, exponential, lognormal, simulate, uniform
from asyncguard.ticket import Order, Rate, Rules

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from asyncguard.simulation import Draw

_INTERRUPTED = 130
"""The exit code of what was interrupted at the keyboard, as shells have it."""
_LEAST_ARRIVALS, _MOST_ARRIVALS = 1e-4, 1e6
"""Clients per second; there is one grant in a microsecond at most."""
_SUFFIXES = (".svg", ".png")
_NONE = "none"
_OPTIONS = (
    ("--arrivals", "RATE", None, "clients that come per second, on average"),
    ("--gaps", "exp|fixed", "exp", "time between two: at random, or always the same"),
    (
        "--service",
        "TIME",
        None,
        "seconds that a client holds a permit: always so many, exp:MEAN, uniform:LOW:HIGH, lognormal:MEAN:CV",
    ),
    ("--limit", "N", "1", "permits"),
    ("--max-waiting", "N|none", "100", "clients that may wait"),
    ("--max-wait", "SECONDS|none", "30", "how long a client may wait"),
    ("--order", "ORDER", "fifo", "who is next: fifo, lifo or fair"),
    ("--rate", "N/SECONDS[:BURST]|none", _NONE, "pace of the grants"),
    ("--leave-after", "SECONDS|none", _NONE, "when a waiting client leaves that hadn't said so"),
    ("--clients", "N", "100000", "about how many come"),
    ("--warm-up", "PART", "0.1", "the part of the run, from its start, that doesn't count"),
    ("--seed", "N", "1", "of what is random; the same seed, the same result"),
)


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "simulate",
        help="find the limit and the queue that a load needs",
        description="Simulate a guard under load, on virtual time, by the rules that decide in production.",
    )
    for name, metavar, default, text in _OPTIONS:
        meaning = text if default is None else f"{text} (default: {default})"
        parser.add_argument(name, metavar=metavar, default=default, required=default is None, help=meaning)
    parser.add_argument(
        "--tenant",
        metavar="NAME=PART[:SHARE]",
        action="append",
        default=[],
        help="one who sends this part of the clients, in proportion to other tenants, and has this share "
        "in fair order (default: 1); can be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw waits and queue into FILE, .svg or .png")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Simulate, and print what came of it."""
    try:
        check_extra("simulate", "rich", extra="simulate")
        if options.plot is not None:
            check_extra("--plot", "matplotlib", extra="simulate")
            _check_plot(options.plot)
        load = load_of(options)
    except (ValueError, ImportError) as error:
        return _fail(error)

    try:
        with _progress() as progress:
            result = simulate(load, progress=progress)
    except KeyboardInterrupt:
        return _INTERRUPTED

    if options.json:
        print(as_json(result))  # noqa: T201
    else:
        as_tables(result)
    if options.plot is not None:
        try:
            plot(result, load, options.plot)
        except OSError as error:
            return _fail(f"--plot: expected a file that can be written, got {error}")
    return 0


def _fail(error: object) -> int:
    print(f"asyncguard simulate: {error}", file=sys.stderr)  # noqa: T201
    return USAGE_ERROR


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[float], object] | None]:
    """Show a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("simulating", total=1)
        yield lambda done: bar.update(task, completed=done)


# --- from options to a load ----------------------------------------------------------------------


def load_of(options: argparse.Namespace) -> Load:
    """Read what the options say.

    Raises:
        ValueError: one can't be used; the message names it.
    """
    arrivals = _within("--arrivals", options.arrivals, _LEAST_ARRIVALS, _MOST_ARRIVALS, "clients per second")
    if options.gaps not in {"exp", "fixed"}:
        raise ValueError(f"--gaps: expected exp or fixed, got {options.gaps!r}")
    check_choice("--order", options.order, Order)
    rules = Rules(
        limit=_whole("--limit", options.limit, least=1),
        max_waiting=_or_none(_whole, "--max-waiting", options.max_waiting, least=0),
        order=options.order,
        rate=_or_none(_rate, "--rate", options.rate),
    )
    tenants = _tenants(options.tenant)
    service = _service("--service", options.service)
    leaves_after = _or_none(_number, "--leave-after", options.leave_after)
    parts = sum(part for part, _ in tenants.values())
    return Load(
        rules=rules,
        tenants=[
            Tenant(
                name,
                between=parts / (arrivals * part),
                service=service,
                steady=options.gaps == "fixed",
                share=share,
                leaves_after=leaves_after,
            )
            for name, (part, share) in tenants.items()
        ],
        seconds=_whole("--clients", options.clients, least=1) / arrivals,
        max_wait=_or_none(_number, "--max-wait", options.max_wait, finite=False),
        warm_up=_within("--warm-up", options.warm_up, 0, 0.99, "of the run"),
        seed=_whole("--seed", options.seed, least=0),
    )


def _or_none(read: Callable[..., Any], option: str, text: str, **bounds: int) -> Any:
    return None if text == _NONE else read(option, text, **bounds)


def _whole(option: str, text: str, *, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"{option}: expected a whole number, got {text!r}") from None
    return check_whole(option, value, least=least)


def _number(option: str, text: str, *, above: bool = False, finite: bool = True) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{option}: expected a number, got {text!r}") from None
    return check_number(option, value, above=above, finite=finite)


def _within(option: str, text: str, least: float, most: float, unit: str) -> float:
    value = _number(option, text)
    if not least <= value <= most:
        raise ValueError(f"{option}: expected {least:,.7g} to {most:,.7g} {unit}, got {text!r}")
    return value


def _service(option: str, text: str) -> Draw:
    kind, *numbers = text.split(":") if ":" in text else ("always", text)
    with contextlib.suppress(ValueError):
        match kind, [_number(option, number) for number in numbers]:
            case "always", [seconds]:
                return always(seconds)
            case "exp", [mean] if mean > 0:
                return exponential(mean)
            case "uniform", [low, high] if low <= high:
                return uniform(low, high)
            case "lognormal", [mean, variation] if mean > 0:
                return lognormal(mean, variation)
    raise ValueError(
        f"{option}: expected SECONDS, exp:MEAN, uniform:LOW:HIGH or lognormal:MEAN:CV, in numbers of 0 or "
        f"more and a MEAN above 0, got {text!r}"
    )


def _rate(option: str, text: str) -> Rate:
    grants, _, times = text.partition("/")
    seconds, _, burst = times.partition(":")
    try:
        numbers = int(grants), float(seconds), int(burst or "1")
    except ValueError:
        raise ValueError(
            f"{option}: expected N/SECONDS[:BURST] with whole N and BURST, as in 10/60:2, got {text!r}"
        ) from None
    try:
        return Rate(*numbers)
    except ValueError as error:
        raise ValueError(f"{option}: {str(error).removeprefix('rate: ')}") from None


def _tenants(texts: list[str]) -> dict[str, tuple[float, float]]:
    """Read each tenant's part and share; without any there is one without a name."""
    tenants: dict[str, tuple[float, float]] = {}
    for text in texts:
        name, _, numbers = text.rpartition("=")
        part, _, share = numbers.partition(":")
        if not name:
            raise ValueError(f"--tenant: expected NAME=PART[:SHARE], as in free=9:1, got {text!r}")
        if name in tenants:
            raise ValueError(f"--tenant: expected each name once, got {name!r} again")
        tenants[name] = (_proportion(part), _proportion(share or "1"))
    return tenants or {"": (1.0, 1.0)}


def _proportion(text: str) -> float:
    return _within("--tenant", text, LEAST_SHARE, MOST_SHARE, "for PART and SHARE")


def _check_plot(path: str) -> None:
    """Look whether a picture can be written, before the work for it is done."""
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--plot: expected a file that ends in {' or '.join(_SUFFIXES)}, got {path!r}")
    if not Path(path).parent.is_dir():
        raise ValueError(f"--plot: expected a file in a directory that exists, got {path!r}")
