"""Ledgers for unit tests, on SQLite always and on PostgreSQL where a server can be had."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.core.ledger import Ledger
from tests import postgres
from tests.conftest import absent
from tests.ledgers import FakeClock, found


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """One PostgreSQL server for the whole run."""
    try:
        with postgres.server() as url:
            yield url
    except postgres.NoPostgresError as error:
        absent(f"no PostgreSQL: {error}")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of each kind that Errata supports."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.sqlite'}"
        return
    with postgres.database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until it is turned."""
    return FakeClock()


@pytest.fixture
def ledger(ledger_url: str, clock: FakeClock) -> Iterator[Ledger]:
    """An open ledger with revision 0, on each kind of database."""
    opened = Ledger.open(ledger_url, clock)
    found(opened)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_ledger(tmp_path: Path, clock: FakeClock) -> Iterator[Ledger]:
    """An open ledger with revision 0 on SQLite, for what does not depend on the database."""
    opened = Ledger.open(f"sqlite:///{tmp_path / 'one.sqlite'}", clock)
    found(opened)
    yield opened
    opened.close()
