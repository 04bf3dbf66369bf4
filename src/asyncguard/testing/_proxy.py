"""A backend in front of another one, so that a test can change a single thing about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from asyncguard.admission import Setting
    from asyncguard.backends import Backend
    from asyncguard.errors import Reason
    from asyncguard.statistics import Snapshot
    from asyncguard.ticket import Declaration, Ticket


class Proxy:
    """Passes everything on; whoever wants to change something overrides that."""

    def __init__(self, behind: Backend) -> None:
        self.behind = behind
        self.clock = behind.clock
        self.owner = behind.owner
        self.lease = behind.lease
        self.answers_at_once = behind.answers_at_once
        self.place = behind.place
        self.assumptions = behind.assumptions

    def new_id(self) -> int | str:
        return self.behind.new_id()

    def enter(self, ticket: Ticket, *, wait: bool = True) -> Awaitable[None] | None:
        return self.behind.enter(ticket, wait=wait)

    def waits(self, ticket: Ticket) -> None:
        self.behind.waits(ticket)

    def leave(
        self, ticket: Ticket, reason: Reason | None = None, *, finished: bool = True
    ) -> Awaitable[None] | None:
        return self.behind.leave(ticket, reason, finished=finished)

    def abandon(self, ticket: Ticket) -> None:
        self.behind.abandon(ticket)

    def held(self, guard: str) -> list[Ticket]:
        return self.behind.held(guard)

    async def inspect(self, declaration: Declaration, key: str | None) -> Snapshot:
        return await self.behind.inspect(declaration, key)

    async def configure(
        self,
        declaration: Declaration,
        key: str | None,
        *,
        limit: Setting = "keep",
        paused: bool | None = None,
    ) -> None:
        await self.behind.configure(declaration, key, limit=limit, paused=paused)

    async def evict(self, declaration: Declaration, ticket_id: str) -> bool:
        return await self.behind.evict(declaration, ticket_id)

    def redeclare(self, declaration: Declaration) -> None:
        self.behind.redeclare(declaration)

    async def aclose(self) -> None:
        await self.behind.aclose()
