"""Heartbeats: a killed process is lost within 35 seconds, an ended one is not, whatever the clocks do."""

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.heartbeats import Heart, Life, age_seconds, beat, life
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import workers
from daemon.core.names import DEFAULT_MODEL, ProcessRole
from daemon.views.processes import lost_roles, process_list
from tests.ledgers import FakeClock

NOBODY = {"model": DEFAULT_MODEL, "device": "", "memory_bytes": 0, "gpu_memory_bytes": 0, "seconds": 10.0}
HOUR = 3600.0


def send(ledger: Ledger, role: ProcessRole = ProcessRole.DAEMON, state: str = "leads") -> None:
    with ledger.write() as connection:
        beat(connection, ledger.clock, role=role, state=state, **NOBODY)


def lives(ledger: Ledger) -> list[tuple[str, str]]:
    with ledger.read() as connection:
        return [(row["role"], row["life"]) for row in process_list(connection, ledger.clock, DEFAULT_MODEL)]


def test_a_silent_process_is_lost_after_three_heartbeats(ledger: Ledger, clock: FakeClock) -> None:
    send(ledger)
    clock.advance(30)
    assert lives(ledger) == [("daemon", "alive")]
    clock.advance(1)
    assert lives(ledger) == [("daemon", "lost")]


@pytest.mark.parametrize("state", ["ending", "ended"])
def test_a_process_that_ends_in_order_is_never_lost(ledger: Ledger, clock: FakeClock, state: str) -> None:
    send(ledger, state=state)
    clock.advance(HOUR)
    assert lives(ledger) == [("daemon", "ended")]


@pytest.mark.parametrize("step", [HOUR, -HOUR])
def test_a_step_of_the_clock_makes_nobody_dead_or_alive(
    ledger: Ledger, clock: FakeClock, step: float
) -> None:
    send(ledger)
    clock.step(step)
    assert lives(ledger) == [("daemon", "alive")]
    clock.advance(31)
    assert lives(ledger) == [("daemon", "lost")], "killed, and then the clock was set back"


def test_a_heartbeat_of_another_host_that_is_dated_ahead_counts_as_now(
    ledger: Ledger, clock: FakeClock
) -> None:
    row = {"name": "far:1", "role": "publisher", "state": "follows", "boot": "other", "renewed": 5e9}
    clock.step(HOUR)
    with ledger.write() as connection:
        connection.execute(insert(workers).values(seen_at=to_text(clock.now()), **row, **NOBODY))
    clock.step(-HOUR)
    with ledger.read() as connection:
        (found,) = connection.execute(select(workers)).mappings()
    assert (age_seconds(clock, found), life(clock, found)) == (0.0, Life.ALIVE)


def test_a_process_replaces_those_of_its_role_that_were_lost_on_its_host(
    ledger: Ledger, clock: FakeClock
) -> None:
    send(ledger)
    send_as_other(ledger)
    clock.advance(31)
    assert lives(ledger) == [("daemon", "lost"), ("daemon", "lost")]
    send(ledger)
    assert lives(ledger) == [("daemon", "alive")]


def send_as_other(ledger: Ledger) -> None:
    """What another process of this host left."""
    with ledger.write() as connection:
        (mine,) = connection.execute(select(workers)).mappings()
        name = mine["name"].rpartition(":")[0] + ":4194305"
        connection.execute(insert(workers).values(**{**mine, "name": name}))


def test_a_role_is_lost_only_when_none_of_it_lives(ledger: Ledger, clock: FakeClock) -> None:
    send(ledger, ProcessRole.WORKER, "busy")
    with ledger.write() as connection:
        connection.execute(update(workers).values(name="far:1"))
    clock.advance(31)
    with ledger.read() as connection:
        lost = lost_roles(process_list(connection, ledger.clock, DEFAULT_MODEL))
    assert [row["name"] for row in lost] == ["far:1"]
    send(ledger, ProcessRole.WORKER, "idle")
    with ledger.read() as connection:
        assert lost_roles(process_list(connection, ledger.clock, DEFAULT_MODEL)) == []
    assert lives(ledger) == [("worker", "alive"), ("worker", "lost")]


@pytest.fixture
def heart(sqlite_ledger: Ledger) -> Iterator[Heart]:
    with Heart(sqlite_ledger, DEFAULT_MODEL, ProcessRole.PUBLISHER, 0.05) as beating:
        yield beating


def test_a_heart_tells_each_state_at_once_and_its_end(sqlite_ledger: Ledger, heart: Heart) -> None:
    def told(state: str) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with sqlite_ledger.read() as connection:
                rows = connection.execute(select(workers.c.state, workers.c.memory_bytes)).all()
            if [row.state for row in rows] == [state]:
                return bool(rows[0].memory_bytes > 1 << 20)
            time.sleep(0.01)
        return False

    assert told("starting")
    heart.state = "follows"
    assert told("follows")
    heart.stop()
    assert told("ended")


def test_a_heart_outlives_a_ledger_that_does_not_answer(
    sqlite_ledger: Ledger, heart: Heart, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite_ledger.write():  # nobody else may write
        time.sleep(0.2)
    time.sleep(0.2)
    assert lives(sqlite_ledger) == [("publisher", "alive")]
