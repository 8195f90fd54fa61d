"""Settlement: what a revision means for each correction, and that tenures and states never disagree."""

from typing import Any

from sqlalchemy import insert, select

from daemon.admission.submission import submit
from daemon.core.ledger import batches
from daemon.core.ledger.attempts import begin_attempt, count_failures, end_attempt
from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.corrections import set_state
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import Refusal
from daemon.core.ledger.schema import attempts, corrections, quarantine, tenures
from daemon.core.ledger.settlement import quarantine_refused
from daemon.core.names import AdmissionOutcome, AttemptOutcome, CorrectionState
from tests.ledgers import (
    FakeClock,
    apply_waiting,
    held,
    make_batch,
    propose,
    roll_back,
    statement,
    states,
    take_lease,
)


def say(ledger: Ledger, country: str, city: str | None, day: float) -> str:
    """Submit one statement and return its id."""
    decision = submit(ledger, statement(country, city, day), "test")
    assert decision.correction_id is not None
    return decision.correction_id


def spans(ledger: Ledger, correction_id: str) -> list[tuple[int, int | None]]:
    """The tenures of a correction as (since, until)."""
    with ledger.read() as connection:
        mine = tenures.c.correction_id == correction_id
        rows = connection.execute(select(tenures.c.since, tenures.c.until).where(mine).order_by(tenures.c.id))
        return [(row.since, row.until) for row in rows]


def entries(ledger: Ledger) -> list[dict[str, Any]]:
    with ledger.read() as connection:
        return [dict(row) for row in connection.execute(select(quarantine)).mappings()]


def test_an_applied_correction_holds_its_fact_from_its_revision_on(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    assert spans(ledger, lyon) == [(1, None)]
    with ledger.read() as connection:
        assert active_tenures(connection, "default", 0) == []
        (row,) = active_tenures(connection, "default", 1)
    assert row["row"] == 0
    assert row["blob"]


def test_a_revision_of_a_fact_ends_the_old_tenure_where_the_new_one_begins(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    nice = say(ledger, "France", "Nice", 2)
    apply_waiting(ledger)
    assert (spans(ledger, lyon), spans(ledger, nice)) == ([(1, 2)], [(2, None)])
    assert states(ledger) == {lyon: "superseded", nice: "applied"}
    assert (held(ledger, 1), held(ledger, 2)) == ({"France": "Lyon"}, {"France": "Nice"})


def test_a_retraction_holds_the_fact_absent(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    gone = say(ledger, "France", None, 2)
    apply_waiting(ledger)
    assert states(ledger) == {lyon: "retracted", gone: "applied"}
    with ledger.read() as connection:
        (row,) = active_tenures(connection, "default", 2)
    assert (row["correction_id"], row["blob"], row["row"]) == (gone, None, None)
    nice = say(ledger, "France", "Nice", 3)
    apply_waiting(ledger)
    assert states(ledger) == {lyon: "retracted", gone: "superseded", nice: "applied"}


def test_a_rollback_reverts_what_it_takes_back_and_restores_what_stood_before(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    nice, cusco = say(ledger, "France", "Nice", 2), say(ledger, "Peru", "Cusco", 1)
    apply_waiting(ledger)
    roll_back(ledger, 1, "op", "wrong")
    assert states(ledger) == {lyon: "applied", nice: "reverted", cusco: "reverted"}
    assert (spans(ledger, lyon), spans(ledger, nice)) == ([(1, 2), (3, None)], [(2, 3)])
    with ledger.read() as connection:
        before, after = (active_tenures(connection, "default", number) for number in (1, 3))
        assert [(r["blob"], r["row"]) for r in before] == [(r["blob"], r["row"]) for r in after]


def test_a_rollback_of_a_rollback_supersedes_what_the_first_had_restored(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    nice = say(ledger, "France", "Nice", 2)
    apply_waiting(ledger)
    roll_back(ledger, 1, "op", "wrong")
    roll_back(ledger, 2, "op", "right after all")
    assert states(ledger) == {lyon: "superseded", nice: "applied"}
    assert held(ledger) == {"France": "Nice"}


def test_a_rollback_over_a_retraction_puts_the_fact_back_and_out_again(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    gone = say(ledger, "France", None, 2)
    apply_waiting(ledger)
    roll_back(ledger, 1, "op", "still true")
    assert (states(ledger), held(ledger)) == ({lyon: "applied", gone: "reverted"}, {"France": "Lyon"})
    roll_back(ledger, 2, "op", "no longer")
    assert (states(ledger), held(ledger)) == ({lyon: "retracted", gone: "applied"}, {})


def test_what_waits_is_not_touched_by_a_rollback(ledger: Ledger) -> None:
    say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    waiting, queued = say(ledger, "Peru", "Cusco", 1), None
    queued = make_batch(ledger)
    later = say(ledger, "Chile", "Arica", 1)
    roll_back(ledger, 0, "op", "wrong")
    assert queued is not None
    assert (states(ledger)[waiting], states(ledger)[later]) == ("queued", "pending")


def test_what_waits_does_not_undo_a_newer_value_that_a_rollback_brought_back(ledger: Ledger) -> None:
    say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    nice = say(ledger, "France", "Nice", 5)
    apply_waiting(ledger)
    roll_back(ledger, 1, "op", "wrong")
    between, other = say(ledger, "France", "Metz", 3), say(ledger, "Peru", "Cusco", 3)
    roll_back(ledger, 2, "op", "right after all")
    assert states(ledger)[between] == "superseded"
    assert states(ledger)[other] == "pending"
    apply_waiting(ledger)
    assert states(ledger)[nice] == "applied"
    assert held(ledger) == {"France": "Nice", "Peru": "Cusco"}


def test_what_waits_and_is_newer_than_what_a_rollback_brought_back_still_goes_in(ledger: Ledger) -> None:
    say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    roll_back(ledger, 0, "op", "wrong")
    metz = say(ledger, "France", "Metz", 3)
    roll_back(ledger, 1, "op", "right after all")
    assert states(ledger)[metz] == "pending"
    apply_waiting(ledger)
    assert held(ledger) == {"France": "Metz"}


def test_a_rollback_to_head_changes_no_state(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    assert roll_back(ledger, 1, "op", "again") == 2
    assert (states(ledger), spans(ledger, lyon)) == ({lyon: "applied"}, [(1, None)])


def test_refused_corrections_are_quarantined_and_the_others_applied(ledger: Ledger) -> None:
    lyon, cusco = say(ledger, "France", "Lyon", 1), say(ledger, "Peru", "Cusco", 1)
    apply_waiting(ledger, refuse=[lyon])
    assert states(ledger) == {lyon: "quarantined", cusco: "applied"}
    (entry,) = entries(ledger)
    assert (entry["correction_id"], entry["reason"], entry["message"]) == (lyon, "norm", "too far")
    assert (entry["feed"], entry["state"]) == ("operator", "held")


def test_a_refused_revision_of_a_fact_leaves_the_old_value(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    apply_waiting(ledger)
    nice = say(ledger, "France", "Nice", 2)
    apply_waiting(ledger, refuse=[nice])
    assert states(ledger) == {lyon: "applied", nice: "quarantined"}
    assert held(ledger) == {"France": "Lyon"}


def test_many_states_are_set_in_one_go(ledger: Ledger) -> None:
    ids = [say(ledger, f"Land {number}", "x", 1) for number in range(12)]
    with ledger.write() as connection:
        set_state(connection, (one for one in ids * 100), CorrectionState.SUPERSEDED, "why")
    with ledger.read() as connection:
        rows = connection.execute(select(corrections.c.state, corrections.c.reason)).all()
    assert {tuple(row) for row in rows} == {("superseded", "why")}


# -- batches -------------------------------------------------------------------------------------------


def test_a_batch_counts_its_starts_before_the_work_and_blames_those_without_end(ledger: Ledger) -> None:
    say(ledger, "France", "Lyon", 1)
    batch_id = make_batch(ledger)
    assert batch_id is not None
    with ledger.write() as connection:
        now = ledger.clock.now()
        assert [begin_attempt(connection, now, batch_id, "w") for _ in range(4)] == [1, 2, 3, 4]
        end_attempt(connection, now, batch_id, 1, AttemptOutcome.ENDED)
        end_attempt(connection, now, batch_id, 2, AttemptOutcome.LATER, "the disk is full")
        end_attempt(connection, now, batch_id, 3, AttemptOutcome.FAILED, "NaN")
        assert count_failures(connection, batch_id) == 2


def test_a_batch_that_keeps_failing_is_halved_until_the_guilty_one_stands_alone(ledger: Ledger) -> None:
    ids = [say(ledger, f"Land {number}", "x", 1) for number in range(5)]
    todo, refused = [make_batch(ledger)], 0
    while todo:
        batch_id = todo.pop()
        assert batch_id is not None
        with ledger.write() as connection:
            mine = [row["id"] for row in batches.waiting(connection, batch_id)]
            if ids[3] in mine:  # it kills the worker
                halves = batches.split_or_refuse(connection, ledger.clock.now(), batch_id, "killed it")
                refused += not halves
                todo += halves
                continue
        ledger.commit(take_lease(ledger), propose(ledger, batch_id))
    assert refused == 1
    assert states(ledger) == {one: "quarantined" if one == ids[3] else "applied" for one in ids}
    assert [entry["reason"] for entry in entries(ledger)] == ["crashed_worker"]


def test_a_batch_of_which_everything_was_superseded_is_split_into_nothing(ledger: Ledger) -> None:
    say(ledger, "France", "Lyon", 1)
    batch_id = make_batch(ledger)
    say(ledger, "France", "Nice", 2)
    assert batch_id is not None
    with ledger.write() as connection:
        assert batches.split_or_refuse(connection, ledger.clock.now(), batch_id, "killed it") == []
    assert sorted(states(ledger).values()) == ["pending", "superseded"]


def test_a_batch_remembers_when_and_how_often_it_was_sent(ledger: Ledger, clock: FakeClock) -> None:
    say(ledger, "France", "Lyon", 1)
    batch_id = make_batch(ledger)
    assert batch_id is not None
    for _ in range(2):
        clock.advance(1)
        with ledger.write() as connection:
            batches.mark_sent(connection, clock.now(), [batch_id])
    with ledger.read() as connection:
        row = batches.get(connection, batch_id)
        assert batches.get(connection, "b0") is None
    assert row is not None
    assert (row["state"], row["sends"], row["sent_at"]) == ("sent", 2, "2026-06-01T00:00:02.000000Z")


# -- what a late worker may still do -------------------------------------------------------------------


def test_a_late_refusal_does_not_bring_a_superseded_correction_back(ledger: Ledger) -> None:
    lyon = say(ledger, "France", "Lyon", 1)
    batch_id = make_batch(ledger)
    assert batch_id is not None
    nice = say(ledger, "France", "Nice", 2)
    with ledger.write() as connection:
        quarantine_refused(connection, ledger.clock.now(), [Refusal(lyon, "norm", "too far")])
    assert states(ledger)[nice] == "pending"
    assert submit(ledger, statement("France", "Lyon", 1.5), "test").outcome is AdmissionOutcome.STALE


def test_an_attempt_of_a_batch_that_is_not_there_is_kept_all_the_same(ledger: Ledger) -> None:
    """A message of an older ledger must not stop the worker."""
    with ledger.write() as connection:
        assert begin_attempt(connection, ledger.clock.now(), "b-unknown", "w") == 1
        assert batches.waiting(connection, "b-unknown") == []
        connection.execute(
            insert(attempts).values(
                batch_id="b-unknown", number=2, worker="w", started_at="", outcome="ended"
            )
        )
        assert begin_attempt(connection, ledger.clock.now(), "b-unknown", "w") == 3
