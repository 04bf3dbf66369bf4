"""Backends of a third party's: some that keep the rules, and some that break one."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

from asyncguard.admission import KEEP
from asyncguard.backends.memory import MemoryBackend
from asyncguard.clock import TICKS
from asyncguard.testing._proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from asyncguard.admission import Setting
    from asyncguard.backends import Backend
    from asyncguard.clock import Clock
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Declaration, Ticket


def open_own(clock: Clock, namespace: str) -> Backend:
    """Open one that passes everything on."""
    del namespace
    return Proxy(MemoryBackend(clock))


class Distant(Proxy):
    """Asks a backend that others ask too, and whose answers take a while."""

    far = 0.001
    """Seconds that it takes to ask."""
    places: dict[str, MemoryBackend] = {}  # noqa: RUF012 - it is what all of them share

    def __init__(self, clock: Clock, namespace: str) -> None:
        self.common = self.places.setdefault(namespace, MemoryBackend(clock))
        super().__init__(self.common)
        self.answers_at_once = False
        self.left: set[int | str] = set()
        """Tickets that left before they had entered."""
        self.under_way: set[int | str] = set()

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        loop = asyncio.get_running_loop()
        if not wait:
            return loop.create_future()
        ticket.id = ticket.id or self.new_id()
        self.under_way.add(ticket.id)
        # Whoever is cancelled meanwhile can't call back what was sent.
        return asyncio.shield(loop.create_task(self.deliver(ticket)))

    async def deliver(self, ticket: Ticket) -> None:
        await asyncio.sleep(self.far)
        self.under_way.discard(ticket.id)
        if ticket.id in self.left:
            return
        self.declare(ticket.terms.guard)
        self.behind.enter(ticket)
        if ticket.state == "waiting":
            self.behind.waits(ticket)
        else:
            ticket.notify()

    def declare(self, declaration: Declaration) -> None:
        admission = self.common._admissions.get(declaration.name)
        if admission is not None and declaration.rules.revision > admission.rules.revision:
            self.common.redeclare(declaration)

    def waits(self, ticket: Ticket) -> None:
        """The deliverer has said so."""

    def leave(
        self, ticket: Ticket, reason: Reason | None = None, *, finished: bool = True
    ) -> Awaitable[None] | None:
        if ticket.id in self.under_way:
            self.left.add(ticket.id)
        self.behind.leave(ticket, reason, finished=finished)
        return asyncio.get_running_loop().create_task(asyncio.sleep(self.far))

    def held(self, guard: str) -> list[Ticket]:
        return [ticket for ticket in self.behind.held(guard) if ticket.terms.owner == self.owner]

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        await asyncio.sleep(self.far)
        return await super().inspect(declaration, key)

    async def configure(
        self,
        declaration: Declaration,
        key: str | None,
        *,
        limit: Setting = KEEP,
        paused: bool | None = None,
    ) -> None:
        await asyncio.sleep(self.far)
        self.declare(declaration)
        await super().configure(declaration, key, limit=limit, paused=paused)

    async def aclose(self) -> None:
        await asyncio.sleep(self.far)


# --- three that break a rule -------------------------------------------------------------------


class Barging(Proxy):
    """Whoever comes overtakes all who wait."""

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        answer = super().enter(ticket, wait=wait)
        if ticket.state == "waiting" and ticket.partition.line is not None:
            ticket.partition.line.rotate(1)
        return answer


class OneTooMany(Proxy):
    """One more may hold than the limit says."""

    def __init__(self, behind: Backend) -> None:
        super().__init__(behind)
        self.known: set[str] = set()

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        guard = ticket.terms.guard
        if guard.name not in self.known:
            self.known.add(guard.name)
            rules = dataclasses.replace(guard.rules, limit=guard.rules.limit + 1)
            self.behind.redeclare(dataclasses.replace(guard, rules=rules))
        return super().enter(ticket, wait=wait)

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        picture = await super().inspect(declaration, key)
        return dataclasses.replace(picture, limit=declaration.rules.limit)


class RepeatingTokens(Proxy):
    """A token counts the seconds, so that several grants have the same."""

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        answer = super().enter(ticket, wait=wait)
        if ticket.state == "held":
            ticket.granted -= (ticket.granted + self.clock.epoch) % TICKS
        return answer


def open_barging(clock: Clock, namespace: str) -> Backend:
    return Barging(open_own(clock, namespace))


def open_one_too_many(clock: Clock, namespace: str) -> Backend:
    return OneTooMany(open_own(clock, namespace))


def open_repeating_tokens(clock: Clock, namespace: str) -> Backend:
    return RepeatingTokens(open_own(clock, namespace))
