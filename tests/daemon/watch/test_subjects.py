"""Evidence has a subject: what accuses a feed, the store, a consumer or the host moves no revision."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from daemon.admission.admit import pull_feed
from daemon.admission.auto_pause import pause_if_poisoned
from daemon.core.config.settings import Config
from daemon.core.ledger.chain import head
from daemon.core.ledger.incidents import open_incident
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents, switches
from daemon.core.ledger.switches import is_feed_paused, is_paused, resume
from daemon.core.names import DEFAULT_MODEL, ProbeResult, Reaction, RollbackCause, Subject
from daemon.watch.judge import judge, react
from tests.ledgers import FakeClock, held, jsonl_feed, roll_back
from tests.watching import commit_and_judge, right, suite_row

CONFIG = Config()
OTHERS = [subject for subject in Subject if subject is not Subject.REVISION]
LIMIT = 200  # items of a feed in quarantine that pause it


def good_revision(ledger: Ledger) -> None:
    commit_and_judge(ledger, CONFIG, suite_row(right(100)))


def flood(ledger: Ledger, file: Path, lines: int = 700) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(f"garbage {number}\n" for number in range(lines))
    while pull_feed(ledger, jsonl_feed("gossip", file, trust=5), 500).more:
        pass
    pause_if_poisoned(ledger, DEFAULT_MODEL, "gossip", LIMIT)


def chain_of(ledger: Ledger) -> int:
    with ledger.read() as connection:
        return int(head(connection, DEFAULT_MODEL)["number"])


def rows(ledger: Ledger) -> list[dict[str, Any]]:
    with ledger.read() as connection:
        return [dict(row) for row in connection.execute(select(incidents)).mappings()]


def test_a_flood_of_garbage_pauses_its_feed_and_touches_nothing_else(
    ledger: Ledger, clock: FakeClock, tmp_path: Path
) -> None:
    """Two facts live and well: neither the first flood takes them back, nor does the second one freeze."""
    good_revision(ledger)
    good_revision(ledger)
    for _ in range(2):
        flood(ledger, tmp_path / "gossip.jsonl")
        judge(ledger, CONFIG)
        with ledger.read() as connection:
            assert is_feed_paused(connection, DEFAULT_MODEL, "gossip")
            assert not is_paused(connection, DEFAULT_MODEL)
        (row,) = rows(ledger)
        assert (row["subject"], row["subject_name"], row["state"]) == ("feed", "gossip", "open")
        assert chain_of(ledger) == 2
        resume(ledger, model=DEFAULT_MODEL, feed="gossip", who="ann", reason="they promised")
        assert [row["state"] for row in rows(ledger)] == ["closed"], "settled with the feed"
        clock.advance(1)
    assert len(held(ledger)) == 2


def test_a_feed_that_misbehaves_before_there_is_a_model_stops_nothing(tmp_path: Path, ledger: Ledger) -> None:
    flood(ledger, tmp_path / "gossip.jsonl")
    judge(ledger, Config(model={"name": "unfounded"}))  # type: ignore[arg-type]
    judge(ledger, CONFIG)
    assert chain_of(ledger) == 0


@pytest.mark.parametrize("subject", OTHERS)
def test_what_accuses_no_revision_is_never_answered_by_a_rollback(ledger: Ledger, subject: Subject) -> None:
    good_revision(ledger)
    with ledger.write() as connection:
        open_incident(
            connection, ledger.clock.now(), DEFAULT_MODEL, 1, "trouble", "it is bad",
            subject=subject, result=ProbeResult.DEGRADED, name="it",
        )  # fmt: skip
    judge(ledger, CONFIG)
    assert react(ledger, CONFIG, "alerts", RollbackCause.ALERT) is Reaction.NOTHING
    assert chain_of(ledger) == 1
    with ledger.read() as connection:
        assert connection.execute(select(switches)).all() == []
    roll_back(ledger, 0)
    assert [row["state"] for row in rows(ledger)] == ["open"], "a rollback mends no feed, store or host"


def test_evidence_against_what_head_no_longer_holds_neither_rolls_back_nor_freezes(ledger: Ledger) -> None:
    """As a ledger may have it that an older Errata left."""
    for _ in range(3):
        good_revision(ledger)
    roll_back(ledger, 2)
    values = {"model": DEFAULT_MODEL, "revision": 3, "probe": "quiz", "state": "open", "message": "low"}
    with ledger.write() as connection:
        connection.execute(incidents.insert().values(**values, opened_at="2026-01-01", result="degraded"))
    judge(ledger, CONFIG)
    assert chain_of(ledger) == 4
    with ledger.read() as connection:
        assert connection.execute(select(switches)).all() == []
