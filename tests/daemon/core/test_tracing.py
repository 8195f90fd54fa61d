"""Spans reach a collector by OTLP over HTTP, and without an endpoint nothing is sent."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from daemon.core.tracing import ENDPOINT, configure_tracing, span

PROGRAM = """
from daemon.core.tracing import configure_tracing, span
assert configure_tracing("errata-worker")
with span("batch", batch="b123", model="default"):
    with span("write"):
        pass
from opentelemetry import trace
trace.get_tracer_provider().shutdown()
"""


def test_spans_arrive_with_their_ids() -> None:
    bodies: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        place = {ENDPOINT: f"http://127.0.0.1:{server.server_port}", "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={"PYTHONPATH": ":".join(sys.path), **place}, check=False
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.returncode == 0
    ((route, body),) = bodies
    assert route == "/v1/traces"
    for text in (b"errata.batch", b"errata.write", b"b123", b"errata-worker"):
        assert text in body


def test_without_an_endpoint_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert configure_tracing("errata-worker") is False
    with span("batch", batch="b1"):
        pass
