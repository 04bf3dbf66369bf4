"""Guards under OpenTelemetry: spans for queue and work, and metrics, by its API alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, final

from opentelemetry import context
from opentelemetry.metrics import get_meter
from opentelemetry.trace import Status, StatusCode, get_tracer

from asyncguard import __version__
from asyncguard.checks import check_hub

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from asyncguard.events import Event
    from asyncguard.hub import AsyncGuard

_BOUNDARIES: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Seconds: those that OpenTelemetry advises for requests, and some more, as queues are long."""


def instrument(
    ag: AsyncGuard,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    keys: bool = False,
) -> Callable[[], None]:
    """Record spans and metrics of the tickets that enter from now on; what results ends that.

    A ticket gets a span `queue <guard>` until it was granted or gave up, and a span `work <guard>`
    until its permit ended. Both are children of the span in which it entered. They are made when they
    are over, with the times that the events tell: so neither is ever the current span, and what the
    work traces itself is a child of the same span as they are.

    Providers that aren't given are the global ones. With `keys` the spans, though never the metrics,
    tell the ticket's key: leave it out where a key may be a secret or somebody's name.

    Raises:
        TypeError: `ag` is no AsyncGuard.
    """
    check_hub(ag)
    telemetry = _Telemetry(
        get_tracer("asyncguard", __version__, tracer_provider),
        get_meter("asyncguard", __version__, meter_provider),
        keys=keys,
    )
    stop = ag.observe(telemetry)

    def undo() -> None:
        stop()
        telemetry.forget()

    return undo


@final
class _Ticket:
    """What is kept of a ticket in flight."""

    __slots__ = ("context", "guard")

    def __init__(self, guard: str) -> None:
        self.context: Context = context.get_current()
        """The request's: an observer hears of a ticket that enters in the task that it enters from."""
        self.guard = {"asyncguard.guard": guard}


@final
class _Telemetry:
    """An observer of tickets that records them."""

    def __init__(self, tracer: Tracer, meter: Meter, *, keys: bool) -> None:
        self._tracer = tracer
        self._keys = keys
        self._waits = meter.create_histogram(
            "asyncguard.wait.duration",
            unit="s",
            description="How long tickets waited until they were granted or gave up.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self._holds = meter.create_histogram(
            "asyncguard.hold.duration",
            unit="s",
            description="How long tickets held their permits.",
            explicit_bucket_boundaries_advisory=_BOUNDARIES,
        )
        self._waiting_tickets = meter.create_up_down_counter(
            "asyncguard.waiting_tickets", unit="{ticket}", description="Tickets of this process that wait."
        )
        self._working_tickets = meter.create_up_down_counter(
            "asyncguard.working_tickets", unit="{ticket}", description="Tickets of this process that hold."
        )
        self._lock = threading.Lock()
        """Held while a ticket passes from one of these to the next; never while anything is recorded."""
        self._waiting: dict[str, _Ticket] = {}
        self._working: dict[str, _Ticket] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "entered":
            self._enter(event)
        elif event.kind == "granted":
            self._grant(event)
        elif event.kind in ("refused", "withdrawn"):
            self._give_up(event)
        else:
            self._grant(event)  # in case another thread hears of that, and is slower
            self._end(event)

    def forget(self) -> None:
        """Count the tickets in flight no more."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
            working, self._working = self._working, {}
        for ticket in waiting.values():
            self._waiting_tickets.add(-1, ticket.guard)
        for ticket in working.values():
            self._working_tickets.add(-1, ticket.guard)

    def _enter(self, event: Event) -> None:
        ticket = _Ticket(event.guard)
        with self._lock:
            self._waiting[event.ticket] = ticket
        self._waiting_tickets.add(1, ticket.guard)

    def _grant(self, event: Event) -> None:
        with self._lock:
            ticket = self._waiting.pop(event.ticket, None)
            if ticket is None:
                return
            self._working[event.ticket] = ticket
        self._working_tickets.add(1, ticket.guard)
        self._end_wait(ticket, event, "granted")

    def _give_up(self, event: Event) -> None:
        with self._lock:
            ticket = self._waiting.pop(event.ticket, None)
        if ticket is not None:
            self._end_wait(ticket, event, event.kind)

    def _end_wait(self, ticket: _Ticket, event: Event, outcome: str) -> None:
        attributes = {**ticket.guard, "asyncguard.outcome": outcome}
        if event.reason is not None:
            attributes["asyncguard.reason"] = event.reason
        self._waiting_tickets.add(-1, ticket.guard)
        self._waits.record(event.waited, attributes, ticket.context)
        ended = event.at - (event.held or 0)
        self._record("queue", ticket, event, attributes, ended - event.waited, ended, error=event.reason)

    def _end(self, event: Event) -> None:
        with self._lock:
            ticket = self._working.pop(event.ticket, None)
        if ticket is None:
            return
        attributes = {**ticket.guard, "asyncguard.outcome": event.kind}
        held = event.held or 0
        self._working_tickets.add(-1, ticket.guard)
        self._holds.record(held, attributes, ticket.context)
        error = "the permit was lost" if event.kind == "lost" else None
        self._record("work", ticket, event, attributes, event.at - held, event.at, error=error)

    def _record(
        self,
        what: str,
        ticket: _Ticket,
        event: Event,
        attributes: dict[str, str],
        start: float,
        end: float,
        *,
        error: str | None,
    ) -> None:
        span = self._tracer.start_span(
            f"{what} {event.guard}", ticket.context, attributes=attributes, start_time=_nanoseconds(start)
        )
        if event.permits != "all":
            span.set_attribute("asyncguard.permits", event.permits)
        if event.token is not None:
            span.set_attribute("asyncguard.token", event.token)
        if self._keys and event.key is not None:
            span.set_attribute("asyncguard.key", event.key)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_nanoseconds(end))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
