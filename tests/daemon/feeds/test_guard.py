"""The guard of feeds: which addresses may be asked, wherever a redirect leads, and how much is taken."""

import gzip
import ipaddress
import socket
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from daemon.core.errors import FeedError
from daemon.feeds.guard import Limits, Web, checked_host, is_public
from tests.daemon.feeds.servers import Answers

OPEN = Limits(frozenset({"127.0.0.1", "localhost"}), allow_private=True, max_bytes=10_000, timeout_seconds=2)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2002:a00:1::", "2001:0:0:0:0:0:80ff:fffe",
    ],
)  # fmt: skip
def test_no_address_of_a_private_place_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


STRICT = Limits(frozenset({"example.org", "127.1", "0x7f000001", "2130706433", "0", "[::1]", "::1"}))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "file:///etc/passwd", "ftp://example.org/x", "gopher://example.org", "",
        "https://", "https://evil.org/", "https://example.org@evil.org/", "https://u:p@example.org/",
        "https://example.org.evil.org/", "//example.org/", "https://[::1", "https://example.org:99999/",
        "javascript:alert(1)", "https://example.org:0/", "https://example.org/" + "a" * 3000, "unix:///run/x",
    ],
)  # fmt: skip
def test_urls_that_are_not_meant_are_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(FeedError):
        checked_host(url, STRICT)


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "0", "[::1]"])
def test_spellings_of_loopback_lead_nowhere(host: str) -> None:
    with pytest.raises(FeedError, match=r"not a public address|has no address"):
        Web(STRICT).get(f"https://{host}/")


def test_a_name_that_means_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lies(*_: object, **__: object) -> list[object]:
        public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 443))
        return [public, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", lies)
    with pytest.raises(FeedError, match=r"169\.254\.169\.254"):
        Web(STRICT).get("https://example.org/")


def test_the_connection_goes_to_the_address_that_was_checked(
    web: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is resolved once: what it means a moment later does not count."""
    web.say("/", b"here")
    port, asked = int(web.url.rsplit(":", 1)[1]), 0

    def once(*_: object, **__: object) -> list[object]:
        nonlocal asked
        asked += 1
        where = "127.0.0.1" if asked == 1 else "203.0.113.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *a, **k: once() if host == "feed.test" else real(host, *a, **k),
    )
    limits = Limits(frozenset({"feed.test"}), allow_private=True)
    assert Web(limits).get(f"http://feed.test:{port}/").body == b"here"
    assert asked == 1
    assert web.asked[0][1]["host"] == f"feed.test:{port}"


def test_redirects_are_followed_within_the_limits_and_only_so_far(web: Answers) -> None:
    web.say("/a", b"", 302, location="/b")
    web.say("/b", b"there")
    web.say("/loop", b"", 301, location="/loop")
    web.say("/file", b"", 302, location="file:///etc/passwd")
    web.say("/meta", b"", 302, location="http://169.254.169.254/latest/")
    assert Web(OPEN).get(web.url + "/a").body == b"there"
    for path in ("/loop", "/file", "/meta"):
        with pytest.raises(FeedError):
            Web(OPEN).get(web.url + path)
    assert web.paths().count("/loop") == 6


def test_a_bearer_token_goes_to_its_own_host_alone(web: Answers, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    port = web.url.rsplit(":", 1)[1]
    web.say("/a", b"", 302, location=f"http://localhost:{port}/b")
    web.say("/b", b"there")
    Web(OPEN, tmp_path / "token", "127.0.0.1").get(web.url + "/a")
    assert [headers.get("authorization") for _, headers in web.asked] == ["Bearer secret", None]


def test_too_much_is_refused_packed_or_not(web: Answers) -> None:
    web.say("/large", b"x" * 10_001)
    web.say("/bomb", gzip.compress(bytes(50_000_000)), content_encoding="gzip")
    web.say("/fits", gzip.compress(b"x" * 10_000), content_encoding="gzip")
    web.say("/odd", b"x", content_encoding="br")
    web.say("/lie", b"no gzip", content_encoding="gzip")
    web.say("/cut", gzip.compress(b"x" * 9_000)[:-9], content_encoding="gzip")
    for path in ("/large", "/bomb", "/odd", "/lie", "/cut"):
        with pytest.raises(FeedError):
            Web(OPEN).get(web.url + path)
    assert Web(OPEN).get(web.url + "/fits").body == b"x" * 10_000


def test_a_bomb_is_not_inflated_beyond_the_bound(web: Answers) -> None:
    web.say("/bomb", gzip.compress(bytes(60_000_000)), content_encoding="gzip")
    Web(OPEN)  # what is imported and built once does not count
    tracemalloc.start()
    try:
        with pytest.raises(FeedError, match="longer"):
            Web(OPEN).get(web.url + "/bomb")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_an_answer_that_drips_is_given_up(web: Answers) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)

    web.at["/drip"] = drip
    began = time.monotonic()
    with pytest.raises(FeedError):
        Web(Limits(frozenset({"127.0.0.1"}), allow_private=True, timeout_seconds=1)).get(web.url + "/drip")
    assert time.monotonic() - began < 4


def test_no_proxy_of_the_environment_is_used(web: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    web.say("/", b"direct")
    assert Web(OPEN).get(web.url + "/").body == b"direct"


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_of_the_server_is_an_error_of_the_feed(web: Answers, status: int) -> None:
    web.say("/", b"no", status)
    with pytest.raises(FeedError, match=str(status)):
        Web(OPEN).get(web.url + "/")
