"""Which statements the policy admits in any order of arrival, and how feeds and edits are limited."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from daemon.admission.admit import admit
from daemon.admission.auto_pause import pause_if_poisoned
from daemon.admission.policy import OPEN, Policy
from daemon.admission.quarantine import drop, release
from daemon.core.config.feeds import AdmissionConfig
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, incidents, quarantine, switches
from daemon.core.ledger.switches import resume
from daemon.core.token_bucket import TokenBucket
from daemon.scheduling.dispatch import edits_left, make_batches
from tests.ledgers import FakeClock, items, statement


def policy(**rules: Any) -> Policy:
    return Policy.of(AdmissionConfig(**rules))


def say(ledger: Ledger, rules: Policy, *said: object, feed: str = "a", trust: int = 50) -> list[str]:
    with ledger.write() as connection:
        report = admit(connection, ledger.clock.now(), feed, trust, items(*said), policy=rules)
    return [str(one.reason or one.outcome) for one in report.decisions]


def waiting(ledger: Ledger) -> set[tuple[str, str | None]]:
    with ledger.read() as connection:
        query = select(corrections.c.subject, corrections.c.object).where(corrections.c.state == "pending")
        return {(row.subject, row.object) for row in connection.execute(query)}


def entries(ledger: Ledger, state: str = "held") -> list[int]:
    with ledger.read() as connection:
        query = select(quarantine.c.id).where(quarantine.c.state == state).order_by(quarantine.c.id)
        return list(connection.execute(query).scalars())


@pytest.mark.parametrize(
    ("rules", "trust", "expected"),
    [
        ({"deny_subjects": ["FRANCE"]}, 50, "denied"),
        ({"deny_relations": ["P36"]}, 50, "denied"),
        ({"deny_relations": ["Capital"]}, 50, "denied"),
        ({"allow_relations": ["mayor"]}, 50, "denied"),
        ({"allow_relations": ["P36"]}, 50, "accepted"),
        ({"protected_subjects": [" france "]}, 100, "protected"),
        ({"approve_below_trust": 60}, 50, "low_trust"),
        ({"approve_below_trust": 50}, 50, "accepted"),
        ({"high_impact": ["P36"]}, 100, "quorum"),
        ({}, 0, "accepted"),
    ],
)
def test_each_rule_quarantines_what_it_is_about(
    sqlite_ledger: Ledger, rules: dict[str, Any], trust: int, expected: str
) -> None:
    assert say(sqlite_ledger, policy(**rules), statement("France", "Lyon", 1), trust=trust) == [expected]
    is_quarantined = expected != "accepted"
    assert waiting(sqlite_ledger) == (set() if is_quarantined else {("France", "Lyon")})
    if is_quarantined:
        release(sqlite_ledger, entries(sqlite_ledger)[0], "ann", "checked")
        assert waiting(sqlite_ledger) == {("France", "Lyon")}


def test_what_is_quarantined_does_not_hold_up_the_rest(sqlite_ledger: Ledger) -> None:
    rules = policy(approve_below_trust=40)
    assert say(sqlite_ledger, rules, statement("France", "Lies", 9), trust=10) == ["low_trust"]
    assert say(sqlite_ledger, rules, statement("France", "Lyon", 1), trust=90) == ["accepted"]
    release(sqlite_ledger, entries(sqlite_ledger)[0], "ann", "true after all")
    assert waiting(sqlite_ledger) == {("France", "Lies")}  # it is the newer one


def test_a_quorum_needs_different_sources_by_different_feeds(ledger: Ledger) -> None:
    rules = policy(high_impact=["capital"], quorum=2)
    assert say(ledger, rules, statement("France", "Lyon", 1, source="x")) == ["quorum"]
    assert say(ledger, rules, statement("France", "Lyon", 1, source="y")) == ["quorum"]  # one feed, two names
    assert say(ledger, rules, statement("France", "Lyon", 2, source="x"), feed="b") == ["confirmed"]
    assert waiting(ledger) == {("France", "Lyon")}
    assert entries(ledger) == []
    assert say(ledger, rules, statement("France", "LYON", 3, source="z"), feed="c") == ["confirmed"]
    assert say(ledger, rules, statement("France", "Lies", 9, source="x")) == ["quorum"]
    assert waiting(ledger) == {("France", "Lyon")}


def test_the_same_statement_by_two_feeds_is_one_voice(sqlite_ledger: Ledger) -> None:
    rules, said = policy(high_impact=["capital"]), statement("France", "Lyon", 1)
    say(sqlite_ledger, rules, said)
    assert say(sqlite_ledger, rules, said, feed="b") == ["duplicate"]
    assert waiting(sqlite_ledger) == set()


def test_sources_that_contradict_each_other_are_left_to_a_human(ledger: Ledger) -> None:
    rules = policy(contradiction_seconds=86_400)
    assert say(ledger, rules, statement("France", "Lyon", 1, source="x")) == ["accepted"]
    assert say(ledger, rules, statement("France", "Nice", 1.5, source="y")) == ["contradiction"]
    assert waiting(ledger) == set()
    assert say(ledger, rules, statement("France", "Nice", 1.6, source="z"), trust=10) == ["contradiction"]
    assert say(ledger, rules, statement("France", "Metz", 5, source="y")) == ["accepted"]
    drop(ledger, entries(ledger)[0], "ann", "no")
    assert waiting(ledger) == {("France", "Metz")}


def test_a_source_may_change_its_mind_and_the_less_trusted_contradicts_nobody(sqlite_ledger: Ledger) -> None:
    rules = policy(contradiction_seconds=86_400)
    assert say(sqlite_ledger, rules, statement("France", "Lyon", 1, source="x"), trust=10) == ["accepted"]
    assert say(sqlite_ledger, rules, statement("France", "Nice", 1.5, source="y"), trust=90) == ["accepted"]
    assert say(sqlite_ledger, rules, statement("France", "Metz", 1.6, source="y"), trust=90) == ["accepted"]


_SAID = st.builds(
    lambda city, day, source, feed: (statement("France", city, day, source=source), feed),
    st.sampled_from(["Lyon", "Nice", None]),
    st.sampled_from([1, 2, 3, 20]),
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from(["a", "b"]),
)
RULES = [
    {"high_impact": ["capital"]},
    {"contradiction_seconds": 86_400.0},
    {"high_impact": ["capital"], "contradiction_seconds": 2 * 86_400.0},
    {"approve_below_trust": 60},
]


@settings(
    database=None, deadline=None, max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(said=st.lists(_SAID, min_size=1, max_size=8), rules=st.sampled_from(RULES), data=st.data())
def test_any_order_of_arrival_ends_alike_under_any_rules(
    sqlite_ledger: Ledger, said: list[tuple[dict[str, Any], str]], rules: dict[str, Any], data: st.DataObject
) -> None:
    """Each statement comes by one feed here, since the first of two feeds that state the same counts."""
    distinct = list({str(one): (one, feed) for one, feed in said}.values())
    ends = []
    for order in (distinct, data.draw(st.permutations(distinct))):
        with sqlite_ledger.write() as connection:
            for table in (corrections, quarantine):
                connection.execute(delete(table))
        _say_in_chunks(sqlite_ledger, policy(**rules), order, data.draw(st.booleans()))
        # nothing is written yet, so a retraction that waits takes nothing out
        ends.append({(subject, value) for subject, value in waiting(sqlite_ledger) if value is not None})
    assert ends[0] == ends[1]


def _say_in_chunks(
    ledger: Ledger, rules: Policy, said: Sequence[tuple[dict[str, Any], str]], together: bool
) -> None:
    trust = {"a": 50, "b": 70}
    if together:
        for feed in dict.fromkeys(feed for _, feed in said):
            mine = [one for one, by in said if by == feed]
            say(ledger, rules, *mine, feed=feed, trust=trust[feed])
        return
    for one, feed in said:
        say(ledger, rules, one, feed=feed, trust=trust[feed])


# -- how much --------------------------------------------------------------------------------------------


def test_a_bucket_lets_a_burst_through_and_then_its_rate(clock: FakeClock) -> None:
    bucket = TokenBucket(clock, 10, 50)
    assert bucket.available(1_000) == 50
    bucket.take(50)
    assert bucket.available(1_000) == 0
    clock.advance(2)
    assert bucket.available(1_000) == 20
    clock.advance(3_600)
    assert bucket.available(1_000) == 50
    assert TokenBucket(clock, 0, 1).available(1_000) == 1_000


def test_an_hours_budget_is_kept_and_what_waits_for_the_next_is_the_newest(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    config = Config.model_validate({"edit": {"edits_per_hour": 6, "batch_size": 4, "batches_ahead": 100}})
    for day in range(1, 4):
        say(sqlite_ledger, OPEN, *[statement(f"Land {n}", f"Town {day}", day) for n in range(10)])
        clock.advance(10)
        make_batches(sqlite_ledger, config)
    with sqlite_ledger.read() as connection:
        assert edits_left(connection, clock.now(), "default", 6) == 0
        made = connection.execute(select(corrections.c.id).where(corrections.c.batch_id.is_not(None))).all()
    assert len(made) == 6
    assert waiting(sqlite_ledger) == {(f"Land {n}", "Town 3") for n in range(10)}
    clock.advance(3_600)
    make_batches(sqlite_ledger, config)
    assert len(waiting(sqlite_ledger)) == 4


def test_a_feed_that_fills_the_quarantine_pauses_itself_once(sqlite_ledger: Ledger, clock: FakeClock) -> None:
    garbage = ["x"] * 5
    say(sqlite_ledger, OPEN, *garbage)
    assert not pause_if_poisoned(sqlite_ledger, "default", "a", 6)
    assert not pause_if_poisoned(sqlite_ledger, "default", "a", 0)
    assert pause_if_poisoned(sqlite_ledger, "default", "a", 5)
    assert not pause_if_poisoned(sqlite_ledger, "default", "a", 5)
    with sqlite_ledger.read() as connection:
        assert connection.execute(select(switches.c.is_on)).scalar_one()
        assert connection.execute(select(incidents.c.probe, incidents.c.state)).all() == [("feed:a", "open")]
    clock.advance(1)
    resume(sqlite_ledger, model="default", feed="a", who="ann", reason="looked")
    assert not pause_if_poisoned(sqlite_ledger, "default", "a", 5)
    say(sqlite_ledger, OPEN, *garbage)
    clock.advance(3_601)
    assert not pause_if_poisoned(sqlite_ledger, "default", "a", 5)  # long ago
