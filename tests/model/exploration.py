"""All states that a world can get into, breadth first, so that what breaks a rule is a shortest story."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from world import Violation, World, thaw

if TYPE_CHECKING:
    from world import Setup, Step


class Explored(NamedTuple):
    """How far the exploration went."""

    states: int
    steps: int


def explore(setup: Setup) -> Explored:
    """Take every step from every state, and drain every state.

    Raises:
        Violation: a rule was broken; the steps that led there are its notes.
    """
    world = World(setup)
    seen = {world.canonical()}
    ahead: deque[tuple[bytes, tuple[Step, ...]]] = deque([(world.freeze(), ())])
    taken = 0
    while ahead:
        frozen, story = ahead.popleft()
        for step in thaw(frozen).steps():
            world = thaw(frozen)
            _try(world, step, story)
            taken += 1
            state = world.canonical()
            if state not in seen:
                seen.add(state)
                if len(story) < setup.depth:
                    ahead.append((world.freeze(), (*story, step)))
        _try(thaw(frozen), None, story)
    return Explored(len(seen), taken)


def _try(world: World, step: Step | None, story: tuple[Step, ...]) -> None:
    try:
        if step is None:
            world.drain()
        else:
            world.apply(step)
    except Violation as violation:
        violation.add_note(f"in {world.setup}")
        violation.add_note("\n".join(f"- {one}" for one in (*story, step or "drain")))
        raise
