"""The checker of histories: each rule has a history that only this rule finds fault with."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from asyncguard.testing.history import Record, Recorder, Report, check, read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MS = 1_000_000
SECOND = 1000 * MS


class Story:
    """Writes a history down; moments are in milliseconds."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def note(self, at: float, kind: Any, ticket: str | None = None, client: str = "p", **more: Any) -> None:
        if kind == "asking" or ticket is None:
            more.setdefault("guard", "g")
        self.records.append(Record(kind=kind, at=int(at * MS), client=client, ticket=ticket, **more))

    def ticket(
        self, name: str, moments: Mapping[Any, float], token: int = 0, client: str = "p", **asks: Any
    ) -> None:
        for kind, at in moments.items():
            more = asks if kind == "asking" else {"token": token} if kind == "granted" else {}
            self.note(at, kind, name, client, **more)

    def serve(
        self, name: str, since: float, until: float, token: int, client: str = "p", **asks: Any
    ) -> None:
        """Have a ticket be granted at once and work."""
        moments = {"asking": since, "granted": since + 1, "working": since + 2}
        moments |= {"worked": until - 1, "released": until}
        self.ticket(name, moments, token, client, **asks)

    def check(self, limit: int = 1, **how: Any) -> Report:
        records = list(self.records)
        random.Random(1).shuffle(records)
        return check(records, limits={"g": limit}, **how)


def rules(report: Report) -> set[str]:
    return {violation.rule for violation in report.violations}


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_history_without_fault(story: Story) -> None:
    story.serve("a", 0, 10, token=1)
    story.ticket("b", {"asking": 5, "queued": 6, "granted": 11, "working": 12, "wrote": 13, "worked": 14}, 2)
    story.note(15, "released", "b")
    story.ticket("c", {"asking": 7, "queued": 8, "withdrawn": 9})
    story.ticket("d", {"asking": 7, "refused": 8})
    report = story.check()
    assert report.violations == ()
    assert (report.tickets, report.grants, report.withdrawn, report.refused, report.writes) == (4, 2, 1, 1, 1)
    assert report.longest_idle == pytest.approx(0.001)
    assert "violations" in str(report)


def test_nothing_noted_is_no_fault() -> None:
    assert check([], limits={}).violations == ()


# --- limit -------------------------------------------------------------------------------------


def test_limit_a_permit_was_held_that_its_client_had_not_heard_of(story: Story) -> None:
    # "late" was granted first, as the tokens tell; "b" came and went before "late" heard of it.
    moments = {"asking": 0, "granted": 50, "working": 51, "worked": 52, "released": 53}
    story.ticket("late", moments, token=1)
    story.serve("b", 1, 20, token=2)
    report = story.check()
    assert rules(report) == {"limit"}
    assert "'b' was granted, token 2, while the limit was 1 at most: 'b', 'late' hold 2" in str(report)
    assert story.check(limit=2).violations == ()


def test_limit_several_permits_count_as_such(story: Story) -> None:
    moments = {"asking": 0, "granted": 50, "working": 51, "worked": 52, "released": 53}
    story.ticket("late", moments, token=1, permits=2)
    story.serve("b", 1, 20, token=2, permits=2)
    assert rules(story.check(limit=3)) == {"limit"}
    assert story.check(limit=4).violations == ()


def test_limit_all_permits_are_nobody_elses(story: Story) -> None:
    moments = {"asking": 0, "granted": 50, "working": 51, "worked": 52, "released": 53}
    story.ticket("late", moments, token=1, permits="all")
    story.serve("b", 1, 20, token=2)
    assert rules(story.check(limit=9)) == {"limit"}


def test_limit_a_lowered_one_drains_and_then_holds(story: Story) -> None:
    story.serve("a", 0, 100, token=1)
    story.serve("b", 1, 100, token=2)
    story.note(20, "limiting", limit=1)
    story.note(21, "limited", limit=1)
    assert story.check(limit=2).violations == ()
    moments = {"asking": 22, "granted": 101, "working": 102, "worked": 103, "released": 104}
    story.ticket("c", moments, token=4)
    story.ticket("d", moments | {"released": 105}, token=5)
    assert rules(story.check(limit=2)) == {"limit", "overlap"}


def test_limit_what_is_being_set_may_stand_already(story: Story) -> None:
    story.note(0, "limiting", limit=2)
    story.serve("a", 1, 50, token=1)
    story.serve("b", 2, 50, token=2)
    story.note(51, "limited", limit=2)
    assert story.check().violations == ()


def test_limit_that_of_a_key_counts_before_that_of_all(story: Story) -> None:
    for at, key, limit in ((0, None, 5), (2, "k", 1)):
        story.note(at, "limiting", key=key, limit=limit)
        story.note(at + 1, "limited", key=key, limit=limit)
    story.serve("a", 10, 50, token=1, key="k")
    story.serve("b", 11, 50, token=2, key="k")
    story.serve("c", 10, 50, token=1, key="other")
    story.serve("d", 11, 50, token=2, key="other")
    assert {violation.key for violation in story.check().violations} == {"k"}
    story.note(4, "limiting", key="k", limit=None)
    story.note(5, "limited", key="k", limit=None)
    assert story.check().violations == ()


def test_limit_one_that_was_killed_holds_until_then(story: Story) -> None:
    story.ticket("a", {"asking": 0, "granted": 1}, token=1, client="dead")
    story.serve("b", 2, 20, token=2)
    story.note(30, "killed", client="dead")
    assert rules(story.check()) == {"limit"}
    story.records[-1] = Record(kind="killed", at=2 * MS, client="dead")
    assert story.check().violations == ()


def test_limit_one_that_was_killed_may_have_released_once_its_work_was_over(story: Story) -> None:
    story.ticket("a", {"asking": 0, "granted": 2, "working": 3, "worked": 10}, token=1, client="dead")
    story.ticket("b", {"asking": 1, "queued": 2, "granted": 11, "working": 12}, token=2)
    story.ticket("b", {"worked": 40, "released": 41})
    story.note(30, "killed", client="dead")
    assert story.check().violations == ()
    story.records = [record for record in story.records if record.kind != "worked" or record.ticket != "a"]
    assert rules(story.check()) == {"limit", "overlap"}
    story.note(11.5, "worked", "a", client="dead")
    assert rules(story.check()) == {"limit"}


def test_limit_a_grant_counts_however_soon_it_may_have_ended(story: Story) -> None:
    story.serve("a", 0, 30, token=1)
    story.ticket("b", {"asking": 5, "granted": 10, "released": 11}, token=2)
    assert rules(story.check()) == {"limit"}


# --- pause -------------------------------------------------------------------------------------


def test_pause_nothing_is_granted_in_one(story: Story) -> None:
    story.note(0, "pausing")
    story.note(1, "paused")
    story.serve("a", 2, 10, token=1)
    story.note(20, "resuming")
    story.note(21, "resumed")
    story.serve("b", 22, 30, token=2)
    assert rules(story.check()) == {"pause"}
    assert len(story.check().violations) == 1


def test_pause_one_that_is_being_made_or_ended_may_not_stand(story: Story) -> None:
    story.note(0, "pausing")
    story.serve("a", 1, 10, token=1)
    story.note(20, "paused")
    story.note(21, "resuming")
    story.serve("b", 22, 30, token=2)
    story.note(40, "resumed")
    assert story.check().violations == ()


# --- overlap -----------------------------------------------------------------------------------


def test_overlap_work_goes_on_after_its_permit(story: Story) -> None:
    story.ticket("a", {"asking": 0, "granted": 1, "working": 2, "released": 3, "worked": 50}, token=1)
    story.serve("b", 4, 20, token=2)
    report = story.check()
    assert rules(report) == {"overlap"}
    assert "'a', 'b' work at once" in str(report)
    assert story.check(limit=2).violations == ()


def test_overlap_work_of_one_that_was_killed_has_ended(story: Story) -> None:
    story.ticket("a", {"asking": 0, "granted": 1, "working": 2}, token=1, client="dead")
    story.note(10, "killed", client="dead")
    story.ticket(
        "b", {"asking": 3, "queued": 4, "granted": 11, "working": 12, "worked": 13, "released": 14}, 2
    )
    assert story.check().violations == ()


def test_overlap_work_ends_also_if_it_was_the_last_that_one_noted_that_was_killed(story: Story) -> None:
    story.ticket("a", {"asking": 0, "granted": 1, "working": 3}, token=1, client="dead")
    story.note(2, "killed", client="dead")
    story.ticket("b", {"asking": 1, "queued": 2, "granted": 4, "working": 5, "worked": 8}, token=2)
    story.note(9, "released", "b")
    assert story.check().violations == ()
    story.serve("c", 0, 4.5, token=3)
    report = story.check()
    assert rules(report) == {"limit", "overlap"}
    assert "ticket 'a' began its work while the limit was 1 at most: 'a', 'c' work at once" in str(report)


def test_overlap_under_a_stop_is_expected_of_leases_alone(story: Story) -> None:
    story.ticket(
        "a", {"asking": 0, "granted": 1, "working": 2, "worked": 90, "lost": 91}, token=1, client="s"
    )
    story.note(3, "stopped", client="s")
    story.note(80, "continued", client="s")
    story.serve("b", 40, 60, token=2)
    assert rules(story.check()) == {"overlap"}
    report = story.check(leases=True)
    assert report.violations == ()
    assert report.overlaps_under_stop == 1


# --- tokens ------------------------------------------------------------------------------------


def test_tokens_shrink(story: Story) -> None:
    story.serve("a", 0, 10, token=2)
    story.serve("b", 11, 20, token=1)
    report = story.check()
    assert rules(report) == {"tokens"}
    assert "granted token 1 after token 2 was known" in str(report)


def test_tokens_are_given_twice(story: Story) -> None:
    story.serve("a", 1, 10, token=7)
    moments = {"asking": 0, "granted": 11, "working": 12, "worked": 13, "released": 14}
    story.ticket("b", moments, token=7)
    assert rules(story.check()) == {"tokens"}


def test_tokens_of_different_keys_have_nothing_to_do_with_each_other(story: Story) -> None:
    story.serve("a", 0, 10, token=7, key="one")
    story.serve("b", 11, 20, token=7, key="two")
    assert story.check().violations == ()


# --- order -------------------------------------------------------------------------------------


def overtaken(story: Story, **asks: Any) -> None:
    story.serve("holder", 0, 20, token=1)
    late = {"asking": 10, "queued": 11, "granted": 21, "working": 22, "worked": 23, "released": 24}
    story.ticket("late", late, token=2, **asks)
    early = {"asking": 5, "queued": 6, "granted": 25, "working": 26, "worked": 27, "released": 28}
    story.ticket("early", early, token=3)


def test_order_a_newcomer_overtakes(story: Story) -> None:
    overtaken(story)
    report = story.check()
    assert rules(report) == {"order"}
    assert "'late' was granted before 'early', which was queued 4.000 ms before it asked" in str(report)
    assert story.check(in_order=False).violations == ()


def test_order_a_head_start_is_no_overtaking(story: Story) -> None:
    overtaken(story, priority=10)
    assert story.check().violations == ()


def test_order_who_asked_meanwhile_may_come_first(story: Story) -> None:
    story.serve("holder", 0, 20, token=1)
    for name, queued, granted, token in (("a", 12, 25, 3), ("b", 13, 21, 2)):
        story.ticket(
            name,
            {
                "asking": 10,
                "queued": queued,
                "granted": granted,
                "worked": granted + 1,
                "released": granted + 2,
            },
            token,
        )
    assert story.check().violations == ()


# --- idle --------------------------------------------------------------------------------------


def left_waiting(story: Story, seconds: float, **asks: Any) -> None:
    story.serve("a", 0, 10, token=1)
    end = 10 + seconds * 1000
    story.ticket(
        "b", {"asking": 5, "queued": 6, "granted": end, "worked": end + 1, "released": end + 2}, 2, **asks
    )


def test_idle_a_permit_is_free_and_nobody_gets_it(story: Story) -> None:
    left_waiting(story, 3)
    report = story.check()
    assert rules(report) == {"idle"}
    assert report.longest_idle == pytest.approx(3)
    assert story.check(idle=4).violations == ()


def test_idle_until_the_end(story: Story) -> None:
    left_waiting(story, 3)
    story.records = [record for record in story.records if record.ticket == "a"]
    story.ticket("b", {"asking": 5, "queued": 6}, client="x")
    story.note(3010, "killed", client="x")
    assert rules(story.check()) == {"idle"}


def test_idle_one_of_two(story: Story) -> None:
    """One permit is handed on all the time, and the other forgotten."""
    for number in range(40):
        served = 10 + number * 100
        moments = {"asking": number, "queued": number + 0.5, "granted": served, "worked": served + 98}
        story.ticket(f"t{number}", moments | {"released": served + 99}, number + 1)
    assert rules(story.check(limit=2)) == {"idle"}
    assert story.check(limit=1).violations == ()


@pytest.mark.parametrize("why", ["pausing", "stopped"])
def test_idle_not_in_a_pause_nor_while_one_is_stopped_that_may_have_it(story: Story, why: str) -> None:
    left_waiting(story, 3)
    if why == "stopped":
        story.note(8, "stopped", client="p")
        story.note(2500, "continued", client="p")
    else:
        for at, kind in ((8, "pausing"), (9, "paused"), (2500, "resuming"), (2501, "resumed")):
            story.note(at, kind)
    report = story.check()
    assert report.violations == ()
    assert 0.4 < report.longest_idle < 0.6
    assert rules(story.check(idle=0.3)) == {"idle"}


def test_idle_one_that_is_stopped_and_wants_nothing_is_no_reason(story: Story) -> None:
    left_waiting(story, 3)
    story.note(8, "stopped", client="another")
    story.note(2500, "continued", client="another")
    assert rules(story.check()) == {"idle"}


def test_idle_after_a_kill_has_a_bound_of_its_own(story: Story) -> None:
    story.ticket("a", {"asking": 0, "granted": 1, "working": 2}, token=1, client="dead")
    story.note(10, "killed", client="dead")
    story.ticket("b", {"asking": 5, "queued": 6, "granted": 510, "worked": 511, "released": 512}, token=2)
    report = story.check(idle=0.1, idle_after_kill=1)
    assert report.violations == ()
    assert report.longest_idle == 0
    assert report.longest_idle_after_kill == pytest.approx(0.5)
    assert rules(story.check(idle_after_kill=0.2)) == {"idle"}


def test_idle_one_that_was_killed_as_it_asked_holds_up_nobody(story: Story) -> None:
    story.serve("a", 0, 9000, token=1)
    story.note(1, "asking", "all", client="dead", permits="all")
    story.note(0, "killed", client="dead")
    story.ticket("b", {"asking": 2, "queued": 3, "granted": 8000, "working": 8001, "worked": 8002}, 2)
    story.note(8003, "released", "b")
    assert rules(story.check(limit=2)) == {"idle"}


def test_idle_who_wants_more_than_is_free_holds_up_the_others(story: Story) -> None:
    story.serve("a", 0, 3000, token=1)
    story.ticket(
        "big", {"asking": 5, "queued": 6, "granted": 3001, "worked": 3002, "released": 3003}, 2, permits=2
    )
    story.ticket("b", {"asking": 7, "queued": 8, "granted": 3004, "worked": 3005, "released": 3006}, 3)
    assert story.check(limit=2).violations == ()
    assert rules(story.check(limit=3)) == {"idle"}


# --- end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ({"asking": 0, "withdrawn": 1, "granted": 2}, "was granted when it was withdrawn"),
        ({"asking": 0, "granted": 1, "withdrawn": 2, "released": 3}, "was withdrawn when it was granted"),
        ({"asking": 0, "refused": 1, "withdrawn": 2}, "was withdrawn when it was refused"),
        ({"asking": 0, "granted": 1, "released": 2, "lost": 3}, "was lost when it was released"),
        ({"asking": 0, "granted": 1, "queued": 2, "released": 3}, "was queued when it was granted"),
        ({"asking": 0, "working": 1, "refused": 2}, "was working without having been granted"),
        ({"asking": 0}, "was never answered"),
        ({"asking": 0, "granted": 1, "worked": 2}, "was neither released nor lost"),
    ],
)
def test_end_each_ticket_has_exactly_one(story: Story, moments: dict[Any, float], message: str) -> None:
    story.ticket("a", moments, token=1)
    report = story.check()
    assert rules(report) == {"end"}
    assert message in str(report)


def test_end_tickets_of_one_that_was_killed_have_ended(story: Story) -> None:
    story.ticket("a", {"asking": 0, "queued": 1}, client="dead")
    story.ticket("b", {"asking": 0, "granted": 1}, token=1, client="dead")
    story.note(2, "killed", client="dead")
    assert story.check().violations == ()


# --- fence -------------------------------------------------------------------------------------


def test_fence_a_store_turned_a_write_away(story: Story) -> None:
    story.serve("a", 0, 10, token=1)
    story.note(5, "stale", "a")
    assert rules(story.check()) == {"fence"}
    report = story.check(leases=True)
    assert report.violations == (), "that is what it is for"
    assert report.stale == 1


def test_fence_a_store_took_what_was_stale(story: Story) -> None:
    story.serve("b", 5, 20, token=2)
    story.note(15, "wrote", "b")
    # Granted before "b", it came to hear of it after that had written.
    story.ticket("a", {"asking": 0, "granted": 30, "wrote": 31, "lost": 33}, token=1)
    assert rules(story.check(leases=True)) == {"fence"}


# --- histories that are none -------------------------------------------------------------------


def test_what_contradicts_itself_is_told(story: Story) -> None:
    story.serve("a", 0, 10, token=1)
    with pytest.raises(ValueError, match="expected one for guard 'g'"):
        check(story.records, limits={"other": 1})
    with pytest.raises(ValueError, match="'b': 'granted' was noted of it, but not that it was asking"):
        check(
            [*story.records, Record(kind="granted", at=1, client="p", ticket="b", token=1)], limits={"g": 1}
        )
    with pytest.raises(ValueError, match="it asked twice"):
        check([*story.records, story.records[0]], limits={"g": 1})
    with pytest.raises(ValueError, match="without a record of being about to"):
        check([*story.records, Record(kind="paused", at=1, client="p", guard="g")], limits={"g": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "grant"}, "kind: expected one of asking, "),
        ({"kind": "queued"}, "ticket: expected one, as it is 'queued', got none"),
        ({"kind": "asking", "ticket": "a"}, "guard: expected one"),
        ({"kind": "granted", "ticket": "a"}, "token: expected one"),
        ({"kind": "pausing"}, "guard: expected one"),
        ({"kind": "asking", "ticket": "a", "guard": "g", "permits": 0}, "permits: expected a whole number"),
    ],
)
def test_what_is_no_record_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Record(at=0, client="p", **fields)


# --- files -------------------------------------------------------------------------------------


def test_what_was_noted_can_be_read(tmp_path: Path) -> None:
    before = time.monotonic_ns()
    with Recorder(tmp_path / "one", "p") as one, Recorder(tmp_path / "two", "q") as two:
        one.note("asking", "a", guard="g", key="k", permits="all", priority=1.5)
        two.note("killed", client="r")
        one.note("granted", "a", token=7)
        two.note("limiting", guard="g", limit=2)
    asking, killed, granted, limiting = read(tmp_path / "two", tmp_path / "one")
    assert before <= asking.at <= killed.at <= granted.at <= limiting.at <= time.monotonic_ns()
    assert (asking.client, asking.ticket, asking.key, asking.permits) == ("p", "a", "k", "all")
    assert asking.priority == 1.5
    assert (killed.kind, killed.client, killed.ticket) == ("killed", "r", None)
    assert (granted.token, limiting.limit) == (7, 2)


def test_a_process_that_goes_on_appends(tmp_path: Path) -> None:
    for _ in range(2):
        with Recorder(tmp_path / "one", "p") as one:
            one.note("killed")
    assert len(read(tmp_path / "one")) == 2


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"kind":"killed"}', '{"kind":"killed","at":1,"client":"p","x":1}']
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "log").write_text('{"kind":"killed","at":1,"client":"p"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"log, line 2: expected a record, got "):
        read(tmp_path / "log")


# --- much --------------------------------------------------------------------------------------


def long_history(grants: int, limit: int) -> Story:
    """What a guard without fault gives, its clients in no hurry to note it."""
    chance, story, now = random.Random(7), Story(), 0.0
    free = [0.0] * limit
    granted = 0.0
    for number in range(grants):
        now += chance.expovariate(1)
        queued = now + chance.random() * 0.01
        granted = max(granted + 1e-3, min(free), queued)
        began, done = granted + chance.random(), granted + 1.1 + chance.expovariate(1 / limit)
        moments = {"asking": now, "queued": queued, "granted": began, "working": began + 1e-4}
        story.ticket(
            str(number), moments | {"worked": done, "released": done + 1e-5}, number + 1, f"p{number % 8}"
        )
        free[free.index(min(free))] = done + 1e-5
        now = queued
    return story


@pytest.mark.parametrize("limit", [1, 3])
def test_20_000_grants_are_judged_in_seconds(limit: int) -> None:
    story = long_history(20_000, limit)
    began = time.process_time()
    report = story.check(limit)
    assert time.process_time() - began < 20
    assert report.violations == ()
    assert report.grants == 20_000


@pytest.mark.parametrize("seed", range(20))
def test_a_long_history_with_one_fault_has_one(seed: int) -> None:
    story = long_history(300, 1)
    chance = random.Random(seed)
    tickets = [record for record in story.records if record.kind == "granted"]
    victim = chance.choice(tickets[10:-10])
    number = story.records.index(victim)
    match seed % 4:
        case 0:
            story.records[number] = Record(
                kind="granted", at=victim.at, client=victim.client, ticket=victim.ticket, token=1
            )
            expected = "tokens"
        case 1:
            story.records = [
                each for each in story.records if each.ticket != victim.ticket or each.kind != "released"
            ]
            expected = "end"
        case 2:
            story.note(victim.at / MS + 1e-5, "stale", victim.ticket, victim.client)
            expected = "fence"
        case _:
            worked = story.records[number + 2]
            story.records[number + 2] = Record(
                kind="worked", at=worked.at + SECOND, client=worked.client, ticket=worked.ticket
            )
            expected = "overlap"
    assert expected in rules(story.check())
