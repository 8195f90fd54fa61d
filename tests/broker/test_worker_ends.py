"""SIGTERM ends a worker within 10 seconds whatever it does, and what was in work comes again."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from daemon.core.ledger.schema import attempts
from tests.broker.station import Station
from tests.conftest import is_full
from tests.processes import descendants, has_ended, wait

pytestmark = pytest.mark.redis
LONG = pytest.mark.skipif(not is_full(), reason="sh deploy/test.sh --guarantees")
LIMIT = 10.0


@pytest.fixture
def station(tmp_path: Path, redis_binary: Path) -> Iterator[Station]:
    made = Station(tmp_path, redis_binary)
    yield made
    made.close()


def end(worker: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> float:
    """Send a signal, wait until the worker and all of its children have ended, and return the seconds."""
    children = descendants(worker.pid)
    began = time.monotonic()
    worker.send_signal(number)
    assert worker.wait(LIMIT) == 0
    wait(lambda: all(map(has_ended, children)), LIMIT - (time.monotonic() - began))
    return time.monotonic() - began


def outcomes(station: Station) -> list[str]:
    with station.ledger.read() as connection:
        return list(connection.execute(select(attempts.c.outcome)).scalars())


def begin_batch(station: Station, **environment: str) -> subprocess.Popen[bytes]:
    """A worker that lingers in a batch."""
    worker = station.start_worker("tests.broker.slow_app", **environment)
    station.say(1)
    if environment["SLOW"] == "model":
        station.until(lambda: station.waiting() == 0 and sum(station.states().values()) == 1, 120)
    else:  # a batch that was sent again while the worker started lies in the queue twice
        station.until(lambda: outcomes(station) == ["running"], 120)
    time.sleep(0.3)
    return worker


LONGER = (pytest.param("model", marks=LONG), pytest.param("probe", marks=LONG))


@pytest.mark.parametrize("place", ["session.written", *LONGER])
def test_in_a_batch(station: Station, place: str) -> None:
    worker = begin_batch(station, SLOW=place)
    end(worker)
    station.workers.remove(worker)
    assert outcomes(station) == ([] if place == "model" else ["later"])
    assert station.waiting() >= 1, "the batch is on the queue again"
    station.start_worker()
    station.until(station.all_applied, 120)
    station.each_once()


@LONG
def test_where_no_signal_is_heard(station: Station) -> None:
    worker = begin_batch(station, SLOW="session.written", DEAF="1")
    end(worker)
    station.workers.remove(worker)
    station.start_worker()
    station.until(station.all_applied, 120)
    station.each_once()


@LONG
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_by_another_signal(station: Station, number: signal.Signals) -> None:
    worker = begin_batch(station, SLOW="session.written")
    end(worker, number)
    station.workers.remove(worker)
    assert station.waiting() >= 1


@LONG
def test_while_it_waits_for_redis(station: Station) -> None:
    os.kill(station.server.pid or 0, signal.SIGSTOP)
    try:
        worker = station.start_worker("tests.broker.slow_app", SLOW="nowhere")
        wait(lambda: "celery@" in station.log.read_text(), 120)
        time.sleep(2)
        assert worker.poll() is None
        end(worker)
        station.workers.remove(worker)
    finally:
        os.kill(station.server.pid or 0, signal.SIGCONT)


@LONG
def test_a_killed_worker_takes_its_child_along(station: Station) -> None:
    worker = begin_batch(station, SLOW="session.written")
    (child,) = descendants(worker.pid)
    worker.kill()
    worker.wait()
    station.workers.remove(worker)
    wait(lambda: has_ended(child), 5)
