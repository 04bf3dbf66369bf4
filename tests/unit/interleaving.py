"""Two threads, one stopped at each place where Python may switch threads while the other runs."""

from __future__ import annotations

import dis
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncguard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

_PACKAGE = str(Path(asyncguard.__file__).parent)
_BLOCKED = 0.005
"""Seconds after which a thread is taken to wait for a lock that the stopped one holds."""


def _opcodes(code: CodeType, known: dict[CodeType, dict[int, str]]) -> dict[int, str]:
    if code not in known:
        known[code] = {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}
    return known[code]


class _Stopped(threading.Thread):
    """A thread that runs `target` and stops at the n-th place where CPython may switch threads.

    That is after a call, at a function's start and at a loop's turn, in AsyncGuard's own code; each
    counts when it is first come to.
    """

    def __init__(self, target: Callable[[], object], at: int) -> None:
        super().__init__(daemon=True)
        self._function = target
        self._left = at
        self._known: dict[CodeType, dict[int, str]] = {}
        self._before: dict[FrameType, str] = {}
        self._seen: set[tuple[CodeType, int]] = set()
        self.error: BaseException | None = None
        self.reached = False
        self.here = threading.Event()
        """Set once it has stopped, or has ended without."""
        self.go_on = threading.Event()

    def run(self) -> None:
        sys.settrace(self._trace)
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - whatever comes is the finding
            self.error = error
        finally:
            sys.settrace(None)
            self.here.set()

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            before = self._before.get(frame, "RESUME")
            self._before[frame] = _opcodes(frame.f_code, self._known).get(frame.f_lasti, "")
            if before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                self._pause(frame)
        elif event == "return":
            self._before.pop(frame, None)
        return self._trace

    def _pause(self, frame: FrameType) -> None:
        place = (frame.f_code, frame.f_lasti)
        if place in self._seen:
            return
        self._seen.add(place)
        if self._left == 0:
            self.reached = True
            self.place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
            self.here.set()
            self.go_on.wait()
        self._left -= 1


def every_interleaving(
    make: Callable[[], tuple[Callable[[], object], Callable[[], object]]],
) -> Iterator[str]:
    """Run two functions, the first stopped at each of its places while the second runs; yield where.

    `make` makes the two anew for each run. Raises what either of them raised.
    """
    at = 0
    while True:
        first, second = make()
        stopped = _Stopped(first, at)
        stopped.start()
        stopped.here.wait()
        place = stopped.place if stopped.reached else "its end"
        other = _Stopped(second, -1)
        other.start()
        other.join(_BLOCKED)
        stopped.go_on.set()
        stopped.join(5)
        other.join(5)
        for thread in (stopped, other):
            if thread.is_alive():
                raise AssertionError(f"a thread is stuck; the first was stopped at {place}")
            if thread.error is not None:
                thread.error.add_note(f"the first thread was stopped at {place}")
                raise thread.error
        yield place
        if not stopped.reached:
            return
        at += 1
