"""The same life with its ledger on PostgreSQL: killed at named points, it ends as the undisturbed one did."""

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests import postgres
from tests.conftest import is_full
from tests.crash.conftest import copy_of
from tests.crash.life import Failpoint, Life, die, ended, fork

pytestmark = pytest.mark.postgres


@dataclass(frozen=True)
class Ground:
    """A founded installation: a database to copy, and the folder of its store."""

    server: str
    database: str
    folder: Path


@pytest.fixture(scope="module")
def founded(ground: Path, postgres_server: str) -> Iterator[Ground]:
    folder = ground / "postgres"
    with postgres.database(postgres_server) as url:
        life = Life(folder, url=url)
        life.found()
        life.close()
        yield Ground(postgres_server, str(make_url(url).database), folder)


def names_and_end(founded: Ground) -> tuple[list[str], dict[str, str]]:
    """The points of an undisturbed life, and how its corrections end."""
    folder = copy_of(founded.folder)
    points = Failpoint()
    with postgres.database(founded.server, founded.database) as url:
        life = Life(folder, points, url=url)
        life.go_on()
        life.check()
        end = life.end()
        life.close()
    shutil.rmtree(folder)
    return points.names, end


@pytest.mark.timeout(900)
def test_killed_at_points_of_a_life_on_postgresql(
    founded: Ground, reference: tuple[list[str], dict[str, str]], tally: Counter[str]
) -> None:
    names, end = names_and_end(founded)
    assert end == reference[1], "another database, another end"
    for at in range(1, len(names) + 1, 6 if is_full() else 80):
        folder = copy_of(founded.folder)
        with postgres.database(founded.server, founded.database) as url:
            pid = fork(
                lambda at=at, folder=folder, url=url: Life(folder, Failpoint(at, die), url=url).go_on()
            )
            assert ended(pid) != 0, (at, names[at - 1])
            life = Life(folder, ahead=60.0, url=url)
            life.check()
            life.go_on()
            life.check()
            assert life.end() == end, (at, names[at - 1])
            life.close()
        shutil.rmtree(folder)
        tally["killed at a named point, PostgreSQL"] += 1
