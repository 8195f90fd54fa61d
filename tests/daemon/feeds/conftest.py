"""A server for feeds to ask."""

from collections.abc import Iterator

import pytest

from tests.daemon.feeds.servers import Answers, serving


@pytest.fixture
def web() -> Iterator[Answers]:
    """A server on loopback."""
    with serving() as answers:
        yield answers
