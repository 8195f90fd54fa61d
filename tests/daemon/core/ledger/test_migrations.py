"""Migrations: they make the schema that the code speaks, once, whoever comes first, and never go back."""

import multiprocessing
import socket
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Connection, Engine, column, insert, inspect, select, table
from sqlalchemy.types import NullType

from daemon.admission.submission import submit
from daemon.core.clock import to_text
from daemon.core.errors import LedgerError, UnavailableError
from daemon.core.ledger import database
from daemon.core.ledger.attempts import count_failures, fatal_probes
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import attempts, corrections, incidents, metadata, revisions
from tests.ledgers import found, statement


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    """An engine on an empty database."""
    made = database.open_engine(ledger_url)
    yield made
    made.dispose()


def test_a_fresh_ledger_is_what_the_code_speaks(engine: Engine) -> None:
    database.migrate(engine)
    with database.transaction(engine, write=True) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_every_index_and_constraint_is_there_by_its_name(engine: Engine) -> None:
    database.migrate(engine)
    found_here = inspect(engine)
    for one in metadata.tables.values():
        wanted = {str(index.name) for index in one.indexes}
        assert {index["name"] for index in found_here.get_indexes(one.name)} >= wanted
    assert found_here.get_pk_constraint("revisions")["constrained_columns"] == ["model", "number"]
    unique = {tuple(one["column_names"]) for one in found_here.get_unique_constraints("revisions")}
    assert ("batch_id",) in unique


def test_the_number_of_the_schema_goes_from_none_to_the_newest(engine: Engine) -> None:
    assert database.schema_version(engine) is None
    database.migrate(engine)
    assert database.schema_version(engine) == database.newest_version()


def test_a_second_opening_changes_nothing(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(ledger_url)
    found(ledger)
    submit(ledger, statement("France", "Lyon"), "test")
    ledger.close()

    def refuse(*_: object) -> None:
        raise AssertionError("there was nothing to migrate")

    monkeypatch.setattr("alembic.command.upgrade", refuse)
    again = Ledger.open(ledger_url)
    with again.read() as connection:
        assert connection.execute(select(corrections.c.object)).scalars().all() == ["Lyon"]
    again.close()


def test_a_ledger_of_a_newer_errata_is_refused_and_left_alone(engine: Engine, ledger_url: str) -> None:
    database.migrate(engine)
    with database.transaction(engine, write=True) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    knows = rf"schema 9999, this Errata knows {database.newest_version()} \(install the newer Errata"
    with pytest.raises(LedgerError, match=knows):
        Ledger.open(ledger_url)
    with pytest.raises(LedgerError, match=knows):
        Ledger.open_migrated(ledger_url)
    assert database.schema_version(engine) == "9999"


def test_only_the_daemon_and_its_command_migrate(engine: Engine, ledger_url: str) -> None:
    """A newer version's command beside the old daemon must not shut that daemon's commands out."""
    migrate_to(engine, "0007")
    for opening in (Ledger.open, Ledger.open_existing):
        with pytest.raises(LedgerError, match=r"schema 0007, this Errata needs .*errata migrate"):
            opening(ledger_url)
    assert database.schema_version(engine) == "0007"
    Ledger.open_migrated(ledger_url).close()
    assert database.schema_version(engine) == database.newest_version()


def test_nothing_is_migrated_under_an_older_daemon_that_works(engine: Engine, ledger_url: str) -> None:
    migrate_to(engine, "0007")
    until = to_text(datetime.now(UTC) + timedelta(seconds=60))
    row = {"name": "scheduler", "holder": "elsewhere:12", "token": 1, "expires_at": until, "note": ""}
    with database.transaction(engine, write=True) as connection:
        connection.execute(insert(table("leases", *map(column, row))).values(**row))
    with pytest.raises(UnavailableError, match=r"elsewhere:12 \(scheduler until"):
        Ledger.open_migrated(ledger_url)
    assert database.schema_version(engine) == "0007"
    with database.transaction(engine, write=True) as connection:  # it died on this machine
        gone = f"{socket.gethostname()}:{2**22 + 1}"
        connection.exec_driver_sql(f"UPDATE leases SET holder = '{gone}'")
    Ledger.open_migrated(ledger_url).close()
    assert database.schema_version(engine) == database.newest_version()


def test_a_migration_that_fails_leaves_nothing_and_can_be_repeated(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic.operations import Operations

    whole = Operations.create_table

    def fail(self: Any, name: str, *columns: Any, **more: Any) -> Any:
        if name == "tenures":
            raise RuntimeError("the power went")
        return whole(self, name, *columns, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_table", fail)
        with pytest.raises(RuntimeError, match="the power went"):
            database.migrate(engine)
    assert inspect(engine).get_table_names() == []
    database.migrate(engine)
    assert set(metadata.tables) < set(inspect(engine).get_table_names())


def test_migrations_are_one_line_numbered_in_order() -> None:
    folder = Path(database.__file__).parent / "migrations"
    steps = list(ScriptDirectory(str(folder)).walk_revisions())[::-1]
    assert [step.revision for step in steps] == [f"{number:04d}" for number in range(1, len(steps) + 1)]
    assert [step.down_revision for step in steps] == [None, *(step.revision for step in steps[:-1])]


def test_outcomes_of_attempts_become_columns_of_their_own(engine: Engine) -> None:
    """Until 0007 one text said how an attempt ended, why, and at which probe it was."""
    migrate_to(engine, "0007")
    old = {"b1": "ended", "b2": "failed: NaN", "b3": "later: no space", "b4": "probing canary", "b5": ""}
    with database.transaction(engine, write=True) as connection:
        for batch_id, text in old.items():
            row = {"batch_id": batch_id, "number": 1, "worker": "w", "started_at": "", "outcome": text}
            connection.execute(insert(table("attempts", *map(column, row))).values(**row))
    database.migrate(engine)
    with database.transaction(engine, write=False) as connection:
        columns = (attempts.c.batch_id, attempts.c.outcome, attempts.c.error, attempts.c.probe)
        rows = {row[0]: tuple(row[1:]) for row in connection.execute(select(*columns))}
        assert fatal_probes(connection, "b4") == {"canary"}
        assert [count_failures(connection, batch_id) for batch_id in old] == [0, 1, 0, 0, 1]
    assert rows == {
        "b1": ("ended", "", None),
        "b2": ("failed", "NaN", None),
        "b3": ("later", "no space", None),
        "b4": ("running", "", "canary"),
        "b5": ("running", "", None),
    }


def add(connection: Connection, name: str, **row: Any) -> None:
    """Insert a row as an older Errata did."""
    types = {"tensors": JSON, "stages": JSON, "norms": JSON, "details": JSON}
    columns = [column(key, types.get(key, NullType)) for key in row]  # type: ignore[arg-type]
    connection.execute(insert(table(name, *columns)).values(**row))


def test_what_was_taken_back_before_is_marked_with_who_and_why(engine: Engine) -> None:
    """Until 0008 nothing but the audit said who went back, and only the judge rejected revisions."""
    migrate_to(engine, "0008")
    same = {"model": "m", "state": "live", "content": "c", "tensors": {}, "token": 1, "recipe": "r"}
    same |= {"reason": "", "stages": {}, "norms": {}, "active_facts": 0, "created_at": "2026"}
    contents = {0: None, 1: None, 2: None, 3: 1, 4: None, 5: 2, 6: 0, 7: None}
    who = {3: "judge", 5: "ann", 6: "alertmanager"}
    with database.transaction(engine, write=True) as connection:
        for number, of in contents.items():
            kind = "edit" if of is None else "rollback"
            parent = number - 1 if number else None
            add(connection, "revisions", number=number, parent=parent, kind=kind, content_of=of, **same)
        for number, name in who.items():
            said = {"at": "", "who": name, "action": "rollback", "target": f"m@{contents[number]}"}
            said |= {"reason": "why", "details": {"head": number}, "previous": "", "hash": str(number)}
            add(connection, "audit", **said)
    database.migrate(engine)
    with database.transaction(engine, write=False) as connection:
        chain = connection.execute(select(revisions).order_by(revisions.c.number)).mappings().all()
    assert [row["taken_back_by"] for row in chain] == [None, 6, 6, 5, 5, 6, None, None]
    assert {row["number"]: (row["who"], row["cause"]) for row in chain if row["who"]} == {
        3: ("judge", "judge"),
        5: ("ann", "operator"),
        6: ("alertmanager", "alert"),
    }
    assert [row["state"] for row in chain] == ["live", *["rejected"] * 5, "live", "live"]
    assert [row["state_before"] for row in chain] == [None, *["live"] * 5, None, None]


def test_incidents_of_before_accuse_what_they_were_about(engine: Engine) -> None:
    migrate_to(engine, "0011")
    with database.transaction(engine, write=True) as connection:
        for probe in ("quiz", "store", "feed:wiki", "feedback", "alert:Wrong"):
            row = {"model": "m", "revision": 1, "probe": probe, "state": "open", "message": ""}
            add(connection, "incidents", opened_at="", **row)
    database.migrate(engine)
    with database.transaction(engine, write=False) as connection:
        rows = connection.execute(select(incidents).order_by(incidents.c.id)).mappings().all()
    assert [(row["subject"], row["subject_name"]) for row in rows] == [
        ("revision", ""), ("store", ""), ("feed", "wiki"), ("revision", ""), ("revision", ""),
    ]  # fmt: skip


def migrate_to(engine: Engine, number: str) -> None:
    """Bring an empty database to an older schema."""
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with database.transaction(engine, write=True) as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, number)


def open_and_found(url: str, start: Any, ends: Any) -> None:
    """What each of several processes does at the same moment on an empty database."""
    start.wait(30)
    try:
        ledger = Ledger.open(url)
        found(ledger)
        submit(ledger, statement("France", "Lyon", 1), "test")
        ledger.close()
        ends.put("opened")
    except BaseException as error:  # noqa: BLE001  whatever it is, the parent shows it
        ends.put(repr(error))


def test_several_processes_may_open_an_empty_ledger_at_once(ledger_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    start, ends = context.Barrier(3), context.Queue()
    processes = [context.Process(target=open_and_found, args=(ledger_url, start, ends)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [ends.get(timeout=90) for _ in processes] == ["opened"] * 3
    for process in processes:
        process.join(30)
    ledger = Ledger.open(ledger_url)
    with ledger.read() as connection:
        assert connection.execute(select(corrections.c.object)).scalars().all() == ["Lyon"]
    ledger.close()


def test_opening_waits_for_another_process_that_is_just_making_the_file(tmp_path: Path) -> None:
    """SQLite's own timeout does not cover the switch to write-ahead logging."""
    path = tmp_path / "ledger.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE other (x)")
    timer = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    timer.start()
    try:
        Ledger.open(f"sqlite:///{path}").close()
    finally:
        timer.join()
        other.close()
