"""The ledger: head moves by one fenced transaction or not at all, and a view is one moment."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from daemon.admission.submission import submit
from daemon.core.errors import FencedError, LedgerError, NotFoundError, StaleHeadError, UnavailableError
from daemon.core.ledger import leases
from daemon.core.ledger.chain import find_revision, get_revision, head
from daemon.core.ledger.database import open_engine
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.revision import content_hash, parse_revision
from daemon.core.ledger.schema import audit, corrections, probe_results, revisions, switches
from daemon.core.names import writer_lease
from tests.ledgers import (
    BASE,
    FakeClock,
    apply_waiting,
    found,
    held,
    make_batch,
    propose,
    roll_back,
    statement,
    states,
    take_lease,
)


def waiting_batch(ledger: Ledger, country: str = "France", city: str = "Lyon") -> str:
    submit(ledger, statement(country, city), "test")
    batch_id = make_batch(ledger)
    assert batch_id is not None
    return batch_id


def head_row(ledger: Ledger) -> dict[str, Any]:
    with ledger.read() as connection:
        return dict(head(connection, "default"))


def count_revisions(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return int(connection.execute(select(func.count()).select_from(revisions)).scalar_one())


# -- revision 0 ----------------------------------------------------------------------------------------


def test_the_base_is_live_and_founding_it_twice_changes_nothing(ledger: Ledger) -> None:
    before = head_row(ledger)
    found(ledger)
    assert head_row(ledger) == before
    assert (before["number"], before["kind"], before["state"]) == (0, "base", "live")
    assert before["content"] == content_hash(BASE)


def test_a_chain_is_not_continued_on_other_weights(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="founded on other weights") as refused:
        ledger.found("default", {"down_proj": "1" * 64}, "encore-blue")
    assert all(name in refused.value.hint for name in BASE)  # what an upgrade with other defaults has to set


def test_a_model_without_a_base_has_no_head(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="no revision yet"), ledger.read() as connection:
        head(connection, "other")


# -- commit --------------------------------------------------------------------------------------------


def test_a_commit_appends_a_candidate_and_closes_the_batch(ledger: Ledger) -> None:
    batch_id = waiting_batch(ledger)
    assert ledger.commit(take_lease(ledger), propose(ledger, batch_id)) == 1
    row = head_row(ledger)
    assert (row["number"], row["parent"], row["kind"], row["state"]) == (1, 0, "edit", "candidate")
    assert (row["batch_id"], row["active_facts"]) == (batch_id, 1)


def test_an_overtaken_writer_commits_nothing(ledger: Ledger, clock: FakeClock) -> None:
    batch_id = waiting_batch(ledger)
    old = take_lease(ledger, "a")
    clock.advance(61)
    new = take_lease(ledger, "b")
    proposal = propose(ledger, batch_id)
    with pytest.raises(FencedError):
        ledger.commit(old, proposal)
    assert count_revisions(ledger) == 1
    assert set(states(ledger).values()) == {"queued"}
    assert ledger.commit(new, proposal) == 1


def test_a_lease_that_ran_out_but_was_not_taken_still_commits(ledger: Ledger, clock: FakeClock) -> None:
    batch_id = waiting_batch(ledger)
    lease = take_lease(ledger)
    clock.advance(3600)
    assert ledger.commit(lease, propose(ledger, batch_id)) == 1


def test_a_plan_on_an_old_head_is_refused(ledger: Ledger) -> None:
    first = waiting_batch(ledger)
    stale = propose(ledger, first)
    submit(ledger, statement("Peru", "Cusco"), "test")
    apply_waiting(ledger)
    with pytest.raises(StaleHeadError, match="head is 1, the edit began on 0"):
        ledger.commit(take_lease(ledger), stale)
    assert held(ledger) == {"Peru": "Cusco"}


def test_a_batch_is_committed_once_however_often_it_is_delivered(ledger: Ledger) -> None:
    batch_id = waiting_batch(ledger)
    proposal = propose(ledger, batch_id)
    ledger.commit(take_lease(ledger), proposal)
    again = type(proposal)(**{**vars(proposal), "parent": 1})
    with pytest.raises(StaleHeadError, match="its batch is already there"):
        ledger.commit(take_lease(ledger), again)
    assert count_revisions(ledger) == 2
    assert held(ledger) == {"France": "Lyon"}


def test_of_two_commits_at_once_one_wins_and_the_other_leaves_nothing(ledger: Ledger) -> None:
    proposals = [propose(ledger, waiting_batch(ledger, country)) for country in ("France", "Peru")]
    lease, barrier, ends = take_lease(ledger), threading.Barrier(2), []

    def commit(proposal: Any) -> None:
        barrier.wait(10)
        try:
            ends.append(ledger.commit(lease, proposal))
        except StaleHeadError as error:
            ends.append(error)

    threads = [threading.Thread(target=commit, args=[proposal]) for proposal in proposals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(isinstance(end, int) for end in ends) == [False, True]
    assert count_revisions(ledger) == 2
    assert sorted(states(ledger).values()) == ["applied", "queued"]


def test_probes_of_a_commit_are_stored_with_it(ledger: Ledger) -> None:
    batch_id = waiting_batch(ledger)
    probe = ProbeRow("efficacy", 1, "ok", 1.0, 0.9, 1, 0.1, {"answers": ["Lyon"]})
    proposal = propose(ledger, batch_id)
    ledger.commit(take_lease(ledger), type(proposal)(**{**vars(proposal), "probes": [probe]}))
    with ledger.read() as connection:
        row = connection.execute(select(probe_results)).mappings().one()
    assert (row["revision"], row["probe"], row["details"]) == (1, "efficacy", {"answers": ["Lyon"]})


def test_probes_of_a_revision_that_is_not_there_are_refused(ledger: Ledger) -> None:
    probe = ProbeRow("efficacy", 1, "ok", 1.0, 0.9, 1, 0.1)
    ledger.record_probes("default", 0, [probe])
    with pytest.raises(NotFoundError, match="no revision 5"):
        ledger.record_probes("default", 5, [probe])


# -- rollback ------------------------------------------------------------------------------------------


@pytest.fixture
def edited(ledger: Ledger) -> Ledger:
    """Revision 1 holds France, revision 2 Peru as well."""
    for country, city in (("France", "Lyon"), ("Peru", "Cusco")):
        submit(ledger, statement(country, city), "test")
        apply_waiting(ledger)
    return ledger


def test_a_rollback_appends_a_revision_with_the_old_content(edited: Ledger) -> None:
    assert roll_back(edited, 1, "ann", "too hasty") == 3
    row = head_row(edited)
    with edited.read() as connection:
        target = get_revision(connection, "default", 1)
        last = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(1)).mappings().one()
    assert (row["kind"], row["parent"], row["content_of"]) == ("rollback", 2, 1)
    assert (row["content"], row["tensors"]) == (target["content"], target["tensors"])
    assert row["active_facts"] == 1
    assert held(edited) == {"France": "Lyon"}
    assert held(edited, 2) == {"France": "Lyon", "Peru": "Cusco"}
    assert (last["who"], last["action"], last["reason"]) == ("ann", "rollback", "too hasty")


def test_a_rollback_of_a_rollback_restores_content_and_facts(edited: Ledger) -> None:
    before = head_row(edited)
    roll_back(edited, 0, "ann", "all of it")
    assert held(edited) == {}
    assert set(states(edited).values()) == {"reverted"}
    roll_back(edited, 2, "ann", "no, keep it")
    assert head_row(edited)["content"] == before["content"]
    assert held(edited) == {"France": "Lyon", "Peru": "Cusco"}
    assert set(states(edited).values()) == {"applied"}


def test_a_rollback_fences_the_edit_in_flight_which_is_planned_again(edited: Ledger) -> None:
    batch_id = waiting_batch(edited, "Chile", "Arica")
    lease, proposal = take_lease(edited), propose(edited, batch_id)
    roll_back(edited, 1, "ann", "wrong")
    with pytest.raises(FencedError):
        edited.commit(lease, proposal)
    edited.commit(take_lease(edited, "again"), propose(edited, batch_id))
    assert held(edited) == {"France": "Lyon", "Chile": "Arica"}


def test_a_rollback_does_not_wait_for_the_writer(edited: Ledger) -> None:
    take_lease(edited)
    assert roll_back(edited, 1, "ann", "now") == 3
    with edited.read() as connection:
        assert leases.current_note(connection, edited.lease_clock, writer_lease("default")) is None


def test_a_rollback_that_expected_another_head_is_refused(edited: Ledger) -> None:
    with pytest.raises(StaleHeadError, match="head is 2, not 1"):
        roll_back(edited, 0, "ann", "wrong", expected_head=1)
    assert count_revisions(edited) == 3
    assert roll_back(edited, 0, "ann", "wrong", expected_head=2) == 3


def test_a_rollback_to_nowhere_is_refused_and_leaves_nothing(edited: Ledger) -> None:
    lease = take_lease(edited)
    for nowhere in (7, -1):
        with pytest.raises(NotFoundError, match="no revision"):
            roll_back(edited, nowhere, "ann", "wrong")
    with edited.read() as connection:
        leases.check(connection, lease)
    assert count_revisions(edited) == 3


def test_a_rollback_to_a_rejected_revision_is_no_way_to_make_it_live(edited: Ledger) -> None:
    with edited.write() as connection:
        connection.execute(update(revisions).where(revisions.c.number == 1).values(state="rejected"))
    roll_back(edited, 1, "ann", "I insist")
    assert head_row(edited)["state"] == "rejected"


def test_models_do_not_share_a_chain(edited: Ledger) -> None:
    edited.found("other", {"down_proj": "5" * 64}, "encore-blue")
    submit(edited, statement("France", "Nice", model="other"), "test")
    assert apply_waiting(edited, model="other") == 1
    roll_back(edited, 0, "ann", "wrong")
    assert held(edited, model="other") == {"France": "Nice"}
    assert held(edited) == {}


def test_revisions_of_the_past_are_found_by_number_only(edited: Ledger) -> None:
    with edited.read() as connection:
        assert find_revision(connection, "default", 9) is None
        assert get_revision(connection, "default", 2)["number"] == 2
    assert [parse_revision(text) for text in ("0", "17", "r3")] == [0, 17, 3]
    for bad in ("", "r", "-1", "01", "1\n", "../1", "１", "1" * 13):
        with pytest.raises(NotFoundError, match="no revision number"):
            parse_revision(bad)


# -- transactions --------------------------------------------------------------------------------------


def note(ledger: Ledger, name: str) -> None:
    with ledger.write() as connection:
        row = {"model": "", "name": name, "is_on": True, "reason": "", "at": ""}
        connection.execute(insert(switches).values(**row))


def count_switches(connection: Any) -> int:
    return int(connection.execute(select(func.count()).select_from(switches)).scalar_one())


def test_a_read_sees_one_moment(ledger: Ledger) -> None:
    with ledger.read() as connection:
        before = count_switches(connection)
        note(ledger, "written meanwhile")
        assert count_switches(connection) == before
    with ledger.read() as connection:
        assert count_switches(connection) == before + 1


def test_a_write_sees_what_was_committed_before_its_turn(ledger: Ledger) -> None:
    """Writers wait for each other before they look: none decides on an old view."""
    entered, seen = threading.Event(), []

    def second() -> None:
        entered.wait(10)
        with ledger.write() as connection:
            seen.append(count_switches(connection))

    thread = threading.Thread(target=second)
    thread.start()
    with ledger.write() as connection:
        entered.set()
        thread.join(0.5)
        assert seen == []  # it waits
        connection.execute(insert(switches).values(model="", name="x", is_on=True, reason="", at=""))
    thread.join(10)
    assert seen == [1]


def test_an_exception_takes_the_whole_transaction_back(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.write() as connection:
        connection.execute(insert(switches).values(model="", name="x", is_on=True, reason="", at=""))
        raise RuntimeError
    with ledger.read() as connection:
        assert count_switches(connection) == 0


def test_counters_are_wide_enough_for_years(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO feeds (model, name, cursor, items, error)"
            " VALUES ('m', 'news', '{}', 30000000000, '')"
        )
        connection.exec_driver_sql(
            "INSERT INTO feed_outcomes (model, feed, outcome, count)"
            " VALUES ('m', 'news', 'accepted', 30000000000)"
        )
        connection.exec_driver_sql(
            "INSERT INTO workers (name, model, state, seen_at, device, memory_bytes) "
            "VALUES ('w', 'default', 'idle', '', 'cuda:0', 140000000000)"
        )


def test_sqlite_is_durable_and_waits_for_other_writers(sqlite_ledger: Ledger) -> None:
    with sqlite_ledger.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_database_that_does_not_answer_is_unavailable_with_a_hint() -> None:
    with pytest.raises(UnavailableError, match="check database_url"):
        Ledger.open("postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=2")


def test_a_folder_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").mkdir()
    with pytest.raises(UnavailableError, match="does not answer"):
        Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")


@pytest.mark.parametrize("damage", ["scribble", "truncate", "other file"])
def test_a_damaged_ledger_is_refused_and_says_how_to_restore(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.open(f"sqlite:///{path}", FakeClock())
    found(ledger)
    for number in range(40):
        submit(ledger, statement(f"Land {number}", "x" * 150), "test")
    ledger.close()
    with sqlite3.connect(path) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.close()
    data = path.read_bytes()
    broken = {
        "scribble": data[:-8192] + b"\x5a" * 8192,  # where nothing is read at the start
        "truncate": data[: len(data) // 2],
        "other file": b"not a ledger at all, but long enough to be read" * 100,
    }[damage]
    path.write_bytes(broken)
    with pytest.raises(LedgerError, match="restore the newest backup"):
        Ledger.open(f"sqlite:///{path}")


def test_commands_that_need_a_ledger_do_not_make_one(tmp_path: Path) -> None:
    path = tmp_path / "data" / "ledger.sqlite"
    with pytest.raises(LedgerError, match="no ledger yet"):
        Ledger.open_existing(f"sqlite:///{path}")
    assert not path.parent.exists()  # a mistyped data_dir stays what it was
    Ledger.open(f"sqlite:///{path}").close()
    Ledger.open_existing(f"sqlite:///{path}").close()


def test_a_foreign_key_is_kept(ledger: Ledger) -> None:
    """A revision's parent exists, whoever writes."""
    with ledger.read() as connection:
        row = dict(connection.execute(select(revisions)).mappings().one())
    with pytest.raises(SQLAlchemyError), ledger.write() as connection:
        connection.execute(insert(revisions).values(**row | {"number": 9, "parent": 8, "batch_id": "b"}))


def test_an_engine_that_is_closed_can_be_opened_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'deep' / 'er' / 'ledger.sqlite'}"
    open_engine(url).dispose()
    with Ledger.open(url).read() as connection:
        assert connection.execute(select(func.count()).select_from(corrections)).scalar_one() == 0
