"""An older ledger: `errata migrate` brings it to the schema of today, and no other command touches it."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import column, insert, table, text

from daemon.core.clock import to_text
from daemon.core.ledger import database
from daemon.core.ledger.ledger import Ledger
from daemon.embedded.lock import only_one
from tests.daemon.core.ledger.test_migrations import migrate_to
from tests.installation import Installation

OLDER = "0007"
COMMANDS = (
    "status", "facts", "revisions", "show 0", "incidents", "metrics", "audit list", "audit verify",
    "diff 0 0", "top --once", "why Peru", "quarantine list", "feeds list", "scrub", "gc",
    "backup backup", "retract Peru --reason r", "rollback --to 0 --reason r", "pause --reason r", "resume",
    "submit --subject Peru --prompt Peru --object Lima", "prepare", "probe", "rebuild", "ask Peru",
    "export 0 folder", "publish", "publish --follow", "serve",
)  # fmt: skip


@pytest.fixture(scope="module")
def older_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a ledger that an older Errata made."""
    file = tmp_path_factory.mktemp("older") / "ledger.sqlite"
    engine = database.open_engine(f"sqlite:///{file}")
    migrate_to(engine, OLDER)
    engine.dispose()
    return file.read_bytes()


@pytest.fixture
def older(installation: Installation, older_file: bytes, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An installation with such a ledger."""
    monkeypatch.chdir(installation.folder)
    installation.write('[model]\npath = "model"')
    installation.config.data_dir.mkdir()
    (installation.config.data_dir / "ledger.sqlite").write_bytes(older_file)
    return installation


def schema(installation: Installation) -> str | None:
    engine = database.open_engine(installation.config.ledger_url)
    try:
        return database.schema_version(engine)
    finally:
        engine.dispose()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_leaves_an_older_ledger_alone_and_says_what_to_do(older: Installation, line: str) -> None:
    result = older.errata(*line.split())
    assert result.exit_code == 4, result.output
    assert f"schema {OLDER}" in result.stderr
    assert "stop errata run and all workers, then run errata migrate" in result.stderr
    assert schema(older) == OLDER


def test_migrate_brings_it_to_the_schema_of_today_once(older: Installation) -> None:
    newest = database.newest_version()
    assert older.errata_json("migrate") == {"before": OLDER, "after": newest}
    assert schema(older) == newest
    assert older.errata_json("migrate") == {"before": newest, "after": newest}
    rows = older.errata_json("audit", "list")["audit"]
    assert [row["action"] for row in rows] == ["migrate"]


def test_migrate_is_refused_while_others_work(older: Installation) -> None:
    with only_one(older.config.run_path):
        assert older.errata("migrate").exit_code == 3
    ledger = Ledger(database.open_engine(older.config.ledger_url))
    until = to_text(datetime.now(UTC) + timedelta(seconds=60))
    row = {"name": "scheduler", "holder": "elsewhere:7", "token": 1, "expires_at": until, "note": ""}
    with ledger.write() as connection:  # the columns that the table had then
        connection.execute(insert(table("leases", *map(column, row))).values(**row))
    ledger.close()
    refused = older.errata("migrate")
    assert (refused.exit_code, schema(older)) == (3, OLDER)
    assert "elsewhere:7" in refused.stderr
    assert older.errata("migrate", "--force").exit_code == 0
    assert schema(older) == database.newest_version()


def test_migrate_needs_a_ledger_and_refuses_a_newer_one(installation: Installation) -> None:
    assert installation.errata("migrate").exit_code == 4
    ledger = installation.open()
    with ledger.write() as connection:
        connection.execute(text("update alembic_version set version_num = '9999'"))
    ledger.close()
    refused = installation.errata("migrate")
    assert (refused.exit_code, schema(installation)) == (4, "9999")
    assert "install the newer Errata" in refused.stderr


def test_doctor_says_so_too(older: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.upkeep.doctor.CHECKS", "errata.none")
    report = json.loads(older.errata("doctor", "--json").stdout)
    ledger = next(check for check in report["checks"] if check["check"] == "ledger")
    assert (ledger["ok"], schema(older)) == (False, OLDER)
    assert "errata migrate" in ledger["fix"]
