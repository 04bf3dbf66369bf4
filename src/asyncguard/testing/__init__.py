"""For tests of applications that use guards: time by hand, a leak check, refusals and losses on demand."""

from asyncguard.testing.clock import ManualClock
from asyncguard.testing.faults import force_full, force_lost
from asyncguard.testing.isolation import fresh

__all__ = ["ManualClock", "force_full", "force_lost", "fresh"]
