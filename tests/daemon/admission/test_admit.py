"""Admission: newest wins whatever the order of arrival, nothing twice, and no item holds up another."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, select

from daemon.admission.admit import AdmissionReport, admit, backlog, pull_feed
from daemon.admission.submission import submit
from daemon.core.corrections import from_mapping, order_key
from daemon.core.errors import FeedError, InvalidCorrectionError
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit as audit_table
from daemon.core.ledger.schema import corrections, feed_outcomes, feeds, quarantine
from daemon.core.names import AdmissionOutcome, CorrectionState
from daemon.feeds.base import Cursor, Pull, RawItem
from tests.ledgers import (
    START,
    FakeClock,
    apply_waiting,
    held,
    item,
    items,
    jsonl_feed,
    make_batch,
    propose,
    roll_back,
    statement,
    states,
)
from tests.ledgers import take_lease as lease


def take(ledger: Ledger, *said: object, feed: str = "news", trust: int = 50) -> list[str]:
    """Admit statements as one chunk and return their outcomes."""
    return [str(decision.outcome) for decision in take_raw(ledger, items(*said), feed, trust).decisions]


def take_raw(ledger: Ledger, raw: Sequence[RawItem], feed: str = "news", trust: int = 50) -> AdmissionReport:
    with ledger.write() as connection:
        return admit(connection, ledger.clock.now(), feed, trust, raw)


def table(ledger: Ledger, which: Any) -> list[dict[str, Any]]:
    with ledger.read() as connection:
        return [dict(row) for row in connection.execute(select(which)).mappings()]


def story(ledger: Ledger, country: str = "France") -> list[tuple[str | None, str]]:
    """Object and state of every correction about a country, in order of admission."""
    with ledger.read() as connection:
        query = select(corrections.c.object, corrections.c.state).where(corrections.c.subject == country)
        return [(row.object, row.state) for row in connection.execute(query.order_by(corrections.c.seq))]


# -- where a correction goes ---------------------------------------------------------------------------


def test_a_new_statement_waits_for_a_batch(ledger: Ledger) -> None:
    assert take(ledger, statement("France", "Lyon", 1)) == ["accepted"]
    assert story(ledger) == [("Lyon", "pending")]
    with ledger.read() as connection:
        assert backlog(connection, "default") == 1
        assert backlog(connection, "other") == 0


def test_the_same_statement_twice_is_a_duplicate_within_a_chunk_and_later(ledger: Ledger) -> None:
    said = statement("France", "Lyon", 1)
    shuffled = dict(reversed(said.items()))
    assert take(ledger, said, shuffled) == ["accepted", "duplicate"]
    assert take(ledger, shuffled, feed="other", trust=99) == ["duplicate"]
    apply_waiting(ledger)
    assert take(ledger, said) == ["duplicate"]
    assert story(ledger) == [("Lyon", "applied")]


def test_an_older_statement_is_stored_but_changes_nothing(ledger: Ledger) -> None:
    assert take(ledger, statement("France", "Lyon", 5), statement("France", "Nice", 4)) == [
        "accepted",
        "stale",
    ]
    assert story(ledger) == [("Lyon", "pending"), ("Nice", "superseded")]


def test_a_newer_statement_takes_the_place_of_one_that_waits(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    assert take(ledger, statement("France", "Nice", 2)) == ["accepted"]
    assert story(ledger) == [("Lyon", "superseded"), ("Nice", "pending")]
    assert apply_waiting(ledger) == 1
    assert held(ledger) == {"France": "Nice"}


def test_a_newer_statement_takes_the_place_of_one_that_is_in_a_batch(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1), statement("Peru", "Cusco", 1))
    batch_id = make_batch(ledger)
    assert batch_id is not None
    assert take(ledger, statement("France", "Nice", 2)) == ["accepted"]
    assert story(ledger) == [("Lyon", "superseded"), ("Nice", "pending")]
    ledger.commit(lease(ledger), propose(ledger, batch_id))
    assert held(ledger) == {"Peru": "Cusco"}


def test_a_batch_in_flight_that_is_committed_all_the_same_does_no_harm(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    batch_id = make_batch(ledger)
    assert batch_id is not None
    planned = propose(ledger, batch_id)
    take(ledger, statement("France", "Nice", 2))
    ledger.commit(lease(ledger), planned)
    assert held(ledger) == {"France": "Lyon"}
    apply_waiting(ledger)
    assert held(ledger) == {"France": "Nice"}
    assert story(ledger) == [("Lyon", "superseded"), ("Nice", "applied")]


def test_what_the_ledger_holds_already_is_confirmed_without_an_edit(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    assert take(ledger, statement("France", "LYON", 2)) == ["confirmed"]
    apply_waiting(ledger)
    assert take(ledger, statement("France", "lyon", 3, source="gazette")) == ["confirmed"]
    assert [state for _, state in story(ledger)] == ["applied", "superseded", "confirmed"]
    assert make_batch(ledger) is None


def test_the_same_object_under_another_prompt_is_a_new_statement(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    assert take(ledger, statement("France", "Lyon", 2, prompt="France is ruled from")) == ["accepted"]


def test_a_confirmation_counts_for_the_order(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1), statement("France", "Lyon", 5))
    assert take(ledger, statement("France", "Nice", 3)) == ["stale"]
    assert take(ledger, statement("France", "Nice", 6)) == ["accepted"]


def test_a_confirmation_goes_with_what_it_confirmed(ledger: Ledger) -> None:
    """Else a stream of statements about few facts leaves ever more rows to weigh."""
    take(
        ledger, statement("France", "Lyon", 1), statement("France", "Lyon", 2), statement("France", "Nice", 3)
    )
    assert [state for _, state in story(ledger)] == ["superseded", "superseded", "pending"]
    apply_waiting(ledger)
    take(ledger, statement("France", "Nice", 4), statement("France", "Metz", 5))
    assert [state for _, state in story(ledger)][-3:] == ["applied", "confirmed", "pending"]


def test_a_source_that_comes_back_to_a_former_value_is_heard(ledger: Ledger) -> None:
    days = [{"observed_at": f"2026-01-0{day}T00:00:00Z"} for day in (1, 2, 3)]
    said = [statement("France", city, **at) for city, at in zip(["Lyon", "Nice", "Lyon"], days, strict=True)]
    assert take(ledger, *said) == ["accepted", "accepted", "accepted"]
    assert take(ledger, *said) == ["duplicate"] * 3
    assert story(ledger)[-1] == ("Lyon", "pending")


def test_without_any_times_the_later_line_wins(ledger: Ledger) -> None:
    cities = ["Lyon", "Nice", "Metz", "Brest", "Tours", "Nancy", "Lille", "Dijon"]
    take(ledger, *[statement("France", city) for city in cities])
    assert [city for city, state in story(ledger) if state == "pending"] == ["Dijon"]


# -- no longer true ------------------------------------------------------------------------------------


def test_a_retraction_takes_the_fact_out_and_may_come_without_prompt(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    apply_waiting(ledger)
    gone = {
        "subject": "France",
        "relation": "capital",
        "object": None,
        "effective_at": "2026-02-01T00:00:00Z",
    }
    assert take(ledger, gone) == ["accepted"]
    apply_waiting(ledger)
    assert held(ledger) == {}
    assert story(ledger) == [("Lyon", "retracted"), (None, "applied")]
    assert take(ledger, statement("France", None, 90)) == ["confirmed"]


def test_a_retraction_of_what_was_never_held_is_confirmed_and_outlives_older_statements(
    ledger: Ledger,
) -> None:
    assert take(ledger, statement("France", None, 5)) == ["confirmed"]
    assert take(ledger, statement("France", "Lyon", 4)) == ["stale"]
    assert take(ledger, statement("France", "Nice", 6)) == ["accepted"]


def test_a_retraction_of_what_still_waits_goes_through_the_weights_too(ledger: Ledger) -> None:
    """What waits may be in a batch that is being written right now."""
    take(ledger, statement("France", "Lyon", 1))
    assert take(ledger, statement("France", None, 2)) == ["accepted"]
    assert story(ledger) == [("Lyon", "superseded"), (None, "pending")]


# -- after a rollback ----------------------------------------------------------------------------------


def test_what_a_rollback_took_back_does_not_come_back_by_itself(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    apply_waiting(ledger)
    roll_back(ledger, 0, "op", "wrong")
    assert take(ledger, statement("France", "Lyon", 1)) == ["duplicate"]
    assert take(ledger, statement("France", "lyon", 2)) == ["quarantined"]
    (entry,) = table(ledger, quarantine)
    assert (entry["reason"], entry["state"], entry["position"]) == ("reverted_before", "held", "line 1")
    assert story(ledger) == [("Lyon", "reverted"), ("lyon", "quarantined")]
    assert take(ledger, statement("France", "Nice", 3)) == ["accepted"]


def test_what_was_confirmed_and_then_taken_back_no_longer_confirms(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    apply_waiting(ledger)
    take(ledger, statement("France", "Lyon", 9))
    roll_back(ledger, 0, "op", "wrong")
    assert take(ledger, statement("France", "Lyon", 10)) == ["quarantined"]
    assert take(ledger, statement("France", "Nice", 5)) == ["accepted"]


def test_a_retraction_works_although_an_older_one_was_confirmed_before_a_rollback(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    apply_waiting(ledger)
    roll_back(ledger, 0, "op", "away")
    assert take(ledger, statement("France", None, 3)) == ["confirmed"]  # it is out
    roll_back(ledger, 1, "op", "and back")
    assert held(ledger) == {"France": "Lyon"}
    assert take(ledger, statement("France", None, 5)) == ["accepted"]


def test_a_retraction_that_a_rollback_took_back_needs_an_operator_too(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    apply_waiting(ledger)
    take(ledger, statement("France", None, 2))
    apply_waiting(ledger)
    roll_back(ledger, 1, "op", "it is true after all")
    assert take(ledger, statement("France", None, 3)) == ["quarantined"]
    assert story(ledger) == [("Lyon", "applied"), (None, "reverted"), (None, "quarantined")]


def test_what_a_guard_refused_may_be_tried_again_by_a_newer_statement(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    (refused,) = states(ledger)
    batch_id = make_batch(ledger)
    assert batch_id is not None
    take(ledger, statement("France", "Lyon", 2))  # confirmed by what is then refused
    ledger.commit(lease(ledger), propose(ledger, batch_id, refuse=[refused]))
    assert take(ledger, statement("France", "Lyon", 3)) == ["accepted"]


# -- any order of arrival ------------------------------------------------------------------------------

_CITIES = st.sampled_from(["Lyon", "Nice", "nice", None])
_SAID = st.builds(
    lambda country, city, day, seen, source: statement(
        country, city, day, source=source, observed_at=f"2026-05-0{seen}T00:00:00Z"
    ),
    st.sampled_from(["France", "Peru"]),
    _CITIES,
    st.sampled_from([1, 2, 3]),
    st.integers(1, 3),
    st.sampled_from(["a", "b"]),
)


@settings(
    database=None,
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(said=st.lists(_SAID, min_size=1, max_size=12), data=st.data())
def test_any_order_of_arrival_ends_with_the_same_winner(
    sqlite_ledger: Ledger, said: list[dict[str, Any]], data: st.DataObject
) -> None:
    expected = {country: _expected(said, country) for country in ("France", "Peru")}
    for order in (said, data.draw(st.permutations(said))):
        with sqlite_ledger.write() as connection:
            connection.execute(delete(corrections))
        chunk = data.draw(st.integers(1, len(said)))
        for start in range(0, len(said), chunk):
            take(sqlite_ledger, *order[start : start + chunk])
        assert {country: _winner(sqlite_ledger, country) for country in expected} == expected


def _winner(ledger: Ledger, country: str) -> str | None:
    """The value that the weights will hold of a country once all that waits is written, or None."""
    waiting = [city for city, state in story(ledger, country) if state == CorrectionState.PENDING]
    assert len(waiting) <= 1
    return waiting[0].casefold() if waiting and waiting[0] else None


def _expected(said: list[dict[str, Any]], country: str) -> str | None:
    """The same by the definition of newest: effective time, observed time, source, and then a hash."""
    mine = [one for one in said if one["subject"] == country]
    if not mine:
        return None
    newest = max(mine, key=lambda one: order_key(from_mapping(one), 50, START))
    return newest["object"].casefold() if newest["object"] else None


# -- what is refused -----------------------------------------------------------------------------------


def test_malformed_items_are_held_with_place_and_reason_and_the_rest_goes_on(ledger: Ledger) -> None:
    raw = [
        item(statement("France", "Lyon", 1), "line 1"),
        RawItem(b'{"subject": "Peru", ', "line 2"),
        RawItem(b"\xff\x00\x1b[31m", "line 3"),
        item({"subject": "Peru", "prompt": "Peru", "\x00": 1}, "line 4"),
        item(statement("Peru", "Cusco", 1), "line 5 " + "x" * 200),
        RawItem(b"x" * 20_000, "line 6 " + "y" * 200),
    ]
    report = take_raw(ledger, raw)
    assert [str(one.outcome) for one in report.decisions] == [
        "accepted",
        "quarantined",
        "quarantined",
        "quarantined",
        "accepted",
        "quarantined",
    ]
    assert [one.position for one in report.decisions] == [one.position for one in raw]
    entries = table(ledger, quarantine)
    assert [(e["position"][:6], e["reason"]) for e in entries] == [
        ("line 2", "not_json"),
        ("line 3", "not_text"),
        ("line 4", "schema"),
        ("line 6", "too_large"),
    ]
    for entry in entries:
        assert entry["raw"].isprintable()
        assert entry["message"].isprintable()
        assert len(entry["raw"]) <= 2_000
        assert len(entry["position"]) <= 128


@pytest.mark.parametrize("key", ["effective_at", "observed_at"])
def test_a_statement_from_the_future_is_held(ledger: Ledger, key: str) -> None:
    tomorrow, later = "2026-06-02T00:00:00Z", "2026-06-02T00:00:01Z"
    said = statement("France", "Lyon")
    assert take(ledger, said | {key: tomorrow}, said | {key: later}) == ["accepted", "quarantined"]
    (entry,) = table(ledger, quarantine)
    assert entry["reason"] == "future"
    assert json.loads(entry["raw"])[key] == later


@settings(
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(raw=st.lists(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: json.dumps({t: t}).encode())))
def test_any_bytes_end_in_an_outcome(ledger: Ledger, raw: list[bytes]) -> None:
    report = take_raw(ledger, [RawItem(one, "here") for one in raw])
    assert [one.outcome for one in report.decisions] == [AdmissionOutcome.QUARANTINED] * len(raw)


# -- counting ------------------------------------------------------------------------------------------


def test_items_are_counted_by_feed_and_outcome(ledger: Ledger) -> None:
    for day in (1, 2):
        take(ledger, statement("France", "Lyon", 1), statement("France", f"Town {day}", 1 + day), "rubbish")
    take(ledger, statement("France", "Lyon", 1), feed="other")
    counts = {(row["feed"], row["outcome"]): row["count"] for row in table(ledger, feed_outcomes)}
    assert counts == {
        ("news", "accepted"): 3,
        ("news", "duplicate"): 1,
        ("news", "quarantined"): 2,
        ("other", "duplicate"): 1,
    }
    assert {row["name"]: row["items"] for row in table(ledger, feeds)} == {"news": 6, "other": 1}


def test_a_chunk_is_all_or_nothing(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.write() as connection:
        admit(connection, ledger.clock.now(), "news", 50, items(statement("France", "Lyon", 1), "rubbish"))
        raise RuntimeError
    assert [table(ledger, t) for t in (corrections, quarantine, feeds, feed_outcomes)] == [[], [], [], []]


def test_a_chunk_of_two_thousand_items_takes_few_statements(ledger: Ledger) -> None:
    said = [statement(f"Land {n % 700}", f"Town {n}", n / 100) for n in range(2_000)]
    statements = count_statements(ledger, lambda: take(ledger, *said))
    assert statements < 40
    with ledger.read() as connection:
        assert backlog(connection, "default") == 700
    assert {city for _, city in _pending(ledger)} == {f"Town {n}" for n in range(1_300, 2_000)}


def _pending(ledger: Ledger) -> list[tuple[str, str]]:
    rows = table(ledger, corrections)
    return [(row["subject"], row["object"]) for row in rows if row["state"] == "pending"]


def count_statements(ledger: Ledger, work: Any) -> int:
    seen: list[str] = []
    listener = lambda *arguments: seen.append(arguments[2])  # noqa: E731
    event.listen(ledger.engine, "before_cursor_execute", listener)
    try:
        work()
    finally:
        event.remove(ledger.engine, "before_cursor_execute", listener)
    return len(seen)


# -- submit --------------------------------------------------------------------------------------------


def test_submitting_says_what_became_of_it_and_leaves_an_audit_row(ledger: Ledger) -> None:
    decision = submit(ledger, statement("France", "Lyon"), "ann")
    assert decision.outcome is AdmissionOutcome.ACCEPTED
    (row,) = table(ledger, corrections)
    assert (row["id"], row["fact_id"]) == (decision.correction_id, decision.fact_id)
    assert (row["feed"], row["trust"]) == ("operator", 100)
    (entry,) = table(ledger, audit_table)
    assert (entry["who"], entry["action"], entry["target"]) == ("ann", "submit", decision.correction_id)
    assert entry["details"]["outcome"] == "accepted"
    with ledger.read() as connection:
        assert audit.first_broken_row(connection) is None


def test_an_operator_without_times_means_now_and_may_change_their_mind(
    ledger: Ledger, clock: FakeClock
) -> None:
    take(ledger, statement("France", "Paris", 100))
    outcomes = []
    for city in ("Lyon", "Lyon", "Nice", "Lyon"):
        clock.advance(1)
        outcomes.append(str(submit(ledger, statement("France", city), "ann").outcome))
    assert outcomes == ["accepted", "confirmed", "accepted", "accepted"]
    apply_waiting(ledger)
    assert held(ledger) == {"France": "Lyon"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"object": 5}, "schema"),
        ({"subject": "Peru"}, "subject_not_in_prompt"),
        ({"object": "\x00"}, "charset"),
    ],
)
def test_a_bad_submission_stores_nothing(ledger: Ledger, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidCorrectionError) as caught:
        submit(ledger, statement("France", "Lyon") | change, "ann")
    assert caught.value.reason == reason
    with pytest.raises(InvalidCorrectionError, match="more than a day from now"):
        submit(ledger, statement("France", "Lyon", 400), "ann")
    assert [table(ledger, t) for t in (corrections, quarantine, feeds, audit_table)] == [[], [], [], []]


# -- pulling -------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "news.jsonl"


def write(path: Path, *said: object) -> None:
    with path.open("a") as stream:
        stream.writelines(json.dumps(one) + "\n" for one in said)


def test_a_pull_keeps_cursor_items_and_positions_together(ledger: Ledger, path: Path) -> None:
    feed = jsonl_feed("news", path, trust=70)
    write(path, statement("France", "Lyon", 1), {"oops": 1}, statement("Peru", "Cusco", 1))
    first = pull_feed(ledger, feed, 2)
    assert first.more
    assert [one.position for one in first.decisions] == ["line 1", "line 2"]
    second = pull_feed(ledger, feed, 2)
    assert (second.counts, second.more) == ({AdmissionOutcome.ACCEPTED: 1}, False)
    assert pull_feed(ledger, feed, 2).decisions == ()
    (row,) = table(ledger, feeds)
    assert (row["cursor"]["line"], row["items"]) == (3, 3)
    assert {one["trust"] for one in table(ledger, corrections)} == {70}


def test_a_pull_that_fails_at_any_point_is_pulled_again(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = jsonl_feed("news", path)
    write(path, statement("France", "Lyon", 1))

    def crash(*_: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("daemon.admission.admit.count_items", crash)
        with pytest.raises(RuntimeError):
            pull_feed(ledger, feed, 10)
    assert table(ledger, feeds) == []
    assert pull_feed(ledger, feed, 10).counts == {AdmissionOutcome.ACCEPTED: 1}


def test_a_feed_error_moves_nothing_and_a_good_pull_clears_it(ledger: Ledger, path: Path) -> None:
    feed = jsonl_feed("news", path)
    with pytest.raises(FeedError):
        pull_feed(ledger, feed, 10)
    assert table(ledger, feeds) == []
    with ledger.write() as connection:
        connection.execute(feeds.insert().values(model="default", name="news", cursor={}, error="no file"))
    path.touch()
    pull_feed(ledger, feed, 10)
    assert table(ledger, feeds)[0]["error"] == ""


def test_an_idle_feed_is_noted_now_and_then_only(ledger: Ledger, path: Path, clock: FakeClock) -> None:
    feed = jsonl_feed("news", path)
    path.touch()
    seen = []
    for _ in range(7):
        pull_feed(ledger, feed, 10)
        seen.append(table(ledger, feeds)[0]["pulled_at"][17:19])
        clock.advance(1)
    assert seen == ["00"] * 5 + ["05"] * 2


class SlowFeed:
    """A feed that hands out the same item to everybody who asks before the cursor moves."""

    name, trust = "news", 50

    def __init__(self) -> None:
        self.both_have_read = threading.Barrier(2)

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        number = cursor.get("number", 0)
        self.both_have_read.wait(10)
        return Pull([item(statement("France", f"Town {number}"), "1")], {"number": number + 1}, more=False)


def test_of_two_schedulers_at_once_one_moves_the_cursor(ledger: Ledger) -> None:
    feed = SlowFeed()
    reports: list[AdmissionReport] = []
    threads = [threading.Thread(target=lambda: reports.append(pull_feed(ledger, feed, 10))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(len(report.decisions) for report in reports) == [0, 1]
    (row,) = table(ledger, feeds)
    assert (row["cursor"], row["items"]) == ({"number": 1}, 1)
