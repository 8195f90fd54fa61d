"""A ledger and a store of the first schema, as an Errata of that time left them: they open, migrate and work.

tests/data/ledger_0001 was made by running that code on the toy: two edits, a rollback, one more edit, one
correction that waits, one refused by a guard, one line that is no correction.
"""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select

from daemon.admission.admit import pull_feed
from daemon.admission.quarantine import release
from daemon.core.config.settings import Config
from daemon.core.ledger import database
from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, quarantine, revisions
from daemon.core.names import QuarantineState
from daemon.scheduling.dispatch import make_batches
from daemon.upkeep.store import collect_garbage, scrub
from daemon.views.prometheus import render
from daemon.views.status import status
from daemon.watch.judge import judge
from daemon.watch.rollback import taken_back_warning
from tests.ledgers import FakeClock, jsonl_feed, roll_back, states
from tests.toy import ToyEditor, prompt_of, said, toy_config
from workers.revisions.recovery import rebuild
from workers.revisions.store import Store
from workers.session.session import Session

OLD = Path(__file__).parents[4] / "tests" / "data" / "ledger_0001"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """An installation of then."""
    shutil.copytree(OLD / "store", tmp_path / "store")
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    connection.executescript((OLD / "ledger.sql").read_text(encoding="utf-8"))
    connection.close()
    return toy_config(tmp_path)


@pytest.fixture
def ledger(config: Config) -> Iterator[Ledger]:
    """The same, opened by the code of today."""
    clock = FakeClock()
    clock.moment = datetime(2027, 1, 1, tzinfo=UTC)  # later than all that is in there
    opened = Ledger.open_migrated(config.ledger_url, clock)
    yield opened
    opened.close()


def answers(ledger: Ledger, config: Config) -> dict[str, str]:
    """What head says, loaded by a process that knows nothing of it."""
    editor = ToyEditor()
    assert rebuild(ledger, Store(config.store_path), editor, "default", "test", mend=False).agrees
    subjects = ("Peru", "Chad", "Fiji", "Mali", "Oman")
    return {name: answer for name in subjects if "City" in (answer := editor.model.answer(prompt_of(name)))}


def write_waiting(ledger: Ledger, config: Config) -> None:
    session = Session(ledger, Store(config.store_path), ToyEditor(), config)
    make_batches(ledger, config)
    with ledger.read() as connection:
        queued = select(corrections.c.batch_id).where(corrections.c.state == "queued").distinct()
        waiting = connection.execute(queued).scalars().all()
    for batch_id in waiting:
        session.run(batch_id)


def test_it_is_of_the_first_schema_and_is_brought_to_todays(config: Config) -> None:
    engine = database.open_engine(config.ledger_url)
    assert database.schema_version(engine) == "0001"
    Ledger.open_migrated(config.ledger_url).close()
    assert database.schema_version(engine) == database.newest_version() > "0001"
    engine.dispose()


def test_nothing_is_lost_on_the_way(ledger: Ledger, config: Config) -> None:
    found = sorted(states(ledger).values())
    assert found == ["applied"] * 4 + ["pending", "quarantined"] + ["reverted"] * 2
    with ledger.read() as connection:
        chain = connection.execute(select(revisions.c.kind).order_by(revisions.c.number)).scalars().all()
        refused = connection.execute(select(func.count()).select_from(quarantine)).scalar_one()
        assert first_broken_row(connection) is None
        assert status(connection, ledger.clock, "default")["head"] == 4
    assert (chain, refused) == (["base", "edit", "edit", "rollback", "edit"], 2)
    assert scrub(ledger, config) == {}
    assert b"errata_revision_head" in render(ledger, config)
    assert answers(ledger, config) == {"Peru": "City 1", "Chad": "City 2", "Fiji": "City 3", "Mali": "City 6"}


def test_it_goes_on_where_it_was(ledger: Ledger, config: Config, tmp_path: Path) -> None:
    before = answers(ledger, config)
    write_waiting(ledger, config)
    assert answers(ledger, config) == {**before, "Oman": "City 7"}
    feed = tmp_path / "feed.jsonl"
    news = (said("Peru", "City 4", 5), said("Fiji", None, 9), said("Chad", "City 8", 9))
    feed.write_text("".join(json.dumps(one) + "\n" for one in news))
    with ledger.write() as connection:  # a new file under the old feed's name
        connection.exec_driver_sql("UPDATE feeds SET cursor = '{}' WHERE name = 'sample'")
    pull_feed(ledger, jsonl_feed("sample", feed), 10)
    write_waiting(ledger, config)
    after = {"Peru": "City 1", "Chad": "City 8", "Mali": "City 6", "Oman": "City 7"}
    assert answers(ledger, config) == after, "what was reverted then does not come back"
    judge(ledger, config)
    roll_back(ledger, 4, "op", "back to what the old Errata left", expected_head=6)
    assert answers(ledger, config) == before
    roll_back(ledger, 6, "op", "and here again")
    assert answers(ledger, config) == after
    assert collect_garbage(ledger, config).files == 0
    with ledger.read() as connection:
        assert head(connection, "default")["number"] == 8
        assert first_broken_row(connection) is None


def test_what_was_taken_back_then_is_marked(ledger: Ledger) -> None:
    with ledger.read() as connection:
        rows = connection.execute(select(revisions).order_by(revisions.c.number)).mappings().all()
        warning = taken_back_warning(connection, "default", 2)
    assert [row["taken_back_by"] for row in rows] == [None, None, 3, None, None]
    assert (rows[2]["state"], rows[2]["state_before"]) == ("rejected", "candidate")
    assert warning == "revision 2 was taken back by operator (operator) in revision 3: a doubt"


def test_what_was_held_then_can_be_let_in_now(ledger: Ledger) -> None:
    with ledger.read() as connection:
        held = (quarantine.c.state == QuarantineState.HELD) & quarantine.c.correction_id.is_not(None)
        entry = connection.execute(select(quarantine.c.id).where(held)).scalar_one()
    assert release(ledger, entry, "op", "try again").outcome == "accepted"
