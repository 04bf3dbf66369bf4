"""Guards under HTTP: what a request sees of them, and what becomes of their errors."""

from __future__ import annotations

from typing import Literal, TypedDict

OnDisconnect = Literal["finish", "cancel"]
"""What becomes of work that runs when its client leaves."""
Expose = Literal["nothing", "capacity"]
"""What clients are told of a guard that refuses them, besides its name and the time to come back."""


class Installation(TypedDict, total=False):
    """How guards are served under an application; every keyword may be left out."""

    on_disconnect: OnDisconnect
    """What becomes of work that runs when its client leaves: "finish" it (the default), or "cancel" it."""
    send_timeout: float
    """Seconds (30) for which a client may read nothing of a response for which a permit is held."""
    expose: Expose
    """"capacity" tells clients that are refused the limit, how many wait, and the RateLimit fields."""
    problems: str
    """URL before the names of problem types, where you serve pages on them; "about:blank" else."""
