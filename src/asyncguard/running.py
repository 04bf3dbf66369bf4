"""Which task is running here; asked so often that what it costs counts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from asyncio import current_task

    running_tasks: dict[Any, Any] = {}
    """The task that each loop runs, where `current_task` costs more; elsewhere empty."""
else:
    from asyncio import current_task
    from asyncio.tasks import _current_tasks as running_tasks

    # Python 3.11 asks the system for the process id to find the running loop, which takes longer than
    # all the rest of entering a guard. While one loop alone runs a task in all the process, it is this
    # one, and `running_tasks` can be asked instead.

__all__ = ["current_task", "running_tasks"]
