"""Ledgers for unit tests on SQLite, and on PostgreSQL where a server is available."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from daemon.core.ledger.ledger import Ledger
from tests import postgres
from tests.ledgers import FakeClock, found


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of an empty database of each supported kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    with postgres.database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a ledger with revision 0 to copy, so that migrations run only once."""
    path = tmp_path_factory.mktemp("template") / "ledger.sqlite"
    _founded(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    """Return the name of such a database on PostgreSQL."""
    with postgres.database(postgres_server) as url:
        _founded(url)
        yield str(make_url(url).database)


def _founded(url: str) -> None:
    ledger = Ledger.open(url, FakeClock())
    found(ledger)
    with ledger.engine.connect() as connection:
        if ledger.engine.dialect.name == "sqlite":  # move the log into the file that is copied
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger(request: pytest.FixtureRequest, clock: FakeClock) -> Iterator[Ledger]:
    """Open a ledger with revision 0 on each kind of database."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield request.getfixturevalue("sqlite_ledger")
            return
        server = request.getfixturevalue("postgres_server")
        template = request.getfixturevalue("postgres_template")
        opened = Ledger.open(stack.enter_context(postgres.database(server, template)), clock)
        stack.callback(opened.close)
        yield opened


@pytest.fixture
def sqlite_ledger(sqlite_template: Path, tmp_path: Path, clock: FakeClock) -> Iterator[Ledger]:
    """Open a ledger with revision 0 on SQLite, for tests that do not depend on the database."""
    path = tmp_path / "founded.sqlite"
    shutil.copyfile(sqlite_template, path)
    opened = Ledger.open(f"sqlite:///{path}", clock)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that moves only when told to."""
    return FakeClock()
