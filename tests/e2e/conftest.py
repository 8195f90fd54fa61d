"""The tiny model, trained once a session, and a house to run it in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house import House
from tests.tiny import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def house(tmp_path: Path, tiny_model: Path, redis_binary: Path) -> Iterator[Callable[..., House]]:
    made: list[House] = []

    def make(**sections: Any) -> House:
        made.append(House(tmp_path, tiny_model, **sections))
        return made[-1]

    yield make
    for one in made:
        one.kill()
