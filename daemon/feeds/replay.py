"""Reading a feed again from an earlier place; what the ledger has is dropped at admission."""

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
_TOPICS = ("eqiad.mediawiki.recentchange", "codfw.mediawiki.recentchange")


def replay(ledger: Ledger, feed: FeedSection, since: str, who: str, reason: str) -> Cursor:
    """Set a feed's cursor: to its start, to a moment, or to a cursor in JSON; returns what it was.

    Raises:
        ConfigError: the feed cannot be read from there.
    """
    cursor = _cursor(feed, since)
    with ledger.write() as connection:
        row = find_feed(connection, feed.name)
        before: Cursor = dict(row["cursor"]) if row is not None else {}
        move_cursor(connection, feed.name, cursor)
        details = {"from": since, "before": before}
        audit.record(connection, ledger.clock.now(), who, "replay", feed_switch(feed.name), reason, details)
    return before


def _cursor(feed: FeedSection, since: str) -> Cursor:
    if isinstance(feed, RedisStreamFeedConfig):
        raise ConfigError(
            "a Redis stream is read again by its group", hint=f"XGROUP SETID {feed.stream} {feed.group} ID"
        )
    if since == START:
        return {}
    if since.lstrip().startswith("{"):
        try:
            cursor = json.loads(since)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"--from is no JSON: {error}") from error
        return dict(cursor)
    try:
        moment = datetime.fromisoformat(since)
    except ValueError as error:
        raise ConfigError(
            f"--from {since[:40]!r} is neither start, nor a cursor in JSON, nor a time"
        ) from error
    if not isinstance(feed, WikidataFeedConfig) or moment.tzinfo is None:
        raise ConfigError("only a stream of Wikidata can be read from a moment, given with its zone")
    at = int(moment.timestamp() * 1000)
    return {"last_event_id": json.dumps([{"topic": t, "partition": 0, "timestamp": at} for t in _TOPICS])}
