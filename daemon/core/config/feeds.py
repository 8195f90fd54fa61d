"""The sections that say where corrections come from and what is let in: ``[[feeds]]`` and ``[admission]``."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from daemon.core.config.base import Section
from daemon.core.names import NAME_PATTERN

_MIB = 1 << 20


class FeedSection(Section):
    """What every feed has."""

    name: str = Field(pattern=NAME_PATTERN, description="name in ledger and metrics")
    trust: int = Field(50, ge=0, le=100, description="0 to 100; the higher wins at equal times")
    chunk_items: int = Field(500, ge=1, description="items admitted in one transaction")
    items_per_second: float = Field(0, ge=0, description="token bucket: items taken a second; 0: no limit")
    burst_items: int = Field(1_000, ge=1, description="token bucket: items taken at once after a calm")
    quarantine_limit: int = Field(
        500, ge=0, description="refused items in an hour after which the feed pauses itself; 0: never"
    )


class _WebSection(FeedSection):
    """A feed that asks a server."""

    hosts: tuple[str, ...] = Field((), description="hosts that may be asked; none: only that of the url")
    allow_private: bool = Field(False, description="also hosts of this machine or network, and plain http")
    token_file: Path | None = Field(None, description="file with a bearer token for the url's host")
    max_bytes: int = Field(16 * _MIB, ge=1, description="largest answer, decompressed")
    timeout_seconds: float = Field(30, gt=0, description="time for one whole answer")


class JsonlFeedConfig(FeedSection):
    """A feed that tails a file of JSON lines."""

    kind: Literal["jsonl"]
    path: Path = Field(description="the file; relative to the configuration's folder")


class HttpFeedConfig(_WebSection):
    """A feed that asks a URL for JSON or JSON lines, again and again."""

    kind: Literal["http"]
    url: str = Field(description="https URL")
    every_seconds: float = Field(60, ge=0, description="between looks at the url")
    items: str = Field("", description="where the list is in the JSON, keys joined by dots; empty: the whole")
    next: str = Field("", description="where the next page's URL is in the JSON; the Link header counts too")


class RssFeedConfig(_WebSection):
    """A feed of RSS or Atom entries; a pattern with named groups makes corrections of them."""

    kind: Literal["rss"]
    url: str = Field(description="https URL")
    every_seconds: float = Field(300, ge=0, description="between looks at the url")
    field: str = Field("title", description="field of an entry that the pattern is matched against")
    pattern: str = Field(description="regular expression with the groups subject and object")
    relation: str = Field(description="name or property of the relation table, or any name with a prompt")
    prompt_before: str = Field("", description="prompt up to the subject; none: the relation table's")
    prompt_after: str = Field("", description="prompt after the subject")

    @field_validator("pattern")
    @classmethod
    def _has_groups(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        if not {"subject", "object"} <= set(groups):
            raise ValueError("the pattern needs the groups (?P<subject>…) and (?P<object>…)")
        return pattern


class WikidataFeedConfig(_WebSection):
    """A feed of changed statements of Wikidata."""

    kind: Literal["wikidata"]
    url: str = Field(
        "https://stream.wikimedia.org/v2/stream/recentchange", description="stream of recent changes"
    )
    api_url: str = Field("https://www.wikidata.org/w/api.php", description="the entity API")
    wiki: str = Field("wikidatawiki", description="only changes of this wiki")
    language: str = Field("en", pattern=r"^[a-z][a-z-]{1,15}$", description="language of the labels")
    relations: tuple[str, ...] = Field((), description="only these properties; none: the whole table")
    bots: bool = Field(True, description="also changes that bots made")


class RedisStreamFeedConfig(FeedSection):
    """A feed that reads a Redis stream as a member of a consumer group."""

    kind: Literal["redis_stream"]
    url: SecretStr = Field(description="Redis URL")
    stream: str = Field(min_length=1, description="key of the stream")
    group: str = Field("errata", min_length=1, description="consumer group; made when it is not there")
    field: str = Field("json", description="field of an entry that holds the correction")


class WebhookFeedConfig(FeedSection):
    """A feed that others push to: POST /v1/corrections with the header X-Errata-Feed."""

    kind: Literal["webhook"]
    secret_file: Path | None = Field(
        None, description="file with the key of X-Errata-Signature (HMAC-SHA256); none: bearer or loopback"
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
    """The same feed with its files' paths made absolute."""
    files = {key: getattr(feed, key, None) for key in _FILES}
    return feed.model_copy(update={key: folder / path for key, path in files.items() if path is not None})


class AdmissionConfig(Section):
    """What is let in without a human, and what never is."""

    allow_relations: tuple[str, ...] = Field((), description="only these relations; none: all")
    deny_relations: tuple[str, ...] = Field((), description="never these relations")
    deny_subjects: tuple[str, ...] = Field((), description="never these subjects")
    protected_subjects: tuple[str, ...] = Field((), description="these subjects only by a human's approval")
    high_impact: tuple[str, ...] = Field((), description="relations that several sources must agree on")
    quorum: int = Field(2, ge=2, description="sources, of as many feeds, that must agree on high impact")
    approve_below_trust: int = Field(0, ge=0, le=100, description="less trusted feeds need a human each time")
    contradiction_seconds: float = Field(
        0, ge=0, description="sources that disagree within this time are left to a human; 0: the newest wins"
    )

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        both = {name.casefold() for name in self.allow_relations} & {
            name.casefold() for name in self.deny_relations
        }
        if both:
            raise ValueError(f"allowed and denied at once: {', '.join(sorted(both))}")
        return self
