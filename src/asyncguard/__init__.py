"""Guarded work runs one at a time, in order, with a bounded and visible queue."""

from asyncguard.backends import Backend
from asyncguard.clock import Clock, SystemClock
from asyncguard.errors import (
    BackendUnavailable,
    ClientLeft,
    Draining,
    Evicted,
    GuardError,
    HoldExceeded,
    HopelessWait,
    Paused,
    PermitLost,
    QueueFull,
    Reason,
    Refused,
    Superseded,
    TooLarge,
    TooManyKeys,
    WaitTimeout,
    WouldBlock,
    WouldDeadlock,
)
from asyncguard.events import Event, Observer
from asyncguard.guard import Guard
from asyncguard.hub import AsyncGuard
from asyncguard.permit import Loss, Permit, current_permit
from asyncguard.statistics import Holder, Percentiles, Snapshot, Waiter
from asyncguard.ticket import ALL, Rate, Ticket

__all__ = [
    "ALL",
    "AsyncGuard",
    "Backend",
    "BackendUnavailable",
    "ClientLeft",
    "Clock",
    "Draining",
    "Event",
    "Evicted",
    "Guard",
    "GuardError",
    "HoldExceeded",
    "Holder",
    "HopelessWait",
    "Loss",
    "Observer",
    "Paused",
    "Percentiles",
    "Permit",
    "PermitLost",
    "QueueFull",
    "Rate",
    "Reason",
    "Refused",
    "Snapshot",
    "Superseded",
    "SystemClock",
    "Ticket",
    "TooLarge",
    "TooManyKeys",
    "WaitTimeout",
    "Waiter",
    "WouldBlock",
    "WouldDeadlock",
    "current_permit",
]

__version__ = "0.1.0"
