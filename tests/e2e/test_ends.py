"""SIGTERM ends errata run and all of its parts within 10 seconds in every phase, SIGKILL within seconds.

Redis, Celery worker, publisher and completions are real; the model is tiny.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from daemon.views.processes import process_list
from tests.broker.station import ROOT
from tests.conftest import is_full
from tests.e2e.test_story import free_port
from tests.ledgers import statement
from tests.processes import descendants, has_ended, wait
from tests.tinymodel import TinyHouse

pytestmark = pytest.mark.redis
LIMIT = 10.0
LONG = pytest.mark.skipif(not is_full(), reason="sh deploy/test.sh --guarantees")
ROLES = {"daemon", "worker", "publisher", "completions"}


class Place(TinyHouse):
    """A tiny model's installation with all parts."""

    def __init__(self, folder: Path) -> None:
        self.port, self.answers_port = free_port(), free_port()
        super().__init__(
            folder,
            publish={"follow": True, "poll_seconds": 0.2},
            serve={"enabled": True, "port": self.answers_port, "max_tokens": 100_000},
            api={"port": self.port},
            store={"reserve_bytes": 0},
            schedule={"heartbeat_seconds": 2.0},
        )
        self.log = folder / "run.log"
        self.edit(1, statement("Peru", "Lima"))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon.cli", "--config", str(self.file), *arguments]

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as sink:
            return subprocess.Popen(
                self.command(*(arguments or ("run",))), env=environment, stdout=sink, stderr=sink
            )

    def errata(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, check=False)

    def lives(self) -> dict[str, str]:
        with self.ledger.read() as connection:
            rows = process_list(connection, self.ledger.clock, self.config.model.name)
        return {row["role"]: row["life"] for row in reversed(rows)}

    def all_live(self) -> bool:
        return self.lives() == dict.fromkeys(ROLES, "alive") and self.answers()

    def answers(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.answers_port}/healthz").status_code == 200
        return False


@pytest.fixture
def place(tmp_path: Path, redis_binary: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.ledger.close()


@pytest.fixture
def running(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    """``errata run`` with all of its parts alive."""
    process = place.start()
    try:
        wait(place.all_live, 300, place.log.read_text()[-2000:])
        yield process
    finally:
        family = [] if has_ended(process.pid) else descendants(process.pid)
        process.kill()
        process.wait()
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> float:
    """Send a signal, and return the seconds until the process and all it made have ended."""
    family, began = descendants(process.pid), time.monotonic()
    process.send_signal(number)
    assert process.wait(LIMIT) == 0
    wait(lambda: all(map(has_ended, family)), LIMIT - (time.monotonic() - began))
    return time.monotonic() - began


def hold_connections(place: Place) -> None:
    """Clients that neither finish nor read, and one that waits for a very long answer."""
    for port in (place.port, place.answers_port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"POST /v1/corrections HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000\r\n\r\n{")
        threading.Thread(target=client.recv, args=(1,), daemon=True).start()

    def ask() -> None:
        body = {"model": "default", "prompt": "The capital of Peru is", "max_tokens": 100_000, "stream": True}
        with suppress(httpx.HTTPError):
            httpx.post(f"http://127.0.0.1:{place.answers_port}/v1/completions", json=body, timeout=60)

    threading.Thread(target=ask, daemon=True).start()
    time.sleep(1)


def stop_children(process: subprocess.Popen[bytes]) -> None:
    """Redis, worker and the others hang, and hear no signal."""
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGSTOP)


def test_sigkill_leaves_nothing_and_status_says_so(place: Place, running: subprocess.Popen[bytes]) -> None:
    family = descendants(running.pid)
    assert len(family) >= 5, "Redis, Celery and its child, publisher, completions"
    running.kill()
    running.wait()
    wait(lambda: all(map(has_ended, family)), 5)
    wait(lambda: place.lives() == dict.fromkeys(ROLES, "lost"), 15)
    told = place.errata("status")
    assert told.returncode == 0
    for role in ROLES:
        assert f"LOST         {role}" in told.stdout
    examined = place.errata("doctor")
    assert examined.returncode == 1
    assert "did not end in order" in examined.stdout


@LONG
def test_with_connections_open_and_answers_in_progress(
    place: Place, running: subprocess.Popen[bytes]
) -> None:
    hold_connections(place)
    end(running)
    assert place.lives() == dict.fromkeys(ROLES, "ended")


@LONG
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_by_another_signal(running: subprocess.Popen[bytes], number: signal.Signals) -> None:
    end(running, number)


@LONG
@pytest.mark.parametrize("prepare", [hold_connections, None])
def test_with_children_that_hang(
    place: Place, running: subprocess.Popen[bytes], prepare: Callable[[Place], None] | None
) -> None:
    if prepare:
        prepare(place)
    stop_children(running)
    end(running)


@LONG
def test_a_second_signal_ends_it_at_once(running: subprocess.Popen[bytes]) -> None:
    stop_children(running)
    family = descendants(running.pid)
    for _ in range(2):
        running.send_signal(signal.SIGTERM)
        time.sleep(1.5)
    running.wait(3)
    redis, *others = sorted(family)
    wait(lambda: all(map(has_ended, others)), 3)
    os.kill(redis, signal.SIGKILL)  # it hangs, and its next owner would end it


@LONG
@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0, 6.0, 9.0])
def test_at_the_start(place: Place, seconds: float) -> None:
    process = place.start()
    time.sleep(seconds)
    family = descendants(process.pid)
    process.terminate()
    assert process.wait(LIMIT) in (0, -signal.SIGTERM), "the second before it listens"
    wait(lambda: all(map(has_ended, family)), 3)


@LONG
@pytest.mark.parametrize("name", ["publish --follow", "serve", "run --no-worker"])
def test_a_part_by_itself(place: Place, name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    role = {"publish --follow": "publisher", "serve": "completions"}.get(name, "daemon")
    process = place.start(*name.split())
    wait(lambda: place.lives().get(role) == "alive", 60)
    time.sleep(1)
    end(process)
    assert place.lives()[role] == "ended"
