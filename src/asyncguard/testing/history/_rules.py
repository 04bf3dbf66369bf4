"""The rules about what happened, each a function that names what broke it.

A grant is decided at a moment that nobody notes: after its ticket asked, and before its client heard of
it. A rule is broken where it is at every moment that comes into question, so what is named here has
happened; the reverse isn't promised.
"""

from __future__ import annotations

import heapq
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, final

from asyncguard.testing.history._tickets import FOREVER
from asyncguard.ticket import ALL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from asyncguard.testing.history._report import Violation
    from asyncguard.testing.history._tickets import History, Partition, Ticket


@final
class Decision(NamedTuple):
    """A grant, and between which moments it was decided."""

    ticket: Ticket
    earliest: int
    latest: int


def decisions(partition: Partition) -> list[Decision]:
    """List the grants in the order in which they were decided, which their tokens tell.

    None was decided before one with a lower token was, so all moments narrow each other down.
    """
    granted = sorted(
        (ticket for ticket in partition.tickets if ticket.granted != FOREVER),
        key=lambda ticket: (ticket.token, ticket.granted),
    )
    earliest = list(accumulate((ticket.asking for ticket in granted), max))
    latest = list(accumulate((ticket.granted for ticket in reversed(granted)), min))[::-1]
    if any(late < early for early, late in zip(earliest, latest, strict=True)):
        # The tokens can't be true, which is another rule's affair.
        granted.sort(key=lambda ticket: ticket.granted)
        return [Decision(ticket, ticket.asking, ticket.granted) for ticket in granted]
    return [Decision(*each) for each in zip(granted, earliest, latest, strict=True)]


def limit(history: History, partition: Partition, *, leases: bool) -> Iterator[Violation]:
    """Never are more permits granted than the limit allows that stands; nor any in a pause."""
    held: list[tuple[int, int, Ticket]] = []
    permits = exclusive = 0
    for number, (ticket, earliest, latest) in enumerate(decisions(partition)):
        while held and held[0][0] <= latest:
            _, _, ended = heapq.heappop(held)
            permits -= _counted(ended)
            exclusive -= ended.permits == ALL
        heapq.heappush(held, (_held_until(history, ticket, leases=leases), number, ticket))
        permits += _counted(ticket)
        exclusive += ticket.permits == ALL
        allowed = max(partition.settings.limits(earliest, latest))
        if permits > allowed or (exclusive and len(held) > 1):
            others = ", ".join(sorted(str(other) for _, _, other in held))
            yield partition.violation(
                "limit",
                latest,
                f"ticket {ticket} was granted, token {ticket.token}, while the limit was {allowed} at "
                f"most: {others} hold {permits} permits",
            )
        if partition.settings.was_paused(earliest, latest):
            message = f"ticket {ticket} was granted, token {ticket.token}, in a pause"
            yield partition.violation("pause", latest, message)


def _counted(ticket: Ticket) -> int:
    """How many permits it takes at least."""
    return ticket.permits if isinstance(ticket.permits, int) else 1


def _held_until(history: History, ticket: Ticket, *, leases: bool) -> int:
    """Until when a ticket that was granted held its permit for certain."""
    if ticket.state == "lost":  # its client heard of it later, perhaps of the grant too
        return ticket.asking
    if ticket.state == "released":  # somewhen after its work
        known = [at for at in (ticket.working, ticket.worked) if at < ticket.ended]
        end = max(known, default=ticket.granted)
    elif ticket.state == "killed":  # once its work was over it may have released, and not come to note it
        end = min(ticket.worked, ticket.ended)
    else:
        end = ticket.ended
    return min(end, history.was_stopped(ticket.client, ticket.asking, end)) if leases else end


def overlap(
    history: History, partition: Partition, *, leases: bool, under_stop: list[Ticket]
) -> Iterator[Violation]:
    """Never is more work running than the limit allowed when the last of it was granted.

    With leases, work of a process that was stopped may go on after its permit has passed on: such
    overlaps are gathered, and not named.
    """
    works = [ticket for ticket in partition.tickets if ticket.working != FOREVER]
    moments = [(ticket.working, 1, number) for number, ticket in enumerate(works)]
    moments += [
        # One whose last word was that it works was killed at that very moment, as far as is known.
        (ticket.worked, 0 if ticket.worked > ticket.working else 2, number)
        for number, ticket in enumerate(works)
    ]
    running: dict[int, Ticket] = {}
    for at, what, number in sorted(moments):
        if what != 1:
            running.pop(number, None)
            continue
        ticket = running[number] = works[number]
        if len(running) == 1:
            continue
        permits = sum(_counted(other) for other in running.values())
        allowed = max(partition.settings.limits(min(other.asking for other in running.values()), at))
        if permits > allowed or any(other.permits == ALL for other in running.values()):
            if leases and _any_stopped(history, running.values(), at):
                under_stop.append(ticket)
                continue
            others = ", ".join(sorted(str(other) for other in running.values()))
            yield partition.violation(
                "overlap",
                at,
                f"ticket {ticket} began its work while the limit was {allowed} at most: {others} work at "
                f"once, with {permits} permits",
            )


def _any_stopped(history: History, running: Collection[Ticket], at: int) -> bool:
    return any(history.was_stopped(ticket.client, ticket.asking, at) != FOREVER for ticket in running)


def tokens(partition: Partition) -> Iterator[Violation]:
    """Each grant has a token of its own, above those of all grants that were heard of before it asked."""
    owners: dict[int, Ticket] = {}
    floor = 0
    floors: dict[int, int] = {}
    moments = [(ticket.asking, 0, number) for number, ticket in enumerate(partition.tickets)]
    moments += [
        (ticket.granted, 1, number)
        for number, ticket in enumerate(partition.tickets)
        if ticket.granted != FOREVER
    ]
    for at, is_grant, number in sorted(moments):
        if not is_grant:
            floors[number] = floor
            continue
        ticket = partition.tickets[number]
        other = owners.setdefault(ticket.token, ticket)
        if other is not ticket:
            message = f"tickets {other} and {ticket} were granted the same token, {ticket.token}"
            yield partition.violation("tokens", at, message)
        elif ticket.token <= floors[number]:
            yield partition.violation(
                "tokens",
                at,
                f"ticket {ticket} was granted token {ticket.token} after token {floors[number]} was known",
            )
        floor = max(floor, ticket.token)


def order(partition: Partition) -> Iterator[Violation]:
    """Who is known to be queued when another asks is granted first, if both ask for the same."""
    moments = [
        (moment, is_queued, number)
        for number, ticket in enumerate(partition.tickets)
        if ticket.granted != FOREVER
        for moment, is_queued in ((ticket.asking, False), (ticket.queued, True))
    ]
    last: dict[object, Ticket] = {}
    for _, is_queued, number in sorted(moments):
        ticket = partition.tickets[number]
        asked = ticket.permits, ticket.priority
        before = last.get(asked)
        if is_queued:
            if before is None or before.token < ticket.token:
                last[asked] = ticket
        elif before is not None and ticket.token < before.token:
            yield partition.violation(
                "order",
                ticket.granted,
                f"ticket {ticket} was granted before {before}, which was queued "
                f"{(ticket.asking - before.queued) / 1e6:.3f} ms before it asked",
            )


def fence(history: History, *, leases: bool) -> Iterator[Violation]:
    """No store that the guard fences has to turn a write away, nor takes one that it should have.

    With leases it has to turn those away that come late: that is what it is for.
    """
    for partition, ticket, at in () if leases else history.stale:
        message = f"ticket {ticket}, token {ticket.token}, came to the store after a newer one"
        yield partition.violation("fence", at, message)
    for partition in history.partitions.values():
        yield from _accepted(partition)


def _accepted(partition: Partition) -> Iterator[Violation]:
    floor = 0
    floors: dict[int, int] = {}
    writers = [ticket for ticket in partition.tickets if ticket.writes]
    moments = [(ticket.granted, 0, number) for number, ticket in enumerate(writers)]
    moments += [(at, 1, number) for number, ticket in enumerate(writers) for at in ticket.writes]
    for at, is_write, number in sorted(moments):
        ticket = writers[number]
        if not is_write:
            floors[number] = floor
        elif ticket.token < floors[number]:
            message = (
                f"the store took a write of ticket {ticket}, token {ticket.token}, after {floors[number]}"
            )
            yield partition.violation("fence", at, message)
        else:
            floor = max(floor, ticket.token)
