"""Tickets that leave, once and again, in machines that compare stored rules with `asyncguard.admission`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

if TYPE_CHECKING:
    from asyncguard.errors import Reason
    from asyncguard.ticket import Ticket

LIVE = ("held", "waiting")
picks = st.integers(min_value=0, max_value=1 << 16)


class Leaving(RuleBasedStateMachine):
    pairs: list[tuple[Ticket, Ticket]]
    """Each ticket as it is stored, and as the rules know it."""

    def leave_as(self, pair: tuple[Ticket, Ticket], finished: bool, reason: Reason | None) -> None:
        """Have both leave, and compare what came of it."""
        raise NotImplementedError

    def in_state(self, *states: str) -> list[tuple[Ticket, Ticket]]:
        return [pair for pair in self.pairs if pair[1].state in states]

    @precondition(lambda self: self.pairs)
    @rule(
        pick=picks, finished=st.sampled_from([True, True, False]), reason=st.sampled_from([None, "timeout"])
    )
    def leave(self, pick: int, finished: bool, reason: Reason | None) -> None:
        live = self.in_state(*LIVE) or self.pairs
        self.leave_as(live[pick % len(live)], finished, reason)

    @precondition(lambda self: self.pairs)
    @rule(pick=picks)
    def leave_again(self, pick: int) -> None:
        ended = [pair for pair in self.pairs if pair[1].state not in LIVE]
        if ended:
            self.leave_as(ended[pick % len(ended)], True, None)
