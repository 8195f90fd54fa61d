"""An HTTP server in a thread, which ends within seconds whatever its clients do."""

import threading
import time
from typing import Any

import uvicorn

from daemon.core.errors import UnavailableError

_START_SECONDS = 10.0  # binding a port takes milliseconds, a busy machine may delay it
_GRACE_SECONDS = 2  # for answers in progress; connections that stay open longer are cut


class HttpServer:
    """A server of an ASGI application."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self._where = f"{host}:{port}"
        settings = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer, or raise UnavailableError if the port cannot be bound."""
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not self._server.started:
            raise UnavailableError(f"cannot listen on {self._where}", hint="change the port")

    @property
    def alive(self) -> bool:
        """Whether the server runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no more connections, and end after the answers in progress or the grace time."""
        self._server.should_exit = True
        self._thread.join(timeout=_GRACE_SECONDS + 1)
