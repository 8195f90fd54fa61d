"""The one road back: what a rollback of any cause leaves behind is rejected, its incidents settled."""

from pathlib import Path

import pytest
from sqlalchemy import RowMapping, select

from daemon.core.ledger.chain import get_revision, head, live, set_revision_state
from daemon.core.ledger.incidents import find_incident, open_incident
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents
from daemon.core.names import (
    DEFAULT_MODEL,
    IncidentState,
    ProbeResult,
    RevisionState,
    RollbackCause,
    Subject,
)
from daemon.watch.rollback import last_good_revision, taken_back_warning
from tests.installation import write_quietly
from tests.ledgers import roll_back, statement

EVERY_CAUSE = pytest.mark.parametrize("cause", list(RollbackCause))
LIVE, REJECTED = RevisionState.LIVE, RevisionState.REJECTED


@pytest.fixture
def chain(ledger: Ledger) -> Ledger:
    """Revisions 1 to 3, all live."""
    for number, country in enumerate(("Peru", "Chad", "Mali"), start=1):
        write_quietly(ledger, statement(country, "X"))
        put(ledger, number, LIVE)
    return ledger


def put(ledger: Ledger, number: int, state: RevisionState) -> None:
    with ledger.write() as connection:
        set_revision_state(connection, DEFAULT_MODEL, number, state)


def head_row(ledger: Ledger) -> RowMapping:
    with ledger.read() as connection:
        return head(connection, DEFAULT_MODEL)


def row_of(ledger: Ledger, number: int) -> RowMapping:
    with ledger.read() as connection:
        return get_revision(connection, DEFAULT_MODEL, number)


def states_of(ledger: Ledger) -> list[str]:
    return [row_of(ledger, number)["state"] for number in range(int(head_row(ledger)["number"]) + 1)]


def last_good(ledger: Ledger) -> int:
    current = head_row(ledger)
    with ledger.read() as connection:
        return last_good_revision(connection, current, Path("there is no store"))


def accuse(ledger: Ledger, number: int, result: ProbeResult = ProbeResult.DEGRADED) -> None:
    with ledger.write() as connection:
        now = ledger.clock.now()
        open_incident(
            connection, now, DEFAULT_MODEL, number, "quiz", "it lost", subject=Subject.REVISION, result=result
        )


def outcomes(ledger: Ledger) -> dict[int, tuple[str, int | None]]:
    with ledger.read() as connection:
        rows = connection.execute(select(incidents).order_by(incidents.c.revision)).mappings().all()
    return {row["revision"]: (row["state"], row["rollback_revision"]) for row in rows}


@EVERY_CAUSE
def test_what_anybody_took_back_is_rejected_and_never_the_last_good_one(
    chain: Ledger, cause: RollbackCause
) -> None:
    assert roll_back(chain, 1, "ann", "a doubt", cause=cause) == 4
    assert states_of(chain) == ["live", "live", "rejected", "rejected", "live"]
    assert [row_of(chain, number)["taken_back_by"] for number in range(5)] == [None, None, 4, 4, None]
    assert (head_row(chain)["cause"], head_row(chain)["who"]) == (cause, "ann")
    write_quietly(chain, statement("Oman", "X"))
    assert last_good(chain) == 4
    roll_back(chain, 4, cause=cause)
    assert last_good(chain) == 0, "1 holds what head holds, 2 and 3 were taken back"


@EVERY_CAUSE
def test_the_incidents_of_what_is_left_behind_are_settled_by_whoever_goes_back(
    chain: Ledger, cause: RollbackCause
) -> None:
    for number in (1, 2):
        accuse(chain, number)
    accuse(chain, 3, ProbeResult.UNKNOWN)
    roll_back(chain, 1, cause=cause)
    answered = cause in (RollbackCause.JUDGE, RollbackCause.ALERT)
    settled = (IncidentState.ROLLED_BACK if answered else IncidentState.CLOSED, 4)
    assert outcomes(chain) == {1: ("open", None), 2: settled, 3: ("closed", 4)}


def test_what_accuses_a_revision_that_was_taken_back_is_settled_already(chain: Ledger) -> None:
    roll_back(chain, 1)
    accuse(chain, 3)
    assert outcomes(chain) == {3: ("closed", 4)}


def test_an_incident_that_opens_again_was_not_answered(chain: Ledger) -> None:
    accuse(chain, 3)
    roll_back(chain, 2, cause=RollbackCause.JUDGE)
    roll_back(chain, 3)
    accuse(chain, 3)
    with chain.read() as connection:
        row = find_incident(connection, DEFAULT_MODEL, 3, "quiz")
    assert row is not None
    assert (row["state"], row["rollback_revision"], row["closed_at"]) == ("open", None, None)


def test_by_name_what_was_taken_back_comes_again_as_good_as_it_was(chain: Ledger) -> None:
    put(chain, 2, RevisionState.CANDIDATE)
    roll_back(chain, 1)
    with chain.read() as connection:
        current = live(connection, DEFAULT_MODEL)
    assert current is not None
    assert current["number"] == 4, "nothing that was taken back is served"
    roll_back(chain, 3)
    assert states_of(chain) == ["live", "live", "candidate", "live", "rejected", "live"]
    assert [row_of(chain, number)["taken_back_by"] for number in range(6)] == [None] * 4 + [5, None]
    roll_back(chain, 4)
    assert states_of(chain) == ["live", "live", "rejected", "rejected", "live", "rejected", "live"]


def test_what_the_judge_rejected_stays_rejected_when_it_comes_again(chain: Ledger) -> None:
    put(chain, 3, REJECTED)
    roll_back(chain, 2)
    roll_back(chain, 3)
    assert states_of(chain) == ["live", "live", "live", "rejected", "rejected", "rejected"]
    assert last_good(chain) == 2


def test_a_verdict_on_what_was_taken_back_makes_nothing_live(chain: Ledger) -> None:
    put(chain, 3, RevisionState.CANDIDATE)
    roll_back(chain, 2)
    put(chain, 3, LIVE)
    assert row_of(chain, 3)["state"] == REJECTED
    roll_back(chain, 3)
    assert row_of(chain, 3)["state"] == LIVE


def test_the_warning_says_who_took_a_revision_back_and_why(chain: Ledger) -> None:
    roll_back(chain, 2, "alertmanager", "revision 3 is degraded", cause=RollbackCause.ALERT)
    with chain.read() as connection:
        warnings = [taken_back_warning(connection, DEFAULT_MODEL, number) for number in (2, 3, 4, 99)]
    said = "revision 3 was taken back by alertmanager (alert) in revision 4: revision 3 is degraded"
    assert warnings == ["", said, "", ""]
