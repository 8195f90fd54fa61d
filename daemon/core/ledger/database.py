"""Open the ledger's database, with one writer at a time, and check and migrate it."""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import to_json
from sqlalchemy import Column, Connection, Engine, Update, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from daemon.core.clock import to_text
from daemon.core.errors import LedgerError, UnavailableError

Value = TypeVar("Value")

_WRITE = "errata_write"
_WAL_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between tries, 4 in all
_CACHE = "cache_size=-8192"  # KiB; the indexes of a day's corrections fit
_LOG = "wal_autocheckpoint=4000"  # pages of the log before they move into the file: many are written twice
_IN_LIST = 500  # values in one IN list: SQLite takes at most 999 parameters by default before 3.32
_WRITER_LOCK = 0x455252  # the advisory lock of PostgreSQL writers: SQLite serialises its own


def open_engine(url: str) -> Engine:
    """An engine whose write transactions are serial and durable.

    SQLite: WAL, synchronous=FULL, foreign keys, BEGIN IMMEDIATE for writes. PostgreSQL: an advisory
    lock a write transaction. Both then give the same order of events, which the ledger relies on.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        # the plan of a prepared statement looks a long list of ids up one by one
        unprepared = {"prepare_threshold": None}
        engine = create_engine(parsed, pool_pre_ping=True, json_serializer=_json, connect_args=unprepared)
        event.listen(engine, "begin", _begin_postgresql)
        return engine
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(parsed, connect_args={"timeout": 30}, json_serializer=_json)
    event.listen(engine, "connect", _sqlite_pragmas)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _json(value: object) -> str:
    """As json.dumps, at a fraction of its cost."""
    return to_json(value).decode()


def _sqlite_pragmas(connection: object, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # BEGIN is ours, see _begin_sqlite
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("busy_timeout=30000", "synchronous=FULL", "foreign_keys=ON", _CACHE, _LOG):
        cursor.execute(f"PRAGMA {pragma}")
    _enter_wal(cursor)
    cursor.close()


def _enter_wal(cursor: sqlite3.Cursor) -> None:
    """Switch write-ahead logging on, and wait for others that do, which SQLite does not on a new file."""
    for pause in (*_WAL_PAUSES, None):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if pause is None or "locked" not in str(error):
                raise
            time.sleep(pause)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get(_WRITE, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")
    else:  # one snapshot for the whole of a read, as SQLite gives it
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


@contextmanager
def transaction(engine: Engine, *, write: bool) -> Iterator[Connection]:
    """One transaction: committed at the end of the block, rolled back on any exception.

    Raises UnavailableError if the database does not answer or stays locked, LedgerError if it is damaged.
    """
    try:
        with engine.connect().execution_options(**{_WRITE: write}) as connection, connection.begin():
            yield connection
    except OperationalError as error:
        raise UnavailableError(
            f"the ledger does not answer: {error.orig}", hint="check database_url and disk"
        ) from error
    except DatabaseError as error:
        if "malformed" in str(error.orig) or "not a database" in str(error.orig):
            raise LedgerError(
                f"the ledger is damaged: {error.orig}", hint="restore the newest backup of data_dir"
            ) from error
        raise


def in_chunks(values: Iterable[Value]) -> Iterator[list[Value]]:
    """Yield the distinct values in their order, cut to the length that one IN list may have."""
    distinct = list(dict.fromkeys(values))
    return (distinct[start : start + _IN_LIST] for start in range(0, len(distinct), _IN_LIST))


def no_later(connection: Connection, change: Update, column: Column[Any], now: datetime) -> None:
    """Set a column of dates to ``now`` where it is later."""
    latest = to_text(now)
    connection.execute(change.where(column > latest).values({column: latest}))


def check_integrity(engine: Engine) -> None:
    """Raise LedgerError if SQLite's own check finds damage."""
    if engine.dialect.name != "sqlite":
        return
    with transaction(engine, write=False) as connection:
        verdict = connection.execute(text("PRAGMA quick_check(1)")).scalar_one()
    if verdict != "ok":
        raise LedgerError(f"the ledger is damaged: {verdict}", hint="restore the newest backup of data_dir")


def schema_version(engine: Engine) -> str | None:
    """The number of the newest migration of the ledger, or None before the first."""
    with transaction(engine, write=False) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def is_founded(url: str) -> bool:
    """Whether there is a ledger at ``url``. Creates nothing, raises UnavailableError without an answer."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not (parsed.database and Path(parsed.database).exists()):
        return False
    engine = open_engine(url)
    try:
        return schema_version(engine) is not None
    finally:
        engine.dispose()


def newest_version() -> str:
    """The number of the newest migration that this code knows."""
    head = ScriptDirectory.from_config(_alembic()).get_current_head()
    return head or ""


def require_schema(engine: Engine) -> None:
    """Raise LedgerError unless the ledger has the schema of this code. Changes nothing."""
    current, newest = schema_version(engine), newest_version()
    if current == newest:
        return
    _refuse_newer(current, newest)
    raise LedgerError(
        f"the ledger has schema {current}, this Errata needs {newest}",
        hint="stop errata run and all workers, then run errata migrate",
    )


def migrate(engine: Engine) -> bool:
    """Bring the ledger to the newest schema, which several processes may do at once.

    Returns whether there was anything to do. Raises LedgerError if the ledger was written by a newer Errata.
    """
    current, newest = schema_version(engine), newest_version()
    if current == newest:
        return False
    _refuse_newer(current, newest)
    settings = _alembic()
    with transaction(engine, write=True) as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "head")
    return True


def _refuse_newer(current: str | None, newest: str) -> None:
    if current is not None and current > newest:
        raise LedgerError(
            f"the ledger has schema {current}, this Errata knows {newest}", hint="install the newer Errata"
        )


def _alembic() -> AlembicConfig:
    settings = AlembicConfig()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return settings
