"""The audit trail: every row carries the one before it, so that nothing is changed or lost in silence."""

from typing import Any

import pytest
from sqlalchemy import delete, select, update

from daemon.core.ledger.audit import GENESIS, first_broken_row, record
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit
from tests.ledgers import FakeClock


@pytest.fixture
def trail(ledger: Ledger, clock: FakeClock) -> Ledger:
    """Five rows of an operator's day."""
    for number in range(1, 6):
        clock.advance(60)
        with ledger.write() as connection:
            details = {"number": number, "umlaut": "ü", "ratio": 0.1, "nested": {"b": [1, None], "a": True}}
            record(connection, clock.now(), "ann", "rollback", f"default@{number}", "why", details)
    return ledger


def broken(ledger: Ledger) -> int | None:
    with ledger.read() as connection:
        return first_broken_row(connection)


def ids(ledger: Ledger) -> list[int]:
    with ledger.read() as connection:
        return list(connection.execute(select(audit.c.id).order_by(audit.c.id)).scalars())


def test_an_untouched_trail_holds(trail: Ledger) -> None:
    assert broken(trail) is None
    assert len(ids(trail)) == 5


def test_an_empty_trail_holds(ledger: Ledger) -> None:
    assert broken(ledger) is None


def test_the_first_row_begins_the_chain_and_each_names_its_predecessor(trail: Ledger) -> None:
    with trail.read() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id)).mappings().all()
    assert [row["previous"] for row in rows] == [GENESIS, *(row["hash"] for row in rows[:-1])]


@pytest.mark.parametrize(
    "change",
    [
        {"who": "bob"},
        {"reason": "because"},
        {"target": "default@9"},
        {"action": "submit"},
        {"at": "2026-06-01T00:00:00.000000Z"},
        {"details": {"number": 99}},
        {"hash": "f" * 64},
        {"previous": "f" * 64},
    ],
)
def test_a_changed_row_is_found(trail: Ledger, change: dict[str, Any]) -> None:
    third = ids(trail)[2]
    with trail.write() as connection:
        connection.execute(update(audit).where(audit.c.id == third).values(**change))
    assert broken(trail) == third


def test_a_row_that_was_taken_out_is_found_at_its_successor(trail: Ledger) -> None:
    _, second, third, *_ = ids(trail)
    with trail.write() as connection:
        connection.execute(delete(audit).where(audit.c.id == second))
    assert broken(trail) == third


def test_rows_that_changed_places_are_found(trail: Ledger) -> None:
    _, second, third, *_ = ids(trail)
    with trail.write() as connection:
        for old, new in ((second, 10_000), (third, second), (10_000, third)):
            connection.execute(update(audit).where(audit.c.id == old).values(id=new))
    assert broken(trail) == second


def test_what_is_not_committed_leaves_no_row(trail: Ledger, clock: FakeClock) -> None:
    with pytest.raises(RuntimeError), trail.write() as connection:
        record(connection, clock.now(), "ann", "rollback", "x", "why")
        raise RuntimeError
    assert len(ids(trail)) == 5
    with trail.write() as connection:
        record(connection, clock.now(), "ann", "rollback", "x", "why")
    assert broken(trail) is None
