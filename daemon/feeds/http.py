"""A feed that asks a URL for pages of JSON or JSON lines, and keeps its place within the page."""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from daemon.core.config.feeds import HttpFeedConfig
from daemon.core.errors import FeedError
from daemon.feeds.base import Cursor, Pull, RawItem
from daemon.feeds.conditional import conditions, is_too_early, validators
from daemon.feeds.guard import Answer, Web

_JSON_LINES = ("ndjson", "jsonl", "json-seq", "jsonlines")


@dataclass(frozen=True)
class Page:
    """One page, kept between pulls so that it is fetched once."""

    digest: str
    items: tuple[bytes, ...]
    next: str
    validators: dict[str, str]


class HttpFeed:
    """Pages of JSON, read from the configured URL on, and again every ``every_seconds``.

    A single page is asked for conditionally. The cursor holds the page's URL and digest and the place in it:
    a page that changed meanwhile is read anew, and admission drops the items that the ledger has.
    """

    def __init__(self, config: HttpFeedConfig) -> None:
        self.name, self.trust = config.name, config.trust
        self._config = config
        self._web = Web.of(config, config.url)
        self._page: Page | None = None

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Return at most ``limit`` items of the page that is being read.

        Raises FeedError if the server cannot be asked, or its answer is not JSON.
        """
        url, index = str(cursor.get("url") or self._config.url), int(cursor.get("index", 0))
        page = self._page
        if page is None or page.digest != cursor.get("digest") or index >= len(page.items):
            is_read = index == 0 and not cursor.get("unread")
            if is_read and is_too_early(cursor, self._config.every_seconds):
                return Pull([], cursor, more=False)
            page = self._fetch(url, cursor if is_read else {})
            if page is None:
                return Pull([], {**cursor, "asked_at": time.time()}, more=False)
            index = index if page.digest == cursor.get("digest") else 0
            self._page = page
        return self._read(url, page, index, limit)

    def _read(self, url: str, page: Page, index: int, limit: int) -> Pull:
        """Return items of a page, and the cursor within it, on the next one or back at the first."""
        items = page.items[index : index + limit]
        path = urlsplit(url).path or "/"
        raw = [RawItem(item, f"{path[:80]} item {index + n}") for n, item in enumerate(items, start=1)]
        end = index + len(items)
        cursor: Cursor = {"url": url, "digest": page.digest, "asked_at": time.time(), **page.validators}
        if end < len(page.items):
            return Pull(raw, {**cursor, "index": end, "unread": True}, more=True)
        if page.next and page.next != url:
            return Pull(raw, {"url": page.next, "unread": True}, more=True)
        if url != self._config.url:  # any of several pages may have changed, so all are read again
            return Pull(raw, {"asked_at": time.time()}, more=False)
        return Pull(raw, {**cursor, "index": 0, "unread": False}, more=False)

    def _fetch(self, url: str, cursor: Cursor) -> Page | None:
        """Return the page at a URL, or None where it has not changed."""
        accept = {"accept": "application/json, application/x-ndjson"}
        answer = self._web.get(url, accept | conditions(cursor))
        if answer.status == 304:
            return None
        digest = hashlib.sha256(answer.body).hexdigest()[:16]
        if cursor.get("digest") == digest:
            return None
        items, following = self._parsed(answer)
        return Page(digest, items, urljoin(answer.url, following) if following else "", validators(answer))

    def _parsed(self, answer: Answer) -> tuple[tuple[bytes, ...], str]:
        """Return the items of a page, each as JSON bytes, and the next page's URL."""
        following = _link(answer)
        if any(word in answer.headers.get("content-type", "") for word in _JSON_LINES):
            return tuple(line for line in answer.body.splitlines() if line.strip()), following
        try:
            document = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            lines = [line for line in answer.body.splitlines() if line.strip()]
            if len(lines) > 1 and lines[0].lstrip().startswith(b"{"):
                return tuple(lines), following
            raise FeedError(f"the answer of {self._config.url} is not JSON") from error
        items = _at(document, self._config.items) if self._config.items else document
        if isinstance(items, dict) and not self._config.items:
            items = [items]
        if not isinstance(items, list):
            raise FeedError(
                f"there is no list at {self._config.items!r}",
                hint="correct the key items of the feed in [[feeds]]",
            )
        further = _at(document, self._config.next) if self._config.next else None
        raw = tuple(json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass") for item in items)
        return raw, further if isinstance(further, str) else following


def _at(document: Any, path: str) -> Any:
    """Return the value behind dotted keys, or None."""
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _link(answer: Answer) -> str:
    """Return the target of a Link header with rel=next, or an empty string."""
    links = httpx.Response(200, headers=answer.headers).links
    return str(links.get("next", {}).get("url", ""))
