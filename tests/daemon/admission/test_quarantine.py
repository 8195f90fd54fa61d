"""Quarantine: what was refused waits with its reason until an operator lets it in or drops it."""

import json
from typing import Any

import pytest
from sqlalchemy import select

from daemon.admission.admit import admit
from daemon.admission.quarantine import drop, release
from daemon.core.errors import InvalidCorrectionError, NotFoundError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit, corrections, quarantine
from daemon.core.names import AdmissionOutcome
from daemon.feeds.base import RawItem
from tests.ledgers import FakeClock, apply_waiting, held, items, roll_back, statement


def take(ledger: Ledger, *said: object) -> None:
    with ledger.write() as connection:
        admit(connection, ledger.clock.now(), "news", 50, items(*said))


def entry(ledger: Ledger) -> dict[str, Any]:
    """The newest entry."""
    with ledger.read() as connection:
        return dict(
            connection.execute(select(quarantine).order_by(quarantine.c.id.desc()).limit(1)).mappings().one()
        )


def state(ledger: Ledger, city: str | None) -> str:
    with ledger.read() as connection:
        query = select(corrections.c.state).where(corrections.c.object == city)
        return str(connection.execute(query).scalar_one())


@pytest.fixture
def reverted(ledger: Ledger) -> int:
    """The entry of a statement that came again after a rollback had taken its value back."""
    take(ledger, statement("France", "Lyon", 1))
    apply_waiting(ledger)
    roll_back(ledger, 0, "op", "wrong")
    take(ledger, statement("France", "LYON", 5))
    return int(entry(ledger)["id"])


def test_a_released_correction_goes_to_the_weights(ledger: Ledger, reverted: int) -> None:
    decision = release(ledger, reverted, "ann", "checked")
    assert decision.outcome is AdmissionOutcome.ACCEPTED
    assert entry(ledger)["state"] == "released"
    apply_waiting(ledger)
    assert held(ledger) == {"France": "LYON"}


def test_a_release_is_audited_with_who_why_and_what_became_of_it(ledger: Ledger, reverted: int) -> None:
    decision = release(ledger, reverted, "ann", "checked")
    with ledger.read() as connection:
        row = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(1)).mappings().one()
    assert (row["who"], row["action"], row["target"]) == ("ann", "quarantine.release", str(reverted))
    assert row["reason"] == "checked"
    assert row["details"] == {
        "reason": "reverted_before",
        "correction": decision.correction_id,
        "outcome": "accepted",
    }


def test_newest_wins_at_release_too(ledger: Ledger, reverted: int) -> None:
    take(ledger, statement("France", "Nice", 6))
    assert release(ledger, reverted, "ann", "late").outcome is AdmissionOutcome.STALE
    assert (state(ledger, "LYON"), state(ledger, "Nice")) == ("superseded", "pending")


def test_a_released_correction_takes_the_place_of_an_older_one_that_waits(
    ledger: Ledger, reverted: int
) -> None:
    take(ledger, statement("France", "Nice", 3))
    assert release(ledger, reverted, "ann", "newer").outcome is AdmissionOutcome.ACCEPTED
    assert (state(ledger, "LYON"), state(ledger, "Nice")) == ("pending", "superseded")


def test_a_correction_that_a_worker_refused_waits_for_a_new_batch(ledger: Ledger) -> None:
    take(ledger, statement("France", "Lyon", 1))
    with ledger.read() as connection:
        correction_id = connection.execute(select(corrections.c.id)).scalar_one()
    apply_waiting(ledger, refuse=[correction_id])
    refused = entry(ledger)
    assert (refused["reason"], refused["correction_id"]) == ("norm", correction_id)
    assert release(ledger, refused["id"], "ann", "again").outcome is AdmissionOutcome.ACCEPTED
    assert apply_waiting(ledger) is not None
    assert held(ledger) == {"France": "Lyon"}


def test_a_raw_item_that_is_still_refused_stays_quarantined_with_its_error(ledger: Ledger) -> None:
    take(ledger, {"subject": "France"})
    number = entry(ledger)["id"]
    with pytest.raises(InvalidCorrectionError, match="object: Field required"):
        release(ledger, number, "ann", "try")
    assert entry(ledger)["state"] == "held"


def test_a_raw_item_that_is_valid_by_now_is_admitted(ledger: Ledger, clock: FakeClock) -> None:
    early = statement(
        "France", "Lyon", 160, paraphrases=["\u202eFrance's \U000e0001 capital is" + "x" * 460] * 8
    )
    with ledger.write() as connection:
        raw = json.dumps(early, ensure_ascii=False).encode()
        admit(connection, clock.now(), "news", 50, [RawItem(raw, "line 1")])
    number = entry(ledger)["id"]
    with pytest.raises(InvalidCorrectionError, match="more than a day from now"):
        release(ledger, number, "ann", "too early still")
    clock.advance(30 * 86_400)
    assert release(ledger, number, "ann", "time has come").outcome is AdmissionOutcome.ACCEPTED
    with ledger.read() as connection:
        row = connection.execute(select(corrections)).mappings().one()
    assert row["paraphrases"] == early["paraphrases"]
    assert (row["feed"], row["state"]) == ("news", "pending")


def test_a_dropped_entry_stays_refused(ledger: Ledger, reverted: int) -> None:
    drop(ledger, reverted, "ann", "nonsense")
    assert entry(ledger)["state"] == "dropped"
    assert state(ledger, "LYON") == "quarantined"
    with ledger.read() as connection:
        row = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(1)).mappings().one()
    assert (row["action"], row["who"], row["reason"]) == ("quarantine.drop", "ann", "nonsense")


@pytest.mark.parametrize("first", [release, drop])
@pytest.mark.parametrize("second", [release, drop])
def test_an_entry_is_closed_once(ledger: Ledger, reverted: int, first: Any, second: Any) -> None:
    first(ledger, reverted, "ann", "once")
    with pytest.raises(NotFoundError, match="already"):
        second(ledger, reverted, "ann", "twice")


def test_an_unknown_entry_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="no quarantine entry 17"):
        release(ledger, 17, "ann", "")
    with pytest.raises(NotFoundError, match="no quarantine entry 17"):
        drop(ledger, 17, "ann", "")


def test_a_correction_with_two_entries_is_let_in_once(ledger: Ledger, reverted: int) -> None:
    with ledger.write() as connection:
        first = connection.execute(select(quarantine)).mappings().one()
        copy = {key: first[key] for key in first if key != "id"}
        connection.execute(quarantine.insert().values(**copy))
    release(ledger, reverted, "ann", "yes")
    apply_waiting(ledger)
    second = entry(ledger)["id"]
    assert release(ledger, second, "ann", "yes again").outcome is AdmissionOutcome.DUPLICATE
    assert state(ledger, "LYON") == "applied"


def test_a_failed_release_changes_nothing(
    ledger: Ledger, reverted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("daemon.admission.quarantine._close", crash)
    with pytest.raises(RuntimeError):
        release(ledger, reverted, "ann", "")
    assert (state(ledger, "LYON"), entry(ledger)["state"]) == ("quarantined", "held")
