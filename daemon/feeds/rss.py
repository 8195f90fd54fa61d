"""A feed of the RSS or Atom entries that match a pattern with named groups."""

import hashlib
import io
import json
import re
import time
from calendar import timegm
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import feedparser

from daemon.core.clock import to_text
from daemon.core.config.feeds import RssFeedConfig
from daemon.core.errors import FeedError
from daemon.feeds.base import Cursor, Pull, RawItem
from daemon.feeds.conditional import conditions, is_too_early, validators
from daemon.feeds.guard import Web

_SEEN = 2_000  # entries whose keys the cursor keeps, so that each is returned once
_TEXT = 500  # characters of a field that the pattern is matched against: it bounds the time of a match
_FORBIDDEN = re.compile(rb"<!\s*(?:DOCTYPE|ENTITY)", re.IGNORECASE)
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\x00<", b"<\x00")


class RssFeed:
    """Entries in order of publication, with those that do not match counted in the cursor."""

    def __init__(self, config: RssFeedConfig) -> None:
        self.name, self.trust, self._config = config.name, config.trust, config
        self._web = Web.of(config, config.url)
        self._pattern = re.compile(config.pattern)

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Return at most ``limit`` new entries.

        Raises FeedError if the server cannot be asked, or its answer is neither RSS nor Atom.
        """
        is_unread = cursor.get("unread")
        if not is_unread and is_too_early(cursor, self._config.every_seconds):
            return Pull([], cursor, more=False)
        headers = {"accept": "application/rss+xml, application/atom+xml, application/xml"}
        answer = self._web.get(self._config.url, headers | ({} if is_unread else conditions(cursor)))
        now: Cursor = {**cursor, "asked_at": time.time(), "unread": False}
        if answer.status == 304:
            return Pull([], now, more=False)
        entries = parse(answer.body, answer.headers.get("content-type", ""))
        return self._take(entries, now | validators(answer), limit)

    def _take(self, entries: list[Mapping[str, Any]], cursor: Cursor, limit: int) -> Pull:
        """Return the oldest entries that were not seen yet."""
        seen = dict.fromkeys(cursor.get("seen", []))
        fresh = [(key, entry) for entry in entries if (key := _key(entry)) not in seen]
        items, dropped = [], int(cursor.get("dropped", {}).get("no_match", 0))
        for key, entry in fresh[:limit]:
            seen[key] = None
            raw = self.correction(entry)
            if raw is None:
                dropped += 1
            else:
                items.append(RawItem(raw, f"entry {_text(entry, 'id') or _text(entry, 'link') or key}"))
        more = len(fresh) > limit
        kept = list(seen)[-max(_SEEN, len(entries)) :]
        return Pull(
            items, {**cursor, "seen": kept, "dropped": {"no_match": dropped}, "unread": more}, more=more
        )

    def correction(self, entry: Mapping[str, Any]) -> bytes | None:
        """Return the correction that an entry states, or None where the pattern does not match."""
        match = self._pattern.search(_text(entry, self._config.field)[:_TEXT])
        if match is None:
            return None
        subject = (match["subject"] or "").strip()
        correction = {
            "subject": subject,
            "object": (match["object"] or "").strip(),
            "relation": self._config.relation,
            "source": _text(entry, "link")[:_TEXT] or self._config.url,
        }
        if self._config.prompt_before or self._config.prompt_after:
            correction["prompt"] = self._config.prompt_before + subject + self._config.prompt_after
        at = entry.get("published_parsed") or dict(entry).get("updated_parsed")
        if at is not None:
            correction["observed_at"] = to_text(datetime.fromtimestamp(timegm(at), UTC))
        return json.dumps(correction).encode()


def parse(body: bytes, content_type: str = "") -> list[Mapping[str, Any]]:
    """Parse the entries of a document, oldest first.

    Raises FeedError at a document type or an entity, at UTF-16, and if it is no feed.
    """
    if _FORBIDDEN.search(body) or body.lstrip()[:2] in _WIDE or body[:2] in _WIDE:
        raise FeedError("the XML declares a document type or entities, or is not in an ASCII-like encoding")
    # a stream, because feedparser would first try bytes as the name of a file
    document = feedparser.parse(io.BytesIO(body), response_headers={"content-type": content_type})
    if not document.get("version") and not document.entries:
        raise FeedError("the answer is neither RSS nor Atom")
    return sorted(document.entries, key=lambda entry: entry.get("published_parsed") or ())


def _key(entry: Mapping[str, Any]) -> str:
    parts = [_text(entry, key) for key in ("id", "link", "title", "published")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""
