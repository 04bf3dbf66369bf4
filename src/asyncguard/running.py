"""Which task is running here; asked so often that what it costs counts."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 12):
    from asyncio import current_task
else:
    import asyncio
    from asyncio.tasks import _current_tasks  # type: ignore[attr-defined]
    from typing import Any

    # Python 3.11 asks the system for the process id each time, which takes longer than all the rest
    # of entering a guard. As long as one loop runs a task in all the process, it is this one.

    def current_task() -> asyncio.Task[Any] | None:
        """Find the running task."""
        if len(_current_tasks) == 1:
            task: asyncio.Task[Any]
            for task in _current_tasks.values():
                return task
        return asyncio.current_task()


__all__ = ["current_task"]
