"""The rules' own objects, made anew of what a backend has stored: to be pictured as the rules do."""

# ruff: noqa: SLF001 - it puts back what the rules keep to themselves

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from asyncguard.admission import Partition
from asyncguard.order import FairQueue, queue_for
from asyncguard.ticket import EXCLUSIVE, Declaration, Rate, Rules, Terms, new_ticket

if TYPE_CHECKING:
    from asyncguard.admission import Admission
    from asyncguard.ticket import Order, State


class StoredTicket(NamedTuple):
    """A ticket that holds or waits."""

    id: int | str
    state: State
    permits: int
    priority: int
    arrival: int
    granted: int
    share: float
    tenant: str
    label: str
    owner: str


def restore_rules(
    revision: int,
    limit: int,
    max_waiting: int | None,
    order: Order,
    max_keys: int,
    rate: tuple[int, float, int] | None,
) -> Rules:
    """Make the rules that a guard was declared with; of its pace there are count, seconds and burst."""
    return Rules(
        limit=limit,
        max_waiting=max_waiting,
        order=order,
        rate=rate and Rate(*rate),
        max_keys=max_keys,
        revision=revision,
    )


def restore_partition(
    admission: Admission, key: str | None, order: Order, override: int | None, paused: bool, tat: int
) -> Partition:
    """Make a partition that has no tickets yet."""
    partition = admission.partitions[key] = Partition(admission, key)
    partition._override = override
    partition._paused = paused
    partition._tat = tat
    partition._read_rules()
    partition._order = order  # which follows the rules' once it is empty
    return partition


def restore_ticket(partition: Partition, stored: StoredTicket) -> None:
    """Put a ticket where it holds or waits; those of a partition come in order of arrival."""
    admission = partition.admission
    terms = Terms(
        Declaration(admission.name, admission.rules),
        stored.owner,
        stored.permits,
        None,
        stored.priority,
        stored.tenant,
        stored.share,
        stored.label,
    )
    ticket = new_ticket(stored.id, terms, partition.key)
    ticket.arrival = stored.arrival
    ticket.state = stored.state
    if stored.state == "waiting":
        partition.queue = partition.queue or queue_for(partition._order)
        partition.queue.add(ticket)
        partition.waiting += 1
        partition._count_special(ticket, 1)
        return
    ticket.granted = stored.granted
    partition.holders.add(ticket)
    if stored.permits == EXCLUSIVE:
        partition._exclusive = ticket
    else:
        partition.room -= stored.permits - 1


def restore_tenant(partition: Partition, name: str, tag: float, share: float) -> None:
    """Put a tenant of which tickets wait in its place, once these are restored."""
    if isinstance(partition.queue, FairQueue):
        tenant = partition.queue._tenants[name]
        tenant.tag, tenant.share = tag, share
        partition.queue._place(tenant)
