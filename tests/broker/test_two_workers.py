"""Two workers for one model: one takes the batches, the other stands by and takes over when it ends."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from daemon.core.ledger.schema import attempts, leases
from daemon.core.names import worker_lease
from tests.broker.station import Station
from tests.conftest import is_full

pytestmark = pytest.mark.redis


@pytest.fixture
def station(redis_binary: Path, tmp_path: Path) -> Iterator[Station]:
    made = Station(tmp_path, redis_binary, lease_seconds=6.0)  # a busy machine delays a renewal by seconds
    yield made
    made.close()


def leader(station: Station) -> int | None:
    """The process id of the worker that takes the batches."""
    with station.ledger.read() as connection:
        mine = leases.c.name == worker_lease(station.config.model.name)
        holder = connection.execute(select(leases.c.holder).where(mine, leases.c.note != "")).scalar()
    return None if holder is None else int(holder.rpartition(":")[2])


def attempted(station: Station) -> list[tuple[str, str]]:
    """Worker and outcome of each attempt, in order."""
    with station.ledger.read() as connection:
        query = select(attempts.c.worker, attempts.c.outcome).order_by(attempts.c.started_at)
        return [(row.worker, row.outcome) for row in connection.execute(query)]


def test_the_second_worker_stands_by_drops_nothing_and_takes_over(station: Station) -> None:
    first = station.start_worker()
    station.until(lambda: leader(station) == first.pid)
    second = station.start_worker()
    station.say(1)
    station.until(station.all_applied)
    station.until(lambda: "stands by" in station.log.read_text())
    station.say(20)
    station.until(station.all_applied, 30)
    done = attempted(station)
    assert len({worker for worker, _ in done}) == 1, "the workers took turns, and loaded head for each"
    assert [outcome for _, outcome in done] == ["ended"] * 21, "an attempt came to nothing"
    station.say(3)
    station.tick()
    os.killpg(first.pid, signal.SIGKILL)
    killed = time.monotonic()
    station.until(lambda: leader(station) == second.pid)
    assert time.monotonic() - killed < station.config.edit.lease_seconds + 1.5, "longer than the lease"
    station.until(station.all_applied, 30)
    station.each_once()


@pytest.mark.skipif(not is_full(), reason="starts two more workers: part of deploy/test.sh --guarantees")
def test_a_worker_that_ends_hands_over_at_once(station: Station) -> None:
    first = station.start_worker()
    station.until(lambda: leader(station) == first.pid)
    second = station.start_worker()
    station.until(lambda: "stands by" in station.log.read_text())
    first.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    station.until(lambda: leader(station) == second.pid)
    assert time.monotonic() - asked < station.config.edit.lease_seconds + 3
    station.say(2)
    station.until(station.all_applied)
    station.each_once()
