"""Read a feed again from an earlier place, where admission drops the items that the ledger has."""

import json
from datetime import datetime

from daemon.core.config.feeds import FeedSection, RedisStreamFeedConfig, WikidataFeedConfig
from daemon.core.errors import ConfigError
from daemon.core.ledger import audit
from daemon.core.ledger.feeds import find_feed, move_cursor
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.switches import feed_switch
from daemon.feeds.base import Cursor

START = "start"
# the stream of changes carries one topic for each of Wikimedia's two data centres
_TOPICS = ("eqiad.mediawiki.recentchange", "codfw.mediawiki.recentchange")


def replay(ledger: Ledger, model: str, feed: FeedSection, since: str, who: str, reason: str) -> Cursor:
    """Set the cursor of a model's feed to its start, a moment or a cursor in JSON, and return the old one.

    Raises ConfigError if the feed cannot be read from there.
    """
    cursor = _cursor(feed, since)
    with ledger.write() as connection:
        row = find_feed(connection, model, feed.name)
        before: Cursor = dict(row["cursor"]) if row is not None else {}
        move_cursor(connection, model, feed.name, cursor)
        details = {"from": since, "before": before}
        audit.record(connection, ledger.clock.now(), who, "replay", feed_switch(feed.name), reason, details)
    return before


def _cursor(feed: FeedSection, since: str) -> Cursor:
    if isinstance(feed, RedisStreamFeedConfig):
        raise ConfigError(
            "the consumer group keeps a Redis stream's place",
            hint=f"XGROUP SETID {feed.stream} {feed.group} ID",
        )
    if since == START:
        return {}
    if since.lstrip().startswith("{"):
        try:
            cursor = json.loads(since)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--from is not JSON: {error}") from error
        return dict(cursor)
    try:
        moment = datetime.fromisoformat(since)
    except ValueError as error:
        raise ConfigError(
            f"--from {since[:40]!r} is neither start, nor a cursor in JSON, nor a time"
        ) from error
    if not isinstance(feed, WikidataFeedConfig) or moment.tzinfo is None:
        raise ConfigError("only a Wikidata feed can be read from a time, and the time needs its zone")
    at = int(moment.timestamp() * 1000)
    return {"last_event_id": json.dumps([{"topic": t, "partition": 0, "timestamp": at} for t in _TOPICS])}
