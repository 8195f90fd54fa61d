"""The ground on which lives are cut short."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import LIVES
from tests.crash.life import Failpoint, Life, write_story


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, by far on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Counter[str]:
    """Return the counts so far, to which a test adds one after each killed process that recovered."""
    return request.config.stash[LIVES]


@pytest.fixture(scope="session")
def ground() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process keeps its pages, so no disk is needed."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        write_story(Path(folder) / "story.jsonl")
        yield Path(folder)


@pytest.fixture(scope="session")
def template(ground: Path) -> Path:
    """A founded installation in which nothing has happened yet."""
    life = Life(ground / "template")
    life.found()
    close_whole(life)
    return ground / "template"


@pytest.fixture(scope="session")
def reference(template: Path) -> tuple[list[str], dict[str, str]]:
    """The points that an undisturbed life passes, and how each of its corrections ends."""
    folder = copy_of(template)
    points = Failpoint()
    life = Life(folder, points)
    life.go_on()
    life.check()
    end = life.end()
    life.close()
    shutil.rmtree(folder)
    assert sorted(set(end.values())) == ["applied", "confirmed", "quarantined", "retracted", "superseded"]
    return points.names, end


def copy_of(template: Path) -> Path:
    """A copy of an installation beside it."""
    folder = Path(tempfile.mkdtemp(dir=template.parent))
    shutil.copytree(template, folder, dirs_exist_ok=True)
    return folder


def close_whole(life: Life) -> None:
    """Close with everything in the one file of the ledger, so that the folder can be copied."""
    with life.ledger.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    life.close()
