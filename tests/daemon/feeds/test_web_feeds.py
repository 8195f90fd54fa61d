"""The feeds over HTTP: pages, conditional requests, a place that survives, and XML that means no good."""

import json
from typing import Any

import pytest

from daemon.core.config.feeds import HttpFeedConfig, RssFeedConfig
from daemon.core.corrections import parse_item
from daemon.core.errors import FeedError
from daemon.feeds.base import Cursor, Feed, make_feed
from daemon.feeds.rss import parse
from tests.daemon.feeds.servers import Answers
from tests.ledgers import statement


def http(web: Answers, path: str = "/feed", **more: Any) -> Feed:
    section = {
        "kind": "http",
        "name": "web",
        "url": web.url + path,
        "allow_private": True,
        "every_seconds": 0,
    }
    return make_feed(HttpFeedConfig(**section | more))


def rss(web: Answers, **more: Any) -> Feed:
    section = {
        "kind": "rss", "name": "news", "url": web.url + "/rss", "allow_private": True, "every_seconds": 0,
        "pattern": r"^(?P<subject>.+) moves its capital to (?P<object>.+)$", "relation": "capital",
        "prompt_before": "The capital of ", "prompt_after": " is",
    }  # fmt: skip
    return make_feed(RssFeedConfig(**section | more))


def drain(feed: Feed, limit: int = 3, cursor: Cursor | None = None) -> tuple[list[bytes], Cursor]:
    """Everything that a feed has now, and the cursor behind it, which went through JSON each time."""
    items: list[bytes] = []
    place: Cursor = cursor or {}
    while True:
        pull = feed.pull(place, limit)
        items += [item.raw for item in pull.items]
        place = json.loads(json.dumps(pull.cursor))
        if not pull.more:
            return items, place


def cities(raw: list[bytes]) -> list[str]:
    return [str(parse_item(one).object) for one in raw]


def test_json_json_lines_and_single_objects_are_read(web: Answers) -> None:
    said = [statement("France", city) for city in ("Lyon", "Nice", "Metz", "Brest")]
    lines = "\n".join(json.dumps(one) for one in said).encode()
    web.say("/feed", json.dumps(said).encode())
    web.say("/lines", lines + b"\n\n", content_type="application/x-ndjson")
    web.say("/plain", lines)
    web.say("/one", json.dumps(said[0]).encode())
    web.say("/deep", json.dumps({"data": {"rows": said}}).encode())
    for path, more in (("/feed", {}), ("/lines", {}), ("/plain", {}), ("/deep", {"items": "data.rows"})):
        assert cities(drain(http(web, path, **more))[0]) == ["Lyon", "Nice", "Metz", "Brest"]
    assert cities(drain(http(web, "/one"))[0]) == ["Lyon"]


def test_pages_are_followed_by_header_and_by_key(web: Answers) -> None:
    first, second = [statement("France", "Lyon")], [statement("France", "Nice")]
    web.say("/feed", json.dumps(first).encode(), link='</two>; rel="next"')
    web.say("/two", json.dumps(second).encode())
    web.say("/keyed", json.dumps({"rows": first, "next": "/last"}).encode())
    web.say("/last", json.dumps({"rows": second, "next": None}).encode())
    assert cities(drain(http(web))[0]) == ["Lyon", "Nice"]
    assert cities(drain(http(web, "/keyed", items="rows", next="next"))[0]) == ["Lyon", "Nice"]


def test_what_did_not_change_is_not_sent_again(web: Answers) -> None:
    web.say("/feed", json.dumps([statement("France", "Lyon")]).encode(), etag='"1"', last_modified="Mon")
    _, cursor = drain(http(web))
    web.say("/feed", b"", 304)
    assert drain(http(web), cursor=cursor)[0] == []
    asked = web.asked[-1][1]
    assert (asked["if-none-match"], asked["if-modified-since"]) == ('"1"', "Mon")
    web.say("/feed", json.dumps([statement("France", "Nice")]).encode(), etag='"2"')
    assert cities(drain(http(web), cursor=cursor)[0]) == ["Nice"]


def test_a_restart_within_a_page_goes_on_there_unless_the_page_changed(web: Answers) -> None:
    said = [statement("France", f"City {number}") for number in range(10)]
    web.say("/feed", json.dumps(said).encode())
    cursor = http(web).pull({}, 4).cursor
    assert cities(drain(http(web), cursor=cursor)[0]) == [f"City {number}" for number in range(4, 10)]
    web.say("/feed", json.dumps(said[::-1]).encode())
    assert len(drain(http(web), cursor=cursor)[0]) == 10


def test_the_server_is_asked_no_more_often_than_configured(web: Answers) -> None:
    web.say("/feed", b"[]")
    feed = http(web, every_seconds=60)
    cursor = feed.pull({}, 5).cursor
    for _ in range(5):
        cursor = feed.pull(cursor, 5).cursor
    assert len(web.asked) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b"{", b"3", b"9" * 5000])
def test_what_is_no_json_is_an_error_and_moves_nothing(web: Answers, body: bytes) -> None:
    web.say("/feed", body)
    with pytest.raises(FeedError):
        http(web).pull({}, 5)


RSS = b"""<?xml version="1.0"?><rss version="2.0"><channel><title>t</title>
<item><title>Brest festival begins</title><guid>3</guid>
 <pubDate>Wed, 03 Jun 2026 00:00:00 GMT</pubDate></item>
<item><title>France moves its capital to Nice</title><guid>2</guid><link>https://news/2</link>
 <pubDate>Tue, 02 Jun 2026 00:00:00 GMT</pubDate></item>
<item><title>France moves its capital to Lyon</title><guid>1</guid>
 <pubDate>Mon, 01 Jun 2026 00:00:00 GMT</pubDate></item></channel></rss>"""


def test_entries_become_corrections_oldest_first_and_once(web: Answers) -> None:
    web.say("/rss", RSS)
    items, cursor = drain(rss(web), limit=1)
    corrections = [parse_item(item) for item in items]
    assert [one.object for one in corrections] == ["Lyon", "Nice"]
    assert corrections[1].prompt == "The capital of France is"
    assert corrections[1].source == "https://news/2"
    assert str(corrections[0].observed_at) == "2026-06-01 00:00:00+00:00"
    assert cursor["dropped"] == {"no_match": 1}
    assert drain(rss(web), cursor=cursor)[0] == []


BOMB = b'<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    "body",
    [
        BOMB + RSS, b'<!doctype rss SYSTEM "file:///etc/passwd">' + RSS, b'<! ENTITY x SYSTEM "file:///etc/passwd">',
        RSS.decode().encode("utf-16"), RSS.decode().encode("utf-16-be"), RSS.decode().encode("utf-16-le"),
        b"", b"{}", b"/etc/passwd", b"http://127.0.0.1/", b"\x00" * 100,
    ],
)  # fmt: skip
def test_xml_with_entities_or_none_at_all_is_refused(body: bytes) -> None:
    with pytest.raises(FeedError):
        parse(body)


def test_a_pattern_without_its_groups_is_refused() -> None:
    for pattern in ("(", "(?P<subject>x)", "x"):
        with pytest.raises(ValueError, match="pattern"):
            RssFeedConfig(kind="rss", name="a", url="https://a/", pattern=pattern, relation="r")
