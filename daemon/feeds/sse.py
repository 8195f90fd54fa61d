"""Read a stream of server-sent events ahead into a bounded buffer, resumable by event id."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import EventSource, SSEError

from daemon.core.errors import FeedError
from daemon.feeds.guard import Web

_AHEAD = 2_000  # events read ahead; when the buffer is full, the thread waits and so does the server
_EVENT_BYTES = 1 << 20  # of one event; those of Wikidata have a few KiB
_ID_CHARACTERS = 4_000  # of an event's id, which is kept in the cursor and sent as a header
_RETRY_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # between connections that gave nothing


@dataclass(frozen=True)
class Event:
    """One event: the id from which to resume behind it, and what ``read`` made of its data."""

    id: str
    content: Any


class EventStream:
    """Events behind an id, resumed behind the last event when the connection breaks."""

    def __init__(self, web: Web, url: str, read: Callable[[str], Any], pause: float = 1.0) -> None:
        self._web, self._url, self._read, self._pause = web, url, read, pause
        self._reader: _Reader | None = None
        self._position: str | None = None  # the id behind which the buffer begins
        self._failures, self._not_before = 0, 0.0

    def take(self, after: str, limit: int, wait_seconds: float = 0.2) -> list[Event]:
        """Return at most ``limit`` events behind ``after``, fewer when no more have come in yet.

        Raises FeedError if the stream cannot be read now and the buffer is empty.
        """
        if self._position != after:
            self.close()
        if self._reader is None:
            self._connect(after)
        reader = self._reader
        events = reader.take(limit, wait_seconds) if reader is not None else []
        if events:
            self._position, self._failures = events[-1].id, 0
        elif reader is not None and reader.ended:
            error, self._reader = reader.error, None
            self._not_before = time.monotonic() + self._pause * _RETRY_SECONDS[self._failures]
            self._failures = min(self._failures + 1, len(_RETRY_SECONDS) - 1)
            if error is not None and self._failures > 1:  # one connection that ends is not an error
                raise error
        return events

    def forget(self) -> None:
        """Connect anew at the next ``take``, because the events that were taken were not used."""
        self._position = None

    def close(self) -> None:
        """Stop the reader and its connection."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None

    def _connect(self, after: str) -> None:
        if time.monotonic() < self._not_before:
            return
        self._position = after
        self._reader = _Reader(self._web, self._url, self._read, after)


class _Reader:
    """One connection and its thread."""

    def __init__(self, web: Web, url: str, read: Callable[[str], Any], after: str) -> None:
        self._web, self._url, self._read, self._after = web, url, read, after
        self._buffer: queue.Queue[Event] = queue.Queue(_AHEAD)
        self._stopping = threading.Event()
        self.error: FeedError | None = None
        self._thread = threading.Thread(target=self._run, name="sse", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the connection ended and all its events were taken."""
        return not self._thread.is_alive() and self._buffer.empty()

    def take(self, limit: int, wait_seconds: float) -> list[Event]:
        """Return the events that have come in, waiting ``wait_seconds`` for the first."""
        events: list[Event] = []
        while len(events) < limit:
            try:
                wait = 0.0 if events else wait_seconds
                events.append(self._buffer.get(block=wait > 0, timeout=wait or None))
            except queue.Empty:
                break
        return events

    def stop(self) -> None:
        """Let the thread end at its next event."""
        self._stopping.set()

    def _run(self) -> None:
        headers = {"accept": "text/event-stream", "cache-control": "no-store", "accept-encoding": "identity"}
        if self._after:
            headers["last-event-id"] = self._after
        try:
            with self._web.stream(self._url, headers) as response:
                for event in EventSource(_bounded(response)).iter_sse():
                    if len(event.id) <= _ID_CHARACTERS and event.id.isascii() and event.id.isprintable():
                        self._after = event.id or self._after
                    if not self._put(Event(self._after, self._read(event.data))):
                        return
        except FeedError as error:
            self.error = error
        except (httpx.HTTPError, httpx.StreamError, SSEError) as error:
            self.error = FeedError(f"the stream broke: {type(error).__name__}: {error}")

    def _put(self, event: Event) -> bool:
        while not self._stopping.is_set():
            try:
                self._buffer.put(event, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False


def _bounded(response: httpx.Response) -> httpx.Response:
    """Return the same response, which fails at compression and at an event longer than ``_EVENT_BYTES``."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FeedError("the stream is compressed, which was not asked for")
    return httpx.Response(
        200, headers={"content-type": response.headers.get("content-type", "")}, stream=_Bounded(response)
    )


class _Bounded(httpx.SyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        size, tail = 0, b""
        for piece in self._response.iter_raw():
            seen = (tail + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            end = seen.rfind(b"\n\n")
            size = len(seen) - end if end >= 0 else size + len(piece)
            if size > _EVENT_BYTES:
                raise FeedError(f"an event is longer than {_EVENT_BYTES} bytes")
            tail = piece[-3:]
            yield piece
