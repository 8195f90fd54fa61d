"""A server for feeds to ask, and the ledgers of the unit tests."""

from collections.abc import Iterator

import pytest

from tests.feeds.servers import Answers, serving
from tests.unit.conftest import clock, sqlite_ledger, sqlite_template

__all__ = ["clock", "sqlite_ledger", "sqlite_template"]


@pytest.fixture
def web() -> Iterator[Answers]:
    """A server on loopback."""
    with serving() as answers:
        yield answers
