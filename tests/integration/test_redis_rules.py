"""The rules on a Redis or Valkey server, asked by hand: requests that cross, leases that end, bounds."""

from __future__ import annotations

import contextlib
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.crc import key_slot
from redis.exceptions import OutOfMemoryError
from valkey_server import connect

from asyncguard.backends.redis_rules import MOST_RENEWED, SCRIPT, SHA, Answer, Call, RedisRules
from asyncguard.clock import TICKS, TICKS_PER_MICROSECOND
from asyncguard.ticket import Declaration, Rate, Rules, Terms, Ticket, new_ticket

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCH = 1_735_689_600 * TICKS
UNIT = TICKS // 1000
LEASE = 30 * TICKS


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[Any]:
    with contextlib.closing(connect(redis_url)) as connection:
        assert connection.script_load(SCRIPT) in (SHA, SHA.encode())
        yield connection


class Guarded:
    """One guard on the server, entered by hand by any client; time stands until it is moved."""

    def __init__(self, server: Any, **declared: Any) -> None:
        self.server = server
        self.now = 5 * TICKS
        self.namespace = str(uuid.uuid4())
        self.declaration = Declaration("guard", Rules(**{"max_waiting": None, **declared}))
        self.clients: dict[str, RedisRules] = {}
        self.tickets: dict[str, Ticket] = {}
        self.ids = 0

    def client(self, name: str) -> RedisRules:
        if name not in self.clients:
            self.clients[name] = RedisRules(self.namespace, name, EPOCH, now=self.moment)
        return self.clients[name]

    def moment(self) -> int:
        return (self.now + EPOCH) // TICKS_PER_MICROSECOND

    def ask(self, call: Call) -> Any:
        return self.server.evalsha(SHA, 1, call.key, *call.args)

    def run(self, call: Call, *, all_of_it: bool = True) -> Answer:
        """Send a call, and what is to be sent at once after it; note what was decided."""
        client = self.client(call.args[2])
        answer = client.read(call, self.ask(call))
        for row in answer.decided + answer.rows:
            if row.id in self.tickets and row.state != "gone":
                client.write(self.tickets[row.id], row)
        while all_of_it and answer.more:
            answer.more.extend(self.run(answer.more.pop(0), all_of_it=False).more)
        return answer

    def new(self, client: str = "one", key: str | None = None, **ask: Any) -> Ticket:
        self.ids += 1
        terms = Terms(self.declaration, "host:1", **{"lease": LEASE, **ask})
        ticket = new_ticket(f"{client}.{self.ids}", terms, key)
        self.tickets[str(ticket.id)] = ticket
        return ticket

    def enter(self, client: str = "one", key: str | None = None, *, wait: bool = True, **ask: Any) -> Ticket:
        ticket = self.new(client, key, **ask)
        self.run(self.client(client).enter(ticket, wait=wait))
        return ticket

    def enter_again(self, ticket: Ticket) -> Ticket:
        again = new_ticket(ticket.id, ticket.terms, ticket.key)
        client = self.of(ticket)
        (row,) = self.run(client.enter(again)).rows
        client.write(again, row)
        return again

    def of(self, ticket: Ticket) -> RedisRules:
        return self.client(str(ticket.id).partition(".")[0])

    def leave(self, ticket: Ticket, **how: Any) -> Answer:
        return self.run(self.of(ticket).leave(ticket, **how))

    def renew(self, *tickets: Ticket) -> list[str]:
        call = self.of(tickets[0]).renew(self.declaration, [ticket.id for ticket in tickets])
        return [row.state for row in self.run(call).rows]

    def advance(self, *keys: str | None) -> Answer:
        return self.run(self.client("one").advance(self.declaration, keys))

    def stored(self) -> set[str]:
        """List what is stored, each key without its beginning."""
        base = self.client("one").base("guard")
        return {key.decode().removeprefix(base) for key in self.server.scan_iter(f"{base}*", count=10_000)}

    def commands(self, call: Call) -> int:
        """Count the commands that a call has the server run, itself aside."""
        self.server.config_resetstat()
        self.run(call)
        counts = self.server.info("commandstats")
        besides = ("cmdstat_evalsha", "cmdstat_info", "cmdstat_config|resetstat")
        return sum(count["calls"] for name, count in counts.items() if name not in besides)


@pytest.fixture
def guarded(server: Any) -> Guarded:
    return Guarded(server)


# --- requests that are sent twice, or cross --------------------------------------------------------


def test_an_enter_sent_again_gets_its_first_answer_again(guarded: Guarded) -> None:
    held, waiting = guarded.enter(), guarded.enter()
    refused = guarded.enter(patience=0)
    again = [guarded.enter_again(ticket) for ticket in (held, waiting, refused)]
    assert [ticket.state for ticket in again] == ["held", "waiting", "refused"]
    assert (again[0].granted, again[1].arrival, again[2].reason) == (held.granted, waiting.arrival, "timeout")
    assert again[2].outlook.waiting == 1
    guarded.leave(held)
    assert guarded.enter_again(waiting).granted == waiting.granted > held.granted


def test_a_leave_beats_an_enter_that_is_still_on_its_way(guarded: Guarded) -> None:
    overtaken = guarded.new()
    assert guarded.leave(overtaken).rows[0].state == "gone"
    late = guarded.enter_again(overtaken)
    assert (late.state, late.reason) == ("refused", "superseded")
    guarded.now += 2 * LEASE - UNIT
    assert guarded.enter_again(overtaken).state == "refused", "for two leases"
    guarded.now += UNIT
    assert guarded.enter_again(overtaken).state == "held", "and then nothing is known of it"


def test_who_left_does_not_come_back(guarded: Guarded) -> None:
    held, waiting = guarded.enter(), guarded.enter()
    guarded.leave(waiting)
    guarded.leave(held)
    guarded.leave(held)
    assert [guarded.enter_again(ticket).reason for ticket in (held, waiting)] == ["superseded"] * 2
    assert guarded.enter().state == "held", "leaving twice frees once"


# --- leases ----------------------------------------------------------------------------------------


def test_what_a_dead_holder_held_passes_on_in_order_past_a_dead_waiter(guarded: Guarded) -> None:
    holder, dead, heir, last = (guarded.enter(name) for name in ("a", "a", "b", "c"))
    guarded.now += LEASE - UNIT
    guarded.renew(heir)
    guarded.renew(last)
    assert guarded.advance(None).due == guarded.now + UNIT
    guarded.now += UNIT
    assert guarded.renew(last) == ["waiting"], "any step sees to it"
    assert [ticket.state for ticket in (holder, dead, heir, last)] == ["lost", "lost", "held", "waiting"]
    assert heir.granted > holder.granted
    assert guarded.enter_again(holder).reason == "superseded"


def test_a_renewal_says_who_is_left_and_what_became_of_the_others(guarded: Guarded) -> None:
    held, waiting, evicted, left = (guarded.enter() for _ in range(4))
    guarded.leave(left)
    guarded.run(guarded.client("operator").evict(guarded.declaration, str(evicted.id)))
    never = guarded.new()
    call = guarded.client("one").renew(
        guarded.declaration, [ticket.id for ticket in (held, waiting, evicted, left, never)]
    )
    rows = guarded.run(call).rows
    assert [row.state for row in rows] == ["held", "waiting", "refused", "gone", "gone"]
    assert rows[0].granted == rows[0].arrival
    assert rows[2].reason == "evicted"
    guarded.now += LEASE - UNIT
    guarded.renew(held)
    guarded.now += LEASE - UNIT
    assert guarded.renew(held, waiting) == ["held", "lost"]


def test_many_are_renewed_by_one_call(guarded: Guarded) -> None:
    tickets = [guarded.enter() for _ in range(MOST_RENEWED)]
    guarded.now += LEASE - UNIT
    assert guarded.renew(*tickets) == ["held"] + ["waiting"] * (MOST_RENEWED - 1)
    guarded.now += LEASE - UNIT
    assert guarded.advance(None).decided == []


def test_who_waited_on_a_server_that_lost_its_data_keeps_its_place(guarded: Guarded) -> None:
    holder, early, late = (guarded.enter() for _ in range(3))
    guarded.server.delete(*guarded.server.keys(f"{guarded.client('one').base('guard')}*"))
    guarded.now += UNIT
    newcomer, other = guarded.enter(), guarded.enter()
    for ticket in (late, early):
        guarded.run(guarded.client("one").enter(ticket, since=ticket.arrival))
    order = [early, late, other]
    for ticket in order:
        guarded.leave(newcomer)
        assert ticket.state == "held"
        assert ticket.granted > holder.granted
        newcomer = ticket


# --- who is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [False, True])
def test_other_clients_are_told_by_the_step_itself(server: Any, cluster: bool) -> None:
    guarded = Guarded(server)
    for name in ("a", "b"):
        guarded.clients[name] = RedisRules(
            guarded.namespace, name, EPOCH, cluster=cluster, now=guarded.moment
        )
    mine, theirs = guarded.enter("a"), guarded.enter("b")
    with contextlib.closing(server.pubsub()) as ear:
        (ear.ssubscribe if cluster else ear.subscribe)(guarded.client("b").channel("guard"))
        hear = ear.get_sharded_message if cluster else ear.get_message
        assert hear(timeout=5)["type"].endswith("subscribe")
        decided = guarded.leave(mine).decided
        message = hear(timeout=5)
        assert guarded.client("b").read_message(message["data"]) == decided
        assert [row.id for row in decided] == [theirs.id]
        guarded.leave(theirs)
        assert hear(timeout=0) is None, "what one did oneself is in the answer"


# --- bounds ----------------------------------------------------------------------------------------


def test_a_thousand_are_granted_by_several_steps(guarded: Guarded) -> None:
    holding = guarded.enter()
    queue = [guarded.enter() for _ in range(1200)]
    call = guarded.client("operator").configure(guarded.declaration, None, limit=1300)
    answer = guarded.run(call, all_of_it=False)
    assert len(answer.decided) == 500
    for following in answer.more:
        guarded.run(following)
    assert {ticket.state for ticket in queue} == {"held"}
    tokens = [ticket.granted for ticket in queue]
    assert tokens == sorted({*tokens})
    assert tokens[0] > holding.granted


def test_nothing_passes_on_to_the_dead_though_they_are_more_than_one_step_sees_to(guarded: Guarded) -> None:
    for _ in range(250):
        guarded.enter("dead")
    guarded.now += LEASE - UNIT
    alive = guarded.enter("alive")
    guarded.now += UNIT
    answer = guarded.run(guarded.client("alive").advance(guarded.declaration, []), all_of_it=False)
    assert answer.more
    assert {row.state for row in answer.decided} == {"lost", "held"}
    assert alive.state == "held", "there is no permit idle meanwhile"
    for following in answer.more:
        guarded.run(following)
    assert {ticket.state for ticket in guarded.tickets.values()} == {"lost", "held"}
    assert guarded.advance(None).more == []


def test_a_change_for_all_keys_reaches_more_of_them_than_one_step_does(guarded: Guarded) -> None:
    keys = [f"key {number}" for number in range(250)]
    for _ in range(2):
        for key in keys:
            guarded.enter(key=key)
    wide = guarded.enter(key=keys[-1])
    operator = guarded.client("operator")
    guarded.run(operator.configure(guarded.declaration, None, limit=2), all_of_it=False)
    guarded.leave(wide)
    assert [ticket.state for ticket in guarded.tickets.values() if ticket.key == keys[-1]] == [
        "held",
        "held",
        "withdrawn",
    ], "whoever looks at a key has it follow"
    guarded.run(operator.configure(guarded.declaration, None, limit=3))
    guarded.run(operator.configure(guarded.declaration, None, limit=2))
    assert {ticket.state for ticket in guarded.tickets.values()} == {"held", "withdrawn"}


def test_keys_used_once_leave_nothing_behind(server: Any) -> None:
    guarded = Guarded(server, max_keys=1000)
    last = guarded.enter()
    guarded.leave(last)
    for key in range(300):
        guarded.leave(guarded.enter(key=str(key), permits=1 + key % 2))
    guarded.now += 2 * LEASE + UNIT
    first = guarded.enter(key="0")
    assert len([key for key in guarded.stored() if key.startswith(":p:")]) <= 300 - 20 + 2, (
        "some go by the way"
    )
    guarded.leave(first)
    guarded.now += 2 * LEASE + UNIT
    assert guarded.advance().decided == []
    # Tombstones are the server's to delete, by its own clock.
    assert {key for key in guarded.stored() if not key.startswith(":t:")} == {":g", ":c", ":r", ":p:"}
    for name in guarded.stored():
        if name.startswith(":t:"):
            assert 0 < server.pttl(guarded.client("one").base("guard") + name) <= 2 * LEASE / TICKS * 1000 + 1
    again = guarded.enter(key="0")
    assert again.granted > first.granted


# --- time ------------------------------------------------------------------------------------------


def test_without_a_clock_of_the_caller_s_the_server_s_counts(server: Any) -> None:
    guarded = Guarded(server)
    rules = RedisRules(guarded.namespace, "one", 0)
    ticket = guarded.new()
    seconds, microseconds = server.time()
    before = seconds * TICKS + microseconds * TICKS_PER_MICROSECOND
    rules.write(ticket, rules.read(call := rules.enter(ticket), guarded.ask(call)).rows[0])
    seconds, microseconds = server.time()
    assert before <= ticket.granted <= seconds * TICKS + microseconds * TICKS_PER_MICROSECOND


def test_where_the_server_s_clock_is_set_back_the_guard_s_goes_on(guarded: Guarded) -> None:
    dead, heir = guarded.enter("dead"), guarded.enter("alive")
    guarded.now += LEASE - 2 * UNIT
    guarded.renew(heir)
    guarded.now -= 3600 * TICKS
    guarded.renew(heir)
    guarded.now += 3 * UNIT
    guarded.renew(heir)
    assert (dead.state, heir.state) == ("lost", "held"), "no lease ends later for it"
    assert heir.granted > dead.granted
    guarded.now += LEASE // 2
    guarded.renew(heir)
    guarded.leave(heir)
    assert heir.ended - heir.granted == pytest.approx(LEASE // 2, rel=0.01)
    assert guarded.enter(patience=0).granted > heir.granted


def test_tokens_grow_over_a_key_that_was_deleted_and_a_clock_that_was_set_back(guarded: Guarded) -> None:
    first = guarded.enter(key="key", lease=UNIT)
    guarded.leave(first)
    guarded.now += 3 * UNIT
    guarded.advance()
    assert ":p:key" not in guarded.stored()
    guarded.now -= TICKS
    assert guarded.enter(key="key").granted > first.granted


def test_the_pace_is_due_and_whoever_advances_then_has_the_next_granted(server: Any) -> None:
    guarded = Guarded(server, limit=5, rate=Rate(1, per=0.002))
    first, second, third = (guarded.enter(key="k") for _ in range(3))
    assert [ticket.state for ticket in (first, second, third)] == ["held", "waiting", "waiting"]
    answer = guarded.advance("k")
    assert (answer.now, answer.due) == (guarded.now, guarded.now + 2 * UNIT)
    guarded.now += 2 * UNIT
    assert guarded.advance("k").due == guarded.now + 2 * UNIT
    assert (second.state, third.state) == ("held", "waiting")


# --- what is asked, and of whom --------------------------------------------------------------------


def test_all_keys_of_a_guard_are_in_one_slot_whatever_their_names(server: Any) -> None:
    guarded = Guarded(server, order="fair")
    guarded.namespace = "{na}me:space/\0é"
    guarded.declaration = Declaration("{}:/%", Rules(order="fair", max_waiting=None))
    base = guarded.client("one").base(guarded.declaration.name)
    for key in ("{}", "a:b", "c/d", "\0", "é%", None):
        for tenant in ("", "{x}", ":"):
            guarded.enter(key=key, tenant=tenant, permits=1)
    stored = [key for key in server.scan_iter("*", count=10_000) if key.startswith(base.encode())]
    assert len(stored) > 6 * 5
    assert {key_slot(key) for key in stored} == {key_slot(base.encode())}
    answer = guarded.ask(guarded.client("one").inspect(guarded.declaration, None))
    picture = guarded.client("one").picture(guarded.declaration, None, answer)
    assert {one.key for one in picture.holders} == {"{}", "a:b", "c/d", "\0", "é%", None}
    assert {one.tenant for one in picture.queue} == {"{x}", ":"}
    server.delete(*stored)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("enter",), "arguments: expected at least 5, got 1"),
        (("fly", "", "one", "PUBLISH", "[]"), "operation: expected one that this script knows, got fly"),
        (("advance", "noon", "one", "PUBLISH", "[]"), "now: expected a number, got noon"),
        (("enter", "", "one", "PUBLISH", "[]", "one.1", "", "0"), "permits: expected a number, got nil"),
        (
            (
                "enter",
                "",
                "one",
                "PUBLISH",
                "[]",
                "one.1",
                "",
                "0",
                "1",
                "",
                "0",
                "",
                "1",
                "",
                "",
                "",
                "1",
                "",
            ),
            "lease: expected microseconds above 0, got 0",
        ),
        (("configure", "", "one", "PUBLISH", "[]", "", "many", "0"), "limit: expected a number, got many"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_done(
    guarded: Guarded, args: tuple[str, ...], message: str
) -> None:
    with pytest.raises(redis.ResponseError, match=f"ASYNCGUARD {message}"):
        guarded.ask(Call(guarded.client("one").base("guard"), args))
    assert guarded.stored() == set()


def test_declarations_that_differ_are_seen_and_travel_with_each_call(guarded: Guarded) -> None:
    def declare(rules: Rules, **how: Any) -> Rules | None:
        return guarded.run(guarded.client("one").declare(Declaration("guard", rules), **how)).standing

    first = Rules(limit=2, rate=Rate(3, per=2.5, burst=2), order="fair", max_waiting=None, revision=4)
    assert declare(first) is None
    assert declare(Rules(revision=4)) == declare(Rules(revision=3)) == first
    assert declare(Rules(revision=1), force=True) is None
    guarded.declaration = Declaration("guard", Rules(limit=3, revision=5))
    assert [guarded.enter().state for _ in range(4)] == ["held"] * 3 + ["waiting"]


def test_whether_the_permits_that_are_held_keep_somebody_out(server: Any) -> None:
    guarded = Guarded(server, limit=2)

    def is_full(permits: int) -> bool:
        call = guarded.client("one").is_full(guarded.declaration, None, permits)
        return bool(guarded.ask(call) == b"1")

    assert not is_full(0)
    guarded.enter()
    assert [is_full(permits) for permits in (1, 2, 0)] == [False, True, True]
    guarded.enter(permits=2)
    assert is_full(1), "the first in line is kept out"


def test_a_server_that_is_full_refuses_whole_steps_and_lets_leave(server: Any, guarded: Guarded) -> None:
    held, waiting = guarded.enter(), guarded.enter()
    before = guarded.stored()
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            guarded.enter()
        with pytest.raises(OutOfMemoryError):
            guarded.enter(key="another")
        assert guarded.stored() == before
        guarded.leave(held)
        assert waiting.state == "held"
    finally:
        server.config_set("maxmemory", 0)
    guarded.leave(waiting)
    assert guarded.enter().state == "held"


# --- what a step costs -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "key"])
def test_the_usual_way_in_and_out_takes_few_commands(guarded: Guarded, key: str | None) -> None:
    one = guarded.client("one")
    guarded.leave(guarded.enter(key=key))
    ticket = guarded.new(key=key)
    assert guarded.commands(one.enter(ticket)) <= 11
    assert guarded.commands(one.leave(ticket)) <= 12
    held, heir = guarded.enter(key=key), guarded.enter("other", key)
    assert guarded.commands(one.leave(held)) <= 15
    assert heir.state == "held"


@pytest.mark.parametrize(
    ("order", "ask"), [("fifo", {}), ("fifo", {"priority": 3 * UNIT}), ("lifo", {}), ("fair", {})]
)
def test_no_step_takes_more_commands_the_longer_the_queue(
    server: Any, order: str, ask: dict[str, Any]
) -> None:
    few, many = commands_with(server, 10, order, ask), commands_with(server, 1500, order, ask)
    assert few == many


def commands_with(server: Any, waiting: int, order: str, ask: dict[str, Any]) -> list[int]:
    guarded = Guarded(server, order=order)
    one = guarded.client("one")
    for _ in range(5):  # so that waits are estimated
        ticket = guarded.enter()
        guarded.now += UNIT
        guarded.leave(ticket)
    holding = guarded.enter()
    queue = [guarded.enter() for _ in range(waiting)]
    newcomer = guarded.new(patience=1 << 60, **ask)
    return [
        guarded.commands(one.enter(newcomer)),
        guarded.commands(one.leave(queue[waiting // 2])),
        guarded.commands(one.leave(newcomer, "timeout")),
        guarded.commands(one.enter(guarded.new(), wait=False)),
        guarded.commands(one.leave(holding)),
        guarded.commands(one.evict(guarded.declaration, str(queue[waiting // 3].id))),
        guarded.commands(one.renew(guarded.declaration, [queue[1].id])),
        guarded.commands(one.advance(guarded.declaration, [None])),
    ]
