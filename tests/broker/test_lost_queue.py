"""Redis may forget everything at any time: what was accepted is still applied, and once.

One worker serves all tests of this file, so each begins with a queue that the one before left empty.
"""

import json
import os
import pickle
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.api.app import make_app
from daemon.core.names import edit_queue
from tests.broker.station import Station
from tests.conftest import is_full

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def station(redis_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    made = Station(tmp_path_factory.mktemp("station"), redis_binary)
    made.start_worker()
    made.say(1)
    made.until(made.all_applied, 90)
    yield made
    made.close()


def pause_worker(station: Station) -> None:
    """Stop the worker outside writes to the ledger, so that messages pile up."""
    assert station.worker is not None
    deadline = time.monotonic() + 30
    while True:
        os.killpg(station.worker.pid, signal.SIGSTOP)
        if is_writable(station):
            return
        wake_worker(station)
        assert time.monotonic() < deadline, "the worker never lets go of the ledger"
        time.sleep(0.05)


def is_writable(station: Station) -> bool:
    """Whether nobody is in the middle of a write transaction."""
    connection = sqlite3.connect(station.config.ledger_url.removeprefix("sqlite:///"), timeout=0.2)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


def wake_worker(station: Station) -> None:
    assert station.worker is not None
    os.killpg(station.worker.pid, signal.SIGCONT)


def test_flushed_with_batches_queued(station: Station) -> None:
    batches = 50 if is_full() else 10
    pause_worker(station)
    station.say(batches)
    station.until(lambda: station.waiting() >= batches * 9 // 10)
    station.client.flushall()
    assert station.waiting() == 0
    wake_worker(station)
    station.until(station.all_applied, 240)
    station.each_once()


def test_delivered_twice_is_applied_once(station: Station) -> None:
    pause_worker(station)
    station.say(5)
    station.until(lambda: station.waiting() >= 4)
    messages = station.client.lrange(edit_queue("default"), 0, -1)
    station.client.rpush(edit_queue("default"), *messages, *messages)
    wake_worker(station)
    station.until(station.all_applied)
    station.until(lambda: station.waiting() == 0)
    station.each_once()


def test_killed_and_started_again_with_its_file(station: Station) -> None:
    station.say(5)
    station.tick()
    assert station.server.pid is not None
    os.kill(station.server.pid, signal.SIGKILL)
    station.say(5)
    for _ in range(3):
        station.tick()  # Redis is away: a tick notes that and goes on
        time.sleep(0.2)
    assert sum(station.states().values()) == station.said  # what comes in is admitted meanwhile
    station.server.start()
    station.until(station.all_applied, 120)
    station.each_once()


def test_started_again_without_its_data(station: Station) -> None:
    pause_worker(station)
    station.say(10)
    station.until(lambda: station.waiting() >= 8)
    station.server.stop()
    for name in ("appendonlydir", "appendonly.aof", "dump.rdb"):
        shutil.rmtree(station.folder / "redis" / name, ignore_errors=True)
        if (station.folder / "redis" / name).is_file():
            (station.folder / "redis" / name).unlink()
    station.server.start()
    assert station.waiting() == 0
    wake_worker(station)
    station.until(station.all_applied, 120)
    station.each_once()


@pytest.mark.skipif(not is_full(), reason="takes 40 s: part of deploy/test.sh --guarantees")
def test_hangs_for_a_while(station: Station) -> None:
    """A server that takes connections and does not answer is as good as none."""
    station.say(3)
    station.until(station.all_applied)
    pid = station.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        station.say(5)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            station.tick()
        assert station.states()["applied"] == station.said - 5
        assert ready(station) == 503
    finally:
        os.kill(pid, signal.SIGCONT)
    station.until(station.all_applied, 120)
    assert ready(station) == 200
    station.each_once()


def ready(station: Station) -> int:
    from starlette.testclient import TestClient

    with TestClient(make_app(station.ledger, station.config)) as client:
        assert client.get("/healthz").status_code == 200
        return client.get("/readyz").status_code


class Bomb:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("kind", ["pickle", "unknown task"])
def test_a_foreign_message_is_discarded_and_runs_no_code(station: Station, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    with station.scheduler.queue._app.connection() as connection, connection.channel() as channel:
        producer = connection.Producer(channel)
        if kind == "pickle":
            body, content_type, encoding = (
                pickle.dumps(Bomb(mark)),
                "application/x-python-serialize",
                "binary",
            )
        else:
            body, content_type, encoding = json.dumps([[str(mark)], {}, {}]), "application/json", "utf-8"
        task = "errata.edit" if kind == "pickle" else "os.mkdir"
        producer.publish(
            body,
            routing_key=edit_queue("default"),
            content_type=content_type,
            content_encoding=encoding,
            headers={"task": task, "id": "1", "lang": "py", "argsrepr": "", "kwargsrepr": ""},
        )
    station.say(2)
    station.until(station.all_applied)
    assert not mark.exists()
    station.each_once()
