"""The interface of a feed: raw items with their positions, and a cursor from which to resume.

A new kind is a file with a class that is made from its section of the configuration, named in ``_KINDS``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Protocol

from daemon.core.errors import ConfigError

Cursor = dict[str, Any]
"""How far a feed was read, as JSON; committed in the transaction that admits the items."""


@dataclass(frozen=True)
class RawItem:
    """One item as it came, and its place in the source, worded for an operator."""

    raw: bytes
    position: str


@dataclass(frozen=True)
class Pull:
    """The result of one pull, and whether the next one has items at once."""

    items: list[RawItem]
    cursor: Cursor
    more: bool


class Feed(Protocol):
    """A source of corrections that can be read again from any cursor that it returned."""

    @property
    def name(self) -> str:
        """The feed's name in the ledger, in metrics and in switches."""

    @property
    def trust(self) -> int:
        """How trusted the feed is, from 0 to 100, which decides between statements of equal times."""

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Read at most ``limit`` items from ``cursor`` on ({}: from the start), without lasting effects.

        Raises FeedError if the source cannot be read now; the cursor stays where it is.
        """


class FeedConfig(Protocol):
    """The part that the configuration sections of all feeds share."""

    @property
    def kind(self) -> str:
        """The kind of feed, which is a key of ``_KINDS``."""


# module:class, imported when a feed of the kind is configured: its dependencies may be heavy or absent
_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "jsonl": "daemon.feeds.jsonl:JsonlFeed",
        "http": "daemon.feeds.http:HttpFeed",
        "rss": "daemon.feeds.rss:RssFeed",
        "wikidata": "daemon.feeds.wikidata:WikidataFeed",
        "redis_stream": "daemon.feeds.redis_stream:RedisStreamFeed",
        "webhook": "daemon.feeds.webhook:WebhookFeed",
    }
)


def make_feed(config: FeedConfig) -> Feed:
    """Make the feed that a section of the configuration describes, or raise ConfigError at another kind."""
    target = _KINDS.get(config.kind)
    if target is None:
        raise ConfigError(f"no feed of kind {config.kind!r}", hint=f"known kinds: {', '.join(_KINDS)}")
    module, _, name = target.partition(":")
    feed: Feed = getattr(import_module(module), name)(config)
    return feed
