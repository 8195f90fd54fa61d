"""The sections ``[[feeds]]`` and ``[admission]``: sources of corrections, and rules for their admission."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from daemon.core.config.base import Section
from daemon.core.names import NAME_PATTERN

_MIB = 1 << 20


class FeedSection(Section):
    """Keys that every feed has."""

    name: str = Field(pattern=NAME_PATTERN, description="name in ledger and metrics")
    trust: int = Field(50, ge=0, le=100, description="0 to 100, of which the higher wins at equal times")
    chunk_items: int = Field(500, ge=1, description="items admitted in one transaction")
    items_per_second: float = Field(0, ge=0, description="token bucket: items taken per second (0: no limit)")
    burst_items: int = Field(1_000, ge=1, description="token bucket: items taken at once after a pause")
    quarantine_limit: int = Field(
        500, ge=0, description="refused items within an hour after which the feed pauses itself (0: never)"
    )


class _WebSection(FeedSection):
    """Keys of the feeds that read from a server."""

    hosts: tuple[str, ...] = Field((), description="hosts that may be contacted (none: only that of the url)")
    allow_private: bool = Field(False, description="also allow hosts of this machine or network, and http")
    token_file: Path | None = Field(None, description="file with a bearer token for the url's host")
    max_bytes: int = Field(16 * _MIB, ge=1, description="largest response in bytes, decompressed")
    timeout_seconds: float = Field(30, gt=0, description="time limit of one whole response")


class JsonlFeedConfig(FeedSection):
    """A feed that follows a growing file of JSON lines."""

    kind: Literal["jsonl"]
    path: Path = Field(description="the file, relative to the configuration's folder")


class HttpFeedConfig(_WebSection):
    """A feed that polls a URL for JSON or JSON lines."""

    kind: Literal["http"]
    url: str = Field(description="https URL")
    every_seconds: float = Field(60, ge=0, description="time between requests")
    items: str = Field("", description="place of the list in the JSON, keys joined by dots (empty: whole)")
    next: str = Field("", description="place of the next page's URL in the JSON, besides the Link header")


class RssFeedConfig(_WebSection):
    """A feed of RSS or Atom entries, from which a pattern with named groups makes corrections."""

    kind: Literal["rss"]
    url: str = Field(description="https URL")
    every_seconds: float = Field(300, ge=0, description="time between requests")
    field: str = Field("title", description="field of an entry that is matched against the pattern")
    pattern: str = Field(description="regular expression with the groups subject and object")
    relation: str = Field(description="name or property of the relation table, or any name with a prompt")
    prompt_before: str = Field("", description="prompt up to the subject (empty: that of the relation table)")
    prompt_after: str = Field("", description="prompt after the subject")

    @field_validator("pattern")
    @classmethod
    def _has_groups(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        if not {"subject", "object"} <= set(groups):
            raise ValueError("the pattern needs the groups (?P<subject>…) and (?P<object>…)")
        return pattern


class WikidataFeedConfig(_WebSection):
    """A feed of statements that changed in Wikidata."""

    kind: Literal["wikidata"]
    url: str = Field(
        "https://stream.wikimedia.org/v2/stream/recentchange", description="stream of recent changes"
    )
    api_url: str = Field("https://www.wikidata.org/w/api.php", description="the entity API")
    wiki: str = Field("wikidatawiki", description="only changes of this wiki")
    language: str = Field("en", pattern=r"^[a-z][a-z-]{1,15}$", description="language of the labels")
    relations: tuple[str, ...] = Field((), description="only these properties (none: the whole table)")
    bots: bool = Field(True, description="also take changes by bots")


class RedisStreamFeedConfig(FeedSection):
    """A feed that reads a Redis stream as a member of a consumer group."""

    kind: Literal["redis_stream"]
    url: SecretStr = Field(description="Redis URL")
    stream: str = Field(min_length=1, description="key of the stream")
    group: str = Field("errata", min_length=1, description="consumer group, created if it does not exist")
    field: str = Field("json", description="field of an entry that holds the correction")


class WebhookFeedConfig(FeedSection):
    """A feed that others push to with POST /v1/corrections and the header X-Errata-Feed."""

    kind: Literal["webhook"]
    secret_file: Path | None = Field(
        None,
        description="file with the key of X-Errata-Signature, HMAC-SHA256 (none: bearer token or loopback)",
    )


FeedConfig = Annotated[
    JsonlFeedConfig
    | HttpFeedConfig
    | RssFeedConfig
    | WikidataFeedConfig
    | RedisStreamFeedConfig
    | WebhookFeedConfig,
    Field(discriminator="kind"),
]
FEED_SECTIONS: tuple[type[FeedSection], ...] = (
    JsonlFeedConfig, HttpFeedConfig, RssFeedConfig, WikidataFeedConfig, RedisStreamFeedConfig,
    WebhookFeedConfig,
)  # fmt: skip
_FILES = ("path", "token_file", "secret_file")


def resolved_feed(feed: "FeedConfig", folder: Path) -> "FeedConfig":
    """Return the feed with absolute paths of its files, relative ones taken from ``folder``."""
    files = {key: getattr(feed, key, None) for key in _FILES}
    return feed.model_copy(update={key: folder / path for key, path in files.items() if path is not None})


class AdmissionConfig(Section):
    """Rules for corrections that are admitted, refused or left to a human."""

    allow_relations: tuple[str, ...] = Field((), description="only these relations (none: all)")
    deny_relations: tuple[str, ...] = Field((), description="never these relations")
    deny_subjects: tuple[str, ...] = Field((), description="never these subjects")
    protected_subjects: tuple[str, ...] = Field((), description="these subjects only with a human's approval")
    high_impact: tuple[str, ...] = Field((), description="relations that several sources must agree on")
    quorum: int = Field(2, ge=2, description="sources of different feeds that must agree on high impact")
    approve_below_trust: int = Field(0, ge=0, le=100, description="feeds with less trust need a human")
    contradiction_seconds: float = Field(
        0, ge=0, description="sources that disagree within this time are left to a human (0: the newest wins)"
    )

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        both = {name.casefold() for name in self.allow_relations} & {
            name.casefold() for name in self.deny_relations
        }
        if both:
            raise ValueError(f"allowed and denied at once: {', '.join(sorted(both))}")
        return self
