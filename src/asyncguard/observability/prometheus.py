"""Guards as Prometheus metrics: the state that all workers share, read once for each scrape."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, final, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from asyncguard.checks import check_hub, check_number
from asyncguard.errors import BackendUnavailable, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from asyncguard.http.asgi import ASGIApp, Receive, Scope, Send
    from asyncguard.hub import AsyncGuard
    from asyncguard.statistics import Percentiles, Snapshot

_log = logging.getLogger("asyncguard")

_TEXT: Final = "text/plain; charset=utf-8"

_GAUGES: Final[Mapping[str, tuple[str, Callable[[Snapshot], float | None]]]] = {
    "asyncguard_permits_limit": (
        "Permits of each key; what an operator set for a single one aside.",
        lambda picture: picture.limit,
    ),
    "asyncguard_permits_in_use": (
        "Permits held, over all keys.",
        lambda picture: picture.in_use,
    ),
    "asyncguard_tickets_waiting": (
        "Tickets waiting, over all keys.",
        lambda picture: picture.waiting,
    ),
    "asyncguard_keys_in_use": (
        "Keys in use; to have no key counts as one.",
        lambda picture: picture.keys,
    ),
    "asyncguard_paused": (
        "1 while an operator has paused the guard with all its keys, else 0.",
        lambda picture: picture.paused,
    ),
    "asyncguard_estimated_wait_seconds": (
        "What a ticket entering now would wait, at the busiest key; absent where that isn't known.",
        lambda picture: picture.estimated_wait,
    ),
    "asyncguard_mean_hold_seconds": (
        "What tickets hold on average; absent before five holds were seen.",
        lambda picture: picture.mean_hold,
    ),
}
_QUANTILES: Final[Mapping[str, tuple[str, Callable[[Snapshot], Percentiles]]]] = {
    "asyncguard_recent_wait_seconds": (
        "What the last thousand tickets waited whose work ended by itself.",
        lambda picture: picture.wait,
    ),
    "asyncguard_recent_hold_seconds": (
        "What the last thousand tickets held whose work ended by itself.",
        lambda picture: picture.hold,
    ),
}


async def exposition(ag: AsyncGuard, accept: str = "") -> tuple[bytes, str]:
    """Render the guards as a scrape wants them: the content, and its Content-Type.

    Each guard is asked for its picture once. On a shared backend that is the same picture in every
    process, so any of them can be scraped, and none of its numbers is one process's share.

    `accept` is the scrape's Accept header: with OpenMetrics in it, that is what results.

    Raises:
        BackendUnavailable: the backend can't be asked.
    """
    # One after the other: a scrape is in no hurry, and should cost a busy backend little.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Pictures([await guard.inspect() for guard in ag.guards.values()]))
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # it asks for a version that is no number
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


def metrics_app(ag: AsyncGuard, *, timeout: float = 5.0) -> ASGIApp:
    """Make the ASGI application that answers scrapes.

    Serve it at a path of its own: `app.routes.append(Route("/metrics", metrics_app(ag)))`. If the
    backend can't be asked, or not within `timeout` seconds, the answer is 503, so that Prometheus
    sees a failed scrape instead of numbers that are old or in part.

    Raises:
        TypeError, ValueError: `ag` is no AsyncGuard; `timeout` isn't a number above 0.
    """
    check_hub(ag)
    return _MetricsApp(ag, check_number("timeout", timeout, above=True))


@final
class _MetricsApp:
    """A class, as a Starlette route takes a function to be of a request, and an object to be ASGI."""

    def __init__(self, ag: AsyncGuard, timeout: float) -> None:
        self._ag = ag
        self._timeout = timeout

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"metrics are served over HTTP alone, not {scope['type']!r}")
        status, content_type, content = await self._answer(scope)
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(content))]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})

    async def _answer(self, scope: Scope) -> tuple[HTTPStatus, str, bytes]:
        if scope["method"] not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, b"metrics are read with GET\n"
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
        try:
            async with asyncio.timeout(self._timeout):
                content, content_type = await exposition(self._ag, accept.decode("latin-1"))
        except (BackendUnavailable, TimeoutError) as error:
            # What went wrong may tell of servers and is for the log, not for whoever can scrape.
            _log.warning("metrics: the backend can't be asked: %r", error)
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"the backend can't be asked\n"
        return HTTPStatus.OK, content_type, content


@final
class _Pictures(Collector):
    """The metrics of guards that were asked already: `collect` can't wait for a backend."""

    def __init__(self, pictures: Sequence[Snapshot]) -> None:
        self._pictures = pictures

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its value for each guard."""
        for name, (meaning, value_of) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, meaning, labels=["guard"], unit=_unit(name))
            for picture in self._pictures:
                value = value_of(picture)
                if value is not None:
                    gauge.add_metric([picture.guard], value)
            yield gauge
        # Gauges and no summaries: those have a sum and a count of all tickets ever, which nobody keeps
        # here, and some collectors drop a summary that has none.
        for name, (meaning, percentiles_of) in _QUANTILES.items():
            gauge = GaugeMetricFamily(name, meaning, labels=["guard", "quantile"], unit=_unit(name))
            for picture in self._pictures:
                recent = percentiles_of(picture)
                for quantile, value in (("0.5", recent.p50), ("0.9", recent.p90), ("0.99", recent.p99)):
                    if value is not None:
                        gauge.add_metric([picture.guard, quantile], value)
            yield gauge
        yield self._granted()
        yield self._refused()

    def _granted(self) -> Metric:
        counter = CounterMetricFamily(
            "asyncguard_tickets_granted", "Tickets granted since the guard was first used.", labels=["guard"]
        )
        for picture in self._pictures:
            counter.add_metric([picture.guard], picture.granted)
        return counter

    def _refused(self) -> Metric:
        counter = CounterMetricFamily(
            "asyncguard_tickets_refused",
            "Tickets refused since the guard was first used.",
            labels=["guard", "reason"],
        )
        for picture in self._pictures:
            for reason in get_args(Reason):  # also those that have not come up: a rate needs its zero
                counter.add_metric([picture.guard, reason], picture.refused.get(reason, 0))
        return counter


def _unit(name: str) -> str:
    return "seconds" if name.endswith("_seconds") else ""
