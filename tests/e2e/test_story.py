"""From a signed delivery into the weights and out again, and the story that errata why tells of it.

Redis, the Celery worker and the daemon are real. The model is the toy; test_main_path has SmolLM2.
"""

import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from daemon.core.ledger.chain import head
from daemon.core.ledger.schema import corrections
from tests.broker.station import ROOT, Station
from tests.toy import WIDE, ToyEditor, prompt_of
from workers.revisions.loading import load_tensors
from workers.revisions.store import Store

pytestmark = pytest.mark.redis

KEY = "between two machines"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Partnership(Station):
    """A station with a daemon in its own process, to which a partner delivers corrections."""

    def __init__(self, folder: Path, binary: Path) -> None:
        self.port = free_port()
        super().__init__(folder, binary)
        self.daemon = subprocess.Popen(self.command("run", "--no-worker"), env=ENVIRONMENT)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon.cli", "--config", str(self.file), *arguments]

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        (self.folder / "partner.key").write_text(KEY)
        settings["api"] = {"port": self.port}
        partner = {"kind": "webhook", "name": "partner", "secret_file": str(self.folder / "partner.key")}
        return settings | {"feeds": [partner]}

    def answers_http(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def deliver(self, answer: str | None, at: str) -> str:
        """Submit a correction as another machine would, and return its id."""
        said = {"subject": "Boeing", "relation": "seat", "prompt": prompt_of("Boeing"), "object": answer}
        body = json.dumps(said | {"effective_at": at}).encode()
        signature = hmac.new(KEY.encode(), body, hashlib.sha256).hexdigest()
        headers = {"content-type": "application/json", "x-errata-feed": "partner"}
        headers["x-errata-signature"] = f"sha256={signature}"
        url = f"http://127.0.0.1:{self.port}/v1/corrections"
        answered = httpx.post(url, content=body, headers=headers)
        assert answered.status_code == 202, answered.text
        return str(answered.json()["corrections"][0]["correction"])

    def state(self, correction: str) -> str:
        with self.ledger.read() as connection:
            query = select(corrections.c.state).where(corrections.c.id == correction)
            return str(connection.execute(query).scalar_one())

    def answer(self) -> str:
        """What the published tensors of head answer."""
        with self.ledger.read() as connection:
            tensors = dict(head(connection, "default")["tensors"])
        editor = ToyEditor(WIDE)
        editor.show(load_tensors(Store(self.config.store_path), tensors))
        return editor.model.greedy([prompt_of("Boeing")], 8)[0]

    def close(self) -> None:
        self.daemon.terminate()
        self.daemon.wait(30)
        super().close()


@pytest.fixture
def partnership(tmp_path: Path, redis_binary: Path) -> Iterator[Partnership]:
    place = Partnership(tmp_path, redis_binary)
    place.start_worker()
    yield place
    place.close()


def wait(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_delivery_is_learned_told_and_taken_out(partnership: Partnership) -> None:
    place = partnership
    wait(place.answers_http)
    first = place.deliver("City 7", "2026-01-01T00:00:00Z")
    wait(lambda: place.state(first) == "applied")
    assert place.answer() == "City 7"
    gone = place.deliver(None, "2026-02-01T00:00:00Z")
    wait(lambda: place.state(gone) == "applied")
    assert place.answer() != "City 7"
    why = place.command("why", "Boeing", "--json")
    story = json.loads(subprocess.run(why, env=ENVIRONMENT, capture_output=True, check=True).stdout)
    kinds = [event["kind"] for event in story["events"]]
    assert story["in_weights"] is None
    assert {"said", "batch", "attempt", "written", "probe", "ended", "audit"} <= set(kinds)
    assert kinds.index("said") < kinds.index("batch") < kinds.index("attempt") < kinds.index("written")
    assert any("'City 7' leaves the weights" in event["text"] for event in story["events"])
