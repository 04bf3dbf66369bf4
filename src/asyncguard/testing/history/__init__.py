"""Whether guards kept their rules, told from what the processes that used them noted.

Each process notes what it is about to do and what came of it, with `Recorder`; `read` gathers the
files, and `check` says which rules were broken. That is how AsyncGuard's own fault runs are judged, and
goes for any guard, lock or semaphore: nothing here asks one.
"""

from asyncguard.testing.history._check import check
from asyncguard.testing.history._files import Recorder, read
from asyncguard.testing.history._record import Kind, Record
from asyncguard.testing.history._report import Report, Rule, Violation

__all__ = ["Kind", "Record", "Recorder", "Report", "Rule", "Violation", "check", "read"]
