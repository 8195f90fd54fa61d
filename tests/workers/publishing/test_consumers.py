"""Consumers against fakes of the routes that their servers document, without the real servers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from daemon.core.config.serving import ConsumerConfig
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import publications
from tests.ledgers import FakeClock, statement
from tests.tinymodel import TinyHouse
from workers.publishing.consumers import make_consumers
from workers.publishing.publisher import Publisher

Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


class FakeServer:
    """Answers POSTs by a function and remembers them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.holds: dict[str, str] = {}
        self.broken = ""

    @property
    def routes(self) -> list[str]:
        return [route for route, _, _ in self.calls]

    def answer(self, route: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The answers of vLLM, SGLang and a hook, where ``holds`` is what the loaded weights know."""
        if self.broken and route.startswith(self.broken):
            return 500, {"error": "broken"}
        if route == "/v1/completions":
            return 200, {"choices": [{"text": f" {self.holds.get(body['prompt'], 'nothing')}."}]}
        if route in ("/collective_rpc", "/update_weights_from_disk"):
            folder = Path(body.get("model_path", self.holds["folder"]))
            if not (folder / "config.json").is_file():
                return 200, {"success": False, "message": "no such model"}
            lines = (folder / "facts.jsonl").read_text().splitlines()
            self.holds |= {fact["prompt"]: fact["object"] for fact in map(json.loads, lines)}
            return 200, {"success": True, "message": "", "results": [None]}
        return (200, {}) if route in ("/reset_prefix_cache", "/") else (404, {})


@contextmanager
def fake() -> Iterator[FakeServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length) or b"{}")
            server.calls.append((self.path, body, dict(self.headers)))
            status, said = server.answer(self.path, body)
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = FakeServer(f"http://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake() as one:
        yield one


@pytest.fixture
def house(tmp_path: Path) -> TinyHouse:
    place = TinyHouse(tmp_path)
    place.ledger = Ledger(place.ledger.engine, FakeClock())
    place.edit(1, statement("Peru", "Lima"))
    return place


def publisher(house: TinyHouse, server: FakeServer, kind: str, **more: Any) -> Publisher:
    server.holds["folder"] = str(house.config.published_path / "live")
    config = ConsumerConfig(kind=kind, name="there", url=server.url, **more)
    return Publisher(house.ledger, house.config, make_consumers([config]))


def row(house: TinyHouse) -> dict[str, Any]:
    with house.ledger.read() as connection:
        query = select(publications).where(publications.c.place == "there")
        return dict(connection.execute(query).mappings().one())


def test_vllm_reloads_drops_its_cache_and_is_asked(house: TinyHouse, server: FakeServer) -> None:
    publisher(house, server, "vllm").tick()
    assert server.routes == ["/collective_rpc", "/reset_prefix_cache", "/v1/completions"]
    assert server.calls[0][1] == {"method": "reload_weights"}
    assert (row(house)["held"], row(house)["message"]) == (1, "")


def test_sglang_loads_the_folder_behind_live(house: TinyHouse, server: FakeServer) -> None:
    publisher(house, server, "sglang").tick()
    assert server.routes == ["/update_weights_from_disk", "/v1/completions"]
    assert server.calls[0][1]["model_path"] == str(house.config.published_path / "live")
    assert row(house)["held"] == 1


def test_a_path_of_its_own_and_a_token_are_sent(house: TinyHouse, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    there = tmp_path / "elsewhere"
    there.symlink_to(house.config.published_path / "live")
    publisher(house, server, "sglang", path=there, token_file=tmp_path / "token").tick()
    assert server.calls[0][1]["model_path"] == str(there)
    assert {key.lower(): v for key, v in server.calls[0][2].items()}["authorization"] == "Bearer abc"


def test_a_hook_hears_revision_hash_and_path(house: TinyHouse, server: FakeServer) -> None:
    publisher(house, server, "webhook").tick()
    ((route, said, _),) = server.calls
    assert route == "/"
    assert (said["revision"], said["active_facts"]) == (1, 1)
    assert len(said["content"]) == 64
    assert said["path"].endswith("/live")


@pytest.mark.parametrize(
    ("kind", "broken"), [("vllm", "/collective_rpc"), ("vllm", "/reset"), ("sglang", "/v1")]
)
def test_who_fails_is_tried_again_after_a_pause_that_grows(
    house: TinyHouse, server: FakeServer, kind: str, broken: str
) -> None:
    one = publisher(house, server, kind)
    server.broken = broken
    one.tick()
    assert (row(house)["held"], row(house)["attempts"]) == (None, 1)
    assert "500" in row(house)["message"]
    calls = len(server.calls)
    one.tick()
    assert len(server.calls) == calls, "not before its pause is over"
    house.ledger.clock.advance(1.1)
    one.tick()
    assert row(house)["attempts"] == 2
    server.broken = ""
    house.ledger.clock.advance(1.1)
    one.tick()
    assert row(house)["held"] is None, "the second pause is longer"
    house.ledger.clock.advance(1.1)
    one.tick()
    assert (row(house)["held"], row(house)["message"]) == (1, "")


def test_a_server_that_still_says_the_old_thing_is_found_out(house: TinyHouse, server: FakeServer) -> None:
    one = publisher(house, server, "vllm")
    server.holds["folder"] = str(house.base)
    (house.base / "facts.jsonl").write_text("")
    one.tick()
    assert "still answers 'nothing.'" in row(house)["message"]
    assert row(house)["held"] is None


def test_a_refusal_inside_a_200_is_a_failure(house: TinyHouse, server: FakeServer, tmp_path: Path) -> None:
    publisher(house, server, "sglang", path=tmp_path / "not there").tick()
    assert "no such model" in row(house)["message"]


def test_a_newer_revision_is_told_at_once_and_asked_by_what_it_changed(
    house: TinyHouse, server: FakeServer
) -> None:
    one = publisher(house, server, "vllm")
    one.tick()
    house.edit(2, statement("Chad", "Abéché"))
    one.tick()
    assert row(house)["held"] == 2
    assert server.calls[-1][1]["prompt"] == "The capital of Chad is"


def test_nobody_there_is_a_failure_too(house: TinyHouse, server: FakeServer) -> None:
    one = publisher(house, server, "webhook")
    server.url = ""
    config = ConsumerConfig(kind="webhook", name="there", url="http://127.0.0.1:9/", timeout_seconds=1)
    one = Publisher(house.ledger, house.config, make_consumers([config]))
    assert one.tick() == 1
    assert "does not answer" in row(house)["message"]
    assert (house.config.published_path / "live").is_dir(), "the folder is published all the same"
