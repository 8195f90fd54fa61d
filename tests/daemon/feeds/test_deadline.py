"""A server that is slow in any way costs a feed its timeout, and the daemon ends without waiting for it."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from daemon.core.config.feeds import HttpFeedConfig, RedisStreamFeedConfig, RssFeedConfig
from daemon.core.errors import FeedError
from daemon.core.ledger.ledger import Ledger
from daemon.feeds import redis_stream
from daemon.feeds.guard import Limits, Web
from daemon.feeds.http import HttpFeed
from daemon.feeds.redis_stream import RedisStreamFeed
from daemon.feeds.rss import RssFeed
from daemon.feeds.sse import EventStream
from daemon.scheduling.scheduler import Scheduler
from tests.daemon.scheduling.test_scheduler import TakesAll, config_of
from tests.ledgers import found

Say = Callable[[socket.socket], None]
SECONDS = 0.6


@contextmanager
def serving(say: Say) -> Iterator[int]:
    """A server that does with each connection what it is told, on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=quietly, args=(connection,), daemon=True).start()

    def quietly(connection: socket.socket) -> None:
        with suppress(OSError):
            say(connection)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def drip(connection: socket.socket, text: bytes) -> None:
    for byte in text * 20:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def header_bytes(connection: socket.socket) -> None:
    connection.recv(10_000)
    drip(connection, b"HTTP/1.1 200 OK\r\nx: y")


def header_lines(connection: socket.socket) -> None:
    connection.recv(10_000)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    drip(connection, b"x: y\r\n")


def chunk_heads(connection: socket.socket) -> None:
    connection.recv(10_000)
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    drip(connection, b"1;ext=1\r\nx\r\n")


def interim_answers(connection: socket.socket) -> None:
    connection.recv(10_000)
    drip(connection, b"HTTP/1.1 102 Processing\r\n\r\n")


def body_bytes(connection: socket.socket) -> None:
    connection.recv(10_000)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
    drip(connection, b"x")


def silence(connection: socket.socket) -> None:
    time.sleep(20)


def redirects(connection: socket.socket) -> None:
    connection.recv(10_000)
    time.sleep(0.4)
    connection.sendall(b"HTTP/1.1 302 Found\r\nlocation: /more\r\ncontent-length: 0\r\n\r\n")
    redirects(connection)


def handshake_bytes(connection: socket.socket) -> None:
    connection.recv(10_000)
    connection.sendall(b"\x16\x03\x03\x20\x00")  # a record of 8 KiB is announced
    drip(connection, b"\x02")


SLOW = [header_bytes, header_lines, chunk_heads, interim_answers, body_bytes, silence, redirects]


def took(ask: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(FeedError, match=r"within 0\.6 s"):
        ask()
    return time.monotonic() - began


@pytest.mark.parametrize("say", SLOW)
def test_a_slow_server_is_an_error_after_the_timeout(say: Say) -> None:
    limits = Limits(frozenset({"127.0.0.1"}), allow_private=True, timeout_seconds=SECONDS)
    with serving(say) as port:
        assert took(lambda: Web(limits).get(f"http://127.0.0.1:{port}/")) < SECONDS + 0.6


@pytest.mark.parametrize("say", [handshake_bytes, silence])
def test_a_slow_handshake_is_an_error_after_the_timeout(say: Say) -> None:
    limits = Limits(frozenset({"localhost"}), allow_private=True, timeout_seconds=SECONDS)
    with serving(say) as port:
        assert took(lambda: Web(limits).get(f"https://localhost:{port}/")) < SECONDS + 0.6


def test_a_slow_resolver_is_an_error_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
    limits = Limits(frozenset({"slow.test"}), allow_private=True, timeout_seconds=SECONDS)
    began = time.monotonic()
    with pytest.raises(FeedError, match="has no address"):
        Web(limits).get("http://slow.test/")
    assert time.monotonic() - began < SECONDS + 0.6


def test_the_feeds_keep_it(tmp_path: Path) -> None:
    with serving(header_bytes) as port:
        section = {"url": f"http://127.0.0.1:{port}/", "allow_private": True, "timeout_seconds": SECONDS}
        http = HttpFeed(HttpFeedConfig(kind="http", name="a", **section))  # type: ignore[arg-type]
        pattern = "(?P<subject>.+) is (?P<object>.+)"
        rss = RssFeed(
            RssFeedConfig(kind="rss", name="b", pattern=pattern, relation="capital", **section)  # type: ignore[arg-type]
        )
        assert took(lambda: http.pull({}, 10)) < SECONDS + 0.6
        assert took(lambda: rss.pull({}, 10)) < SECONDS + 0.6


def test_a_stream_has_no_end_but_its_headers_must_come_in_time() -> None:
    def events(connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for number in range(12):
            connection.sendall(b"id: %d\ndata: x\n\n" % number)
            time.sleep(0.1)
        time.sleep(20)

    limits = Limits(frozenset({"127.0.0.1"}), allow_private=True, timeout_seconds=SECONDS)
    with serving(events) as port:
        stream = EventStream(Web(limits), f"http://127.0.0.1:{port}/", str)
        got, after, until = 0, "", time.monotonic() + 10
        while got < 12:
            assert time.monotonic() < until
            taken = stream.take(after, 100)
            got, after = got + len(taken), taken[-1].id if taken else after
        stream.close()
    with serving(header_bytes) as port:
        stream = EventStream(Web(limits), f"http://127.0.0.1:{port}/", str, pause=0.01)
        began = time.monotonic()
        with pytest.raises(FeedError, match="within"):
            while time.monotonic() < began + 10:
                stream.take("", 10)
        assert time.monotonic() - began < 5


def test_a_redis_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_stream, "_PULL_SECONDS", SECONDS)

    def answer(connection: socket.socket) -> None:
        connection.recv(10_000)
        drip(connection, b"+")

    with serving(answer) as port:
        url = f"redis://127.0.0.1:{port}/0"
        feed = RedisStreamFeed(
            RedisStreamFeedConfig(kind="redis_stream", name="r", url=url, stream="s")  # type: ignore[arg-type]
        )
        began = time.monotonic()
        with pytest.raises(FeedError):
            feed.pull({}, 10)
        assert time.monotonic() - began < SECONDS + 2
        before = threading.active_count()
        for _ in range(5):
            with pytest.raises(FeedError):
                feed.pull({}, 10)
        assert threading.active_count() <= before, "a thread for each pull"


def test_the_daemon_ends_at_once_while_a_feed_waits_for_its_server(
    sqlite_ledger: Ledger, tmp_path: Path
) -> None:
    found(sqlite_ledger)
    with serving(header_bytes) as port:
        slow = {"kind": "http", "name": "slow", "url": f"http://127.0.0.1:{port}/", "allow_private": True}
        config = config_of(tmp_path, tmp_path / "none", feeds=[slow], schedule={"pull_seconds": 0.05})
        daemon = Scheduler(sqlite_ledger, config, TakesAll())
        daemon.start()
        until = time.monotonic() + 10
        while not any(thread.name == "pull slow" for thread in threading.enumerate()):
            assert time.monotonic() < until
            time.sleep(0.01)
        began = time.monotonic()
        daemon.stop()
        assert time.monotonic() - began < 2
