"""A guard that a request must pass, by what the request says of itself."""

from __future__ import annotations

import inspect
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast, final

from asyncguard.checks import check_choice
from asyncguard.errors import Refused
from asyncguard.guard import Guard
from asyncguard.http.exchange import Exchange
from asyncguard.http.sources import NoKey, bounded
from asyncguard.keys import as_key
from asyncguard.permit import Hold

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncguard.guard import Ask
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
        if not isinstance(self.guard, Guard):
            raise TypeError(f'guard: expected a guard, as ag.guard("name") makes one, got {self.guard!r}')
        for name, source in (("key", self.key), ("tenant", self.tenant)):
            if source is not None and (not callable(source) or inspect.iscoroutinefunction(source)):
                raise TypeError(
                    f'{name}: expected a source such as path_param("account") or header("x-api-key"), or a '
                    f"plain function of the ASGI scope, got {source!r}"
                )
        check_choice("hold", self.hold, Hold)
        self.guard.permit(**self._ask())

    def _ask(self) -> Ask:
        return cast("Ask", dict(self.ask))

    @asynccontextmanager
    async def take(self, scope: Scope) -> AsyncIterator[Permit]:
        """Hold a permit for a request while the block lasts, or until its response ends."""
        ask = self._ask()
        key = None
        served = Exchange.of(scope)
        async with AsyncExitStack() as stack:
            try:
                if self.key is not None:
                    key = self._read("key", self.key(scope))
                if self.tenant is not None:
                    tenant = self.tenant(scope)
                    ask["tenant"] = "" if tenant in (None, "") else self._read("tenant", tenant)
                permit = await stack.enter_async_context(self.guard.permit(key=key, **ask))
            except (Refused, NoKey) as refusal:
                if served is None:
                    refusal.add_note(_NOT_INSTALLED)
                if isinstance(refusal, Refused) and (
                    _identifies(self.key, key) or _identifies(self.tenant, ask.get("tenant"))
                ):
                    refusal.status = 429
                raise
            if served is not None:
                served.keep(permit, self.hold)
            yield permit

    def _read(self, what: str, value: Any) -> str:
        """Make text of what a source has read.

        Raises:
            NoKey: it is empty, or nothing that can be a key.
        """
        try:
            return as_key(bounded(value) if isinstance(value, str) else value, what)
        except (TypeError, ValueError) as error:
            raise NoKey(
                f"guard {self.guard.name!r}: the request has no {what} that can be used: {error}"
            ) from error


def _identifies(source: Source | None, value: str | None) -> bool:
    """Whether a source tells who the caller is, and did so this time."""
    tells = getattr(source, "identifies", None)
    return tells is not None and bool(value) and bool(tells(value))


_NOT_INSTALLED: Final = (
    "call ag.install(app), so that this is answered with a problem and not as a mistake in the code"
)
