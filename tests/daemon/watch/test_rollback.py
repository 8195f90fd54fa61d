"""Operators' rollbacks: which revision is the last good one, races, and what happens to open incidents."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from daemon.admission.submission import submit
from daemon.core.blobs import blob_path
from daemon.core.clock import to_text
from daemon.core.errors import ConfigError, CorruptBlobError, NotFoundError, StaleHeadError
from daemon.core.fsio import write_durably
from daemon.core.ledger import audit
from daemon.core.ledger.chain import get_revision, head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit as audit_table
from daemon.core.ledger.schema import incidents, revisions, switches, tenures
from daemon.core.ledger.switches import pause, resume
from daemon.core.names import DEFAULT_MODEL, IncidentState, RevisionState
from daemon.watch.judge import judge
from daemon.watch.rollback import roll_back
from tests.installation import Installation, edit, probes, write_quietly
from tests.ledgers import apply_waiting, close_by_hand, found, held, statement, states

NOWHERE = Path("there is no store")


def back(ledger: Ledger, **how: object) -> int:
    options = {"who": "tester", "reason": "because", **how}
    return roll_back(ledger, DEFAULT_MODEL, NOWHERE, **options)  # type: ignore[arg-type]


def set_state(ledger: Ledger, number: int, state: RevisionState) -> None:
    with ledger.write() as connection:
        connection.execute(update(revisions).where(revisions.c.number == number).values(state=state))


def content_of(ledger: Ledger, number: int) -> int:
    with ledger.read() as connection:
        return int(get_revision(connection, DEFAULT_MODEL, number)["content_of"])


def open_incident(ledger: Ledger, revision: int, state: IncidentState = IncidentState.OPEN) -> None:
    values = {
        "model": DEFAULT_MODEL,
        "revision": revision,
        "probe": "efficacy",
        "state": state,
        "message": "low",
    }
    with ledger.write() as connection:
        connection.execute(insert(incidents).values(**values, opened_at=to_text(ledger.clock.now())))


def incident_states(ledger: Ledger) -> dict[int, str]:
    with ledger.read() as connection:
        return {row.revision: row.state for row in connection.execute(select(incidents))}


def test_back_to_a_named_revision(ledger: Ledger) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    write_quietly(ledger, statement("Chad", "Abéché"))
    assert back(ledger, to=1) == 3
    assert held(ledger) == {"Peru": "Lima"}


def test_the_last_good_one_is_live_and_holds_something_else(ledger: Ledger) -> None:
    for number, country in enumerate(("Peru", "Chad", "Mali"), start=1):
        write_quietly(ledger, statement(country, "X"))
        set_state(ledger, number, RevisionState.LIVE)
    set_state(ledger, 2, RevisionState.REJECTED)
    assert content_of(ledger, back(ledger, last_good=True)) == 1
    back(ledger, to=1)  # 5 holds what 4 and 1 hold; 3 and 2 were taken back
    assert content_of(ledger, back(ledger, last_good=True)) == 0


def test_without_a_good_one_nothing_happens(ledger: Ledger) -> None:
    with pytest.raises(NotFoundError, match="no good revision"):
        back(ledger, last_good=True)
    assert content_of_head(ledger) == 0


def content_of_head(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return int(head(connection, DEFAULT_MODEL)["number"])


@pytest.mark.parametrize("how", [{}, {"to": 0, "last_good": True}, {"to": 0, "reason": "  "}])
def test_a_rollback_says_where_to_and_why(ledger: Ledger, how: dict[str, object]) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    with pytest.raises(ConfigError):
        back(ledger, **how)
    assert content_of_head(ledger) == 1


@pytest.mark.parametrize("how", [{"to": 0}, {"last_good": True}])
def test_a_wrong_expected_head_refuses(ledger: Ledger, how: dict[str, object]) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    with pytest.raises(StaleHeadError, match="head is 1, not 0"):
        back(ledger, **how, expected_head=0)
    assert held(ledger) == {"Peru": "Lima"}


def test_last_good_looks_again_when_a_writer_moves_head(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_quietly(ledger, statement("Peru", "Lima"))
    true_rollback, raced = Ledger.rollback, []

    def rollback(self: Ledger, *arguments: object, **more: object) -> int:
        if not raced:
            raced.append(write_quietly(ledger, statement("Chad", "Abéché")))
        return true_rollback(self, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "rollback", rollback)
    assert back(ledger, last_good=True) == 3
    assert held(ledger) == {}


def test_a_rollback_closes_the_incidents_of_what_it_leaves(ledger: Ledger) -> None:
    for country in ("Peru", "Chad", "Mali"):
        write_quietly(ledger, statement(country, "X"))
    for revision in (1, 2, 3):
        open_incident(ledger, revision)
    back(ledger, to=1)
    assert incident_states(ledger) == {1: "open", 2: "closed", 3: "closed"}


def test_the_judge_keeps_its_own_state_for_what_it_took_back(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    ledger = installation.open()
    edit(ledger, statement("Peru", "Lima"), measured=probes(efficacy=0.1))
    judge(ledger, installation.config)
    assert incident_states(ledger) == {1: "rolled_back"}
    assert set(states(ledger).values()) == {"reverted"}
    ledger.close()


def test_resume_ends_a_freeze_and_says_who_did(ledger: Ledger) -> None:
    open_incident(ledger, 1, IncidentState.FROZEN)
    assert pause(ledger, model=DEFAULT_MODEL, feed=None, who="judge", reason="again") is True
    assert pause(ledger, model=DEFAULT_MODEL, feed=None, who="ann", reason="again") is False
    assert resume(ledger, model=DEFAULT_MODEL, feed=None, who="ann", reason="looked at it") is True
    assert incident_states(ledger) == {1: "closed"}
    with ledger.read() as connection:
        (switch,) = connection.execute(select(switches)).mappings()
        last = connection.execute(select(audit_table).order_by(audit_table.c.id.desc())).mappings().first()
        assert audit.first_broken_row(connection) is None
    assert (switch["name"], switch["is_on"]) == ("paused:default", False)
    assert last is not None
    assert (last["who"], last["action"], last["reason"]) == ("ann", "resume", "looked at it")


def test_a_feed_has_a_switch_of_its_own(ledger: Ledger) -> None:
    open_incident(ledger, 1, IncidentState.FROZEN)
    pause(ledger, model=DEFAULT_MODEL, feed="wiki", who="ann", reason="vandals")
    resume(ledger, model=DEFAULT_MODEL, feed="wiki", who="ann", reason="")
    assert incident_states(ledger) == {1: "frozen"}, "a feed's switch has nothing to do with a freeze"


def test_an_incident_is_closed_by_hand_and_audited(ledger: Ledger) -> None:
    open_incident(ledger, 1)
    close_by_hand(ledger, 1, "ann", "floor was too high")
    assert incident_states(ledger) == {1: "closed"}
    with pytest.raises(NotFoundError):
        close_by_hand(ledger, 7, "ann", "which?")


# -- blobs ----------------------------------------------------------------------------------------------


def put_blobs(ledger: Ledger, store: Path) -> dict[int, list[Path]]:
    """Write made-up blobs that match the revisions, and return those of each."""
    files: dict[int, list[Path]] = {}
    with ledger.write() as connection:
        for row in connection.execute(select(revisions).order_by(revisions.c.number)).mappings().all():
            data = f"revision {row['number']}".encode()
            name = hashlib.sha256(data).hexdigest()
            write_durably(blob_path(store, name), data)
            mine = revisions.c.number == row["number"]
            connection.execute(update(revisions).where(mine).values(tensors={"w": name}))
            files[row["number"]] = [blob_path(store, name)]
        connection.execute(update(tenures).values(blob=name))
    return files


@pytest.fixture
def stored(sqlite_ledger: Ledger, tmp_path: Path) -> tuple[Ledger, Path, dict[int, list[Path]]]:
    """Four live revisions whose blobs are there."""
    found(sqlite_ledger)
    for number, city in enumerate(("Lima", "Cusco", "Ica"), start=1):
        submit(sqlite_ledger, statement("Peru", city, day=number), "tester")
        assert apply_waiting(sqlite_ledger) == number
        set_state(sqlite_ledger, number, RevisionState.LIVE)
    store = tmp_path / "store"
    return sqlite_ledger, store, put_blobs(sqlite_ledger, store)


def damaged(path: Path) -> None:
    path.write_bytes(b"damaged")


@pytest.mark.parametrize("damage", [Path.unlink, damaged])
def test_no_rollback_goes_to_a_revision_without_its_blobs(
    stored: tuple[Ledger, Path, dict[int, list[Path]]], damage: Callable[[Path], None]
) -> None:
    ledger, store, files = stored
    damage(files[1][0])
    with pytest.raises(CorruptBlobError, match="revision 1 cannot come back") as refused:
        roll_back(ledger, DEFAULT_MODEL, store, to=1, who="ann", reason="a doubt")
    assert "errata rebuild --mend" in refused.value.hint
    with ledger.read() as connection:
        assert head(connection, DEFAULT_MODEL)["number"] == 3
    assert roll_back(ledger, DEFAULT_MODEL, store, to=2, who="ann", reason="a doubt") == 4


def test_the_last_good_revision_is_one_whose_blobs_are_sound(
    stored: tuple[Ledger, Path, dict[int, list[Path]]],
) -> None:
    ledger, store, files = stored
    files[2][0].unlink()
    assert roll_back(ledger, DEFAULT_MODEL, store, last_good=True, who="ann", reason="a doubt") == 4
    assert content_of(ledger, 4) == 1
    for number in (0, 1):
        damaged(files[number][0])
    with pytest.raises(NotFoundError, match="no good revision"):
        roll_back(ledger, DEFAULT_MODEL, store, last_good=True, who="ann", reason="a doubt")


def test_a_host_without_the_store_cannot_check_and_refuses_nothing(
    stored: tuple[Ledger, Path, dict[int, list[Path]]],
) -> None:
    ledger, store, _ = stored
    assert roll_back(ledger, DEFAULT_MODEL, store / "elsewhere", to=1, who="ann", reason="a doubt") == 4
