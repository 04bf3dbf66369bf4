"""A guard that a request must pass, by what the request says of itself."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from asyncguard.checks import check_choice
from asyncguard.errors import Refused
from asyncguard.http.exchange import Exchange
from asyncguard.permit import Hold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncguard.guard import Ask, Guard
    from asyncguard.http.asgi import Scope
    from asyncguard.http.sources import Source
    from asyncguard.permit import Permit


@final
@dataclass(frozen=True, slots=True)
class Requirement:
    """A guard, where its key and tenant are found, and until when the permit is held.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of bounds.
    """

    guard: Guard
    key: Source | None
    tenant: Source | None
    hold: Hold
    ask: tuple[tuple[str, Any], ...]
    """What `Guard.permit` is asked for besides; in a form that can be hashed."""

    def __post_init__(self) -> None:
        for name, source in (("key", self.key), ("tenant", self.tenant)):
            if source is not None and not callable(source):
                raise TypeError(
                    f'{name}: expected a source such as path_param("account") or header("x-api-key"), or a '
                    f"function of the ASGI scope, got {source!r}"
                )
        check_choice("hold", self.hold, Hold)
        self.guard.permit(**self._ask())

    def _ask(self) -> Ask:
        ask: Any = dict(self.ask)
        return ask  # type: ignore[no-any-return]

    @asynccontextmanager
    async def take(self, scope: Scope) -> AsyncIterator[Permit]:
        """Hold a permit for a request while the block lasts, or until its response ends."""
        ask = self._ask()
        if self.tenant is not None:
            ask["tenant"] = str(self.tenant(scope))
        key = None if self.key is None else self.key(scope)
        served = Exchange.of(scope)
        async with AsyncExitStack() as stack:
            try:
                permit = await stack.enter_async_context(self.guard.permit(key=key, **ask))
            except Refused as refusal:
                if self._identifies_the_caller:
                    refusal.status = 429
                raise
            if served is not None:
                served.keep(permit, self.hold)
            yield permit

    @property
    def _identifies_the_caller(self) -> bool:
        return any(getattr(source, "identifies", False) for source in (self.key, self.tenant))
