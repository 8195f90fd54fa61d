"""A deadline for a whole answer: name, connection, TLS handshake, headers and body.

The timeouts of an HTTP client are for single reads, so a server that sends a byte now and then is never late.
Here each operation on the network has as much time as is left until the deadline.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpcore
import httpx

Value = TypeVar("Value")
_MOST_CONNECTIONS = 4  # of one host; a feed asks one thing at a time, and may read a stream beside it


class Deadline(threading.local):
    """The moment at which what this thread does on the network must be done, if there is one."""

    moment: float | None = None

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Set the deadline for a block."""
        self.moment = time.monotonic() + seconds
        try:
            yield
        finally:
            self.moment = None

    def lift(self) -> None:
        """Let the rest of the block take any time: a stream has begun, which has no end."""
        self.moment = None

    def left(self, timeout: float | None) -> float | None:
        """Return the shorter of a timeout and the time left. Raises httpcore.ReadTimeout if none is left."""
        if self.moment is None:
            return timeout
        left = self.moment - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the deadline has passed")
        return left if timeout is None else min(timeout, left)


class OneAtATime:
    """Does work that has no deadline of its own in a thread, of which there is one at a time."""

    def __init__(self) -> None:
        self._is_free = threading.Lock()

    def run(self, work: Callable[[], Value], seconds: float) -> Value:
        """Return the result of the work, or raise TimeoutError, also while earlier work has not ended."""
        if not self._is_free.acquire(blocking=False):
            raise TimeoutError("an earlier pull has not ended")

        def run() -> Value:
            try:
                return work()
            finally:
                self._is_free.release()

        return in_time(run, seconds)


def in_time(work: Callable[[], Value], seconds: float | None) -> Value:
    """Return the result of work that cannot be given a timeout, or raise TimeoutError.

    It goes on in its thread: a look-up of a name ends by the resolver's own timeouts.
    """
    done: list[Value] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001  # the thread's edge: it is raised where the result is used
            failed.append(error)

    thread = threading.Thread(target=run, name="in time", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"no answer within {seconds:.3g} s")
    return done[0]


def transport(deadline: Deadline) -> httpx.HTTPTransport:
    """Return a transport whose connections keep the deadline."""
    context = httpx.create_ssl_context()
    made = httpx.HTTPTransport(verify=context)
    # httpx has no parameter for the network below it
    made._pool = httpcore.ConnectionPool(
        ssl_context=context, max_connections=_MOST_CONNECTIONS, network_backend=_Network(deadline)
    )
    return made


class _Network(httpcore.NetworkBackend):
    """Connects as httpcore does, in the time that is left."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline, self._inner = deadline, httpcore.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *more: Any, **options: Any
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, self._deadline.left(timeout), *more, **options)
        return _Stream(stream, self._deadline)


class _Stream(httpcore.NetworkStream):
    """A connection on which each operation has the time that is left."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left(timeout))
        return _Stream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def look_up(host: str, port: int, seconds: float | None) -> list[Any]:
    """Return the address entries of a host, or raise OSError also when the resolver is too slow."""
    return in_time(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), seconds)
