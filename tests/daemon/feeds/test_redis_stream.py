"""The feed of a Redis stream: nothing is acknowledged before it was admitted, nothing is lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from daemon.admission.admit import pull_feed
from daemon.core.config.feeds import RedisStreamFeedConfig
from daemon.core.errors import FeedError
from daemon.core.ledger.ledger import Ledger
from daemon.embedded.redis_server import PrivateRedis
from daemon.feeds.base import make_feed
from daemon.feeds.redis_stream import RedisStreamFeed
from tests.ledgers import statement, states

pytestmark = pytest.mark.redis


@pytest.fixture
def server(tmp_path: Path, redis_binary: Path) -> Iterator[PrivateRedis]:
    with PrivateRedis(tmp_path / "redis", redis_binary) as running:
        yield running


def feed_of(server: PrivateRedis) -> RedisStreamFeed:
    section = RedisStreamFeedConfig(kind="redis_stream", name="stream", url=server.url, stream="facts")
    made = make_feed(section)
    assert isinstance(made, RedisStreamFeed)
    return made


def add(client: "redis.Redis", number: int) -> None:
    client.xadd("facts", {"json": json.dumps(statement(f"Land {number}", "Town", 1))})


def pending(client: "redis.Redis") -> int:
    return int(client.xpending("facts", "errata")["pending"])


def test_entries_are_acknowledged_once_they_are_in_the_ledger(
    server: PrivateRedis, sqlite_ledger: Ledger
) -> None:
    client, feed = redis.Redis.from_url(server.url), feed_of(server)
    assert pull_feed(sqlite_ledger, feed, 10).decisions == ()
    for number in range(5):
        add(client, number)
    assert len(pull_feed(sqlite_ledger, feed, 3).decisions) == 3
    assert pending(client) == 3
    assert len(pull_feed(sqlite_ledger, feed, 3).decisions) == 2
    pull_feed(sqlite_ledger, feed, 3)
    assert pending(client) == 0
    assert len(states(sqlite_ledger)) == 5


def test_what_was_given_out_and_not_admitted_is_given_again(
    server: PrivateRedis, sqlite_ledger: Ledger
) -> None:
    client = redis.Redis.from_url(server.url)
    for number in range(4):
        add(client, number)
    feed_of(server).pull({}, 2)  # the daemon dies here: read, not admitted
    for _ in range(4):
        pull_feed(sqlite_ledger, feed_of(server), 2)
    assert len(states(sqlite_ledger)) == 4
    assert pending(client) == 0


def test_fields_may_be_the_corrections_keys_and_garbage_is_held(
    server: PrivateRedis, sqlite_ledger: Ledger
) -> None:
    client = redis.Redis.from_url(server.url)
    client.xadd("facts", {"subject": "Peru", "prompt": "The capital of Peru is", "object": "Cusco"})
    client.xadd("facts", {b"json": b"\xff\x00"})
    client.xadd("facts", {b"\xff": b"\xfe"})
    report = pull_feed(sqlite_ledger, feed_of(server), 10)
    assert [str(one.outcome) for one in report.decisions] == ["accepted", "quarantined", "quarantined"]


def test_a_key_of_another_type_and_a_server_that_is_gone_are_errors_of_the_feed(server: PrivateRedis) -> None:
    redis.Redis.from_url(server.url).set("facts", "x")
    with pytest.raises(FeedError):
        feed_of(server).pull({}, 1)
    gone = RedisStreamFeedConfig(kind="redis_stream", name="s", url="redis://127.0.0.1:1", stream="s")
    with pytest.raises(FeedError):
        make_feed(gone).pull({}, 1)
