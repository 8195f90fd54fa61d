"""A feed that asks a URL for JSON or JSON lines: conditional requests, pages, and a place within the page."""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import httpx

from daemon.core.config.feeds import HttpFeedConfig
from daemon.core.errors import FeedError
from daemon.feeds.base import Cursor, Pull, RawItem
from daemon.feeds.guard import Answer, Limits, Web

_JSON_LINES = ("ndjson", "jsonl", "json-seq", "jsonlines")


@dataclass(frozen=True)
class Page:
    """One page, kept between pulls so that what it has is fetched once."""

    digest: str
    items: tuple[bytes, ...]
    next: str
    validators: dict[str, str]


class HttpFeed:
    """Pages of JSON, from the configured URL on, and from there again every ``every_seconds``.

    A single page is asked for conditionally. The cursor says which page, how far in it, and by which
    digest: a page that changed meanwhile is read anew, and admission drops what it knows.
    """

    def __init__(self, config: HttpFeedConfig) -> None:
        self.name, self.trust = config.name, config.trust
        self._config = config
        limits = Limits.of(config, config.url)
        self._web = Web(limits, config.token_file, urlsplit(config.url).hostname or "")
        self._page: Page | None = None

    @classmethod
    def from_config(cls, config: HttpFeedConfig) -> Self:
        """The feed that a ``[[feeds]]`` section describes."""
        return cls(config)

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """At most ``limit`` items of the page that is being read.

        Raises:
            FeedError: the server cannot be asked, or what it says is no JSON.
        """
        url, index = str(cursor.get("url") or self._config.url), int(cursor.get("index", 0))
        page = self._page
        if page is None or page.digest != cursor.get("digest") or index >= len(page.items):
            due = float(cursor.get("asked_at", 0)) + self._config.every_seconds
            if (
                index == 0
                and not cursor.get("unread")
                and 0 <= due - time.time() <= self._config.every_seconds
            ):
                return Pull([], cursor, more=False)
            page = self._fetch(url, cursor if index == 0 and not cursor.get("unread") else {})
            if page is None:
                return Pull([], {**cursor, "asked_at": time.time()}, more=False)
            index = index if page.digest == cursor.get("digest") else 0
            self._page = page
        items = page.items[index : index + limit]
        return self._read(url, page, index, items)

    def _read(self, url: str, page: Page, index: int, items: tuple[bytes, ...]) -> Pull:
        """The pull, and the cursor behind it: within the page, on the next one, or back at the first."""
        path = urlsplit(url).path or "/"
        raw = [RawItem(item, f"{path[:80]} item {index + n}") for n, item in enumerate(items, start=1)]
        end = index + len(items)
        cursor: Cursor = {"url": url, "digest": page.digest, "asked_at": time.time(), **page.validators}
        if end < len(page.items):
            return Pull(raw, {**cursor, "index": end, "unread": True}, more=True)
        if page.next and page.next != url:
            return Pull(raw, {"url": page.next, "unread": True}, more=True)
        if url != self._config.url:  # of several pages any may have changed: all are read again
            return Pull(raw, {"asked_at": time.time()}, more=False)
        return Pull(raw, {**cursor, "index": 0, "unread": False}, more=False)

    def _fetch(self, url: str, cursor: Cursor) -> Page | None:
        """The page at a URL; None: it is what it was."""
        headers = {"accept": "application/json, application/x-ndjson"}
        for header, key in (("if-none-match", "etag"), ("if-modified-since", "modified")):
            if cursor.get(key):
                headers[header] = str(cursor[key])
        answer = self._web.get(url, headers)
        if answer.status == 304:
            return None
        digest = hashlib.sha256(answer.body).hexdigest()[:16]
        if cursor.get("digest") == digest:
            return None
        items, following = self._parsed(answer)
        known = {"etag": answer.headers.get("etag"), "modified": answer.headers.get("last-modified")}
        validators = {key: value[:500] for key, value in known.items() if value}
        return Page(digest, items, urljoin(answer.url, following) if following else "", validators)

    def _parsed(self, answer: Answer) -> tuple[tuple[bytes, ...], str]:
        """The items of a page, each as the bytes that admission will judge, and the next page's URL."""
        following = _link(answer)
        if any(word in answer.headers.get("content-type", "") for word in _JSON_LINES):
            return tuple(line for line in answer.body.splitlines() if line.strip()), following
        try:
            document = json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            lines = [line for line in answer.body.splitlines() if line.strip()]
            if len(lines) > 1 and lines[0].lstrip().startswith(b"{"):
                return tuple(lines), following
            raise FeedError(f"the answer of {self._config.url} is no JSON") from error
        found = _at(document, self._config.items) if self._config.items else document
        if isinstance(found, dict) and not self._config.items:
            found = [found]
        if not isinstance(found, list):
            raise FeedError(f"there is no list at {self._config.items!r}", hint="correct items in [[feeds]]")
        further = _at(document, self._config.next) if self._config.next else None
        raw = tuple(json.dumps(item, ensure_ascii=False).encode("utf-8", "surrogatepass") for item in found)
        return raw, further if isinstance(further, str) else following


def _at(document: Any, path: str) -> Any:
    """The value behind dotted keys; None: there is none."""
    for key in path.split("."):
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _link(answer: Answer) -> str:
    """The target of a Link header with rel=next."""
    links = httpx.Response(200, headers=answer.headers).links
    return str(links.get("next", {}).get("url", ""))
