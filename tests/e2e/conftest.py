"""SmolLM2 with its statistics, prepared once a session, and a house to run it in."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house import NEWS, House
from tests.once import made_once


@pytest.fixture(scope="session")
def statistics(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    """The folder of statistics that ``errata prepare`` makes."""

    def prepare(folder: Path) -> None:
        place = House(tmp_path_factory.mktemp("prepared"), model_path)
        place.errata("prepare")
        place.kill()
        shutil.copytree(place.config.data_dir / "statistics", folder, dirs_exist_ok=True)

    return made_once(tmp_path_factory, "smollm2-statistics", prepare)


@pytest.fixture
def house(
    tmp_path: Path, model_path: Path, statistics: Path, redis_binary: Path
) -> Iterator[Callable[..., House]]:
    """Makes a house, of which nothing runs any more when the test ends."""
    made: list[House] = []

    def make(**sections: Any) -> House:
        place = House(tmp_path, model_path, **sections)
        shutil.copytree(statistics, place.config.data_dir / "statistics")
        made.append(place)
        return place

    yield make
    for one in made:
        one.kill()


@pytest.fixture(scope="session")
def school(
    tmp_path_factory: pytest.TempPathFactory, model_path: Path, statistics: Path, redis_binary: Path
) -> House:
    """A house that has learned all news and was stopped."""
    place = House(tmp_path_factory.mktemp("school"), model_path)
    shutil.copytree(statistics, place.config.data_dir / "statistics")
    try:
        place.say_news()
        place.start()
        place.wait(place.drained(len(NEWS)), 120)
        place.wait(lambda: bool(place.chain()[-1]["state"] == "live"))
        place.stop()
    finally:
        place.kill()
    return place


@pytest.fixture
def taught(tmp_path: Path, model_path: Path, school: House) -> Iterator[House]:
    """A copy of that house, for one test to do with as it likes."""
    folder = tmp_path / "taught"
    shutil.copytree(school.folder, folder)
    place = House(folder, model_path)
    yield place
    place.kill()
