"""Heartbeats: when each process was last heard of, and what it was doing.

A heartbeat bears the monotonic clock of its boot, so that no step of the wall clock makes a living process
look dead or a dead one alive. Between hosts its date counts. A process is lost when three heartbeats were
missed and it did not say that it ends.
"""

import os
import socket
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, RowMapping, delete, insert, update
from sqlalchemy.exc import SQLAlchemyError

from daemon.core.clock import Clock, boot_id, from_text, to_text
from daemon.core.errors import ErrataError
from daemon.core.ledger.database import no_later
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import workers
from daemon.core.log import get_logger
from daemon.core.names import ProcessRole

log = get_logger("errata.heartbeat")
ENDING, ENDED = "ending", "ended"
"""The states of a process that was asked to end, after which silence is no loss."""
_KEPT = timedelta(days=1)  # long enough to see in the morning what ended at night
_MISSED = 3.0  # heartbeats in a row; one may be late where the disk or the machine is busy


class Life(StrEnum):
    """What a heartbeat says about its process."""

    ALIVE = "alive"
    LOST = "lost"  # silent without having said that it ends: killed, hung, or its machine is down
    ENDED = "ended"  # ended in order


def process_name() -> str:
    """Return the name of this process in leases, attempts and heartbeats."""
    return f"{socket.gethostname()}:{os.getpid()}"


def age_seconds(clock: Clock, row: RowMapping) -> float:
    """Return the seconds since a heartbeat, 0 for one that is dated ahead."""
    if row["boot"] == boot_id():
        return max(0.0, clock.monotonic() - float(row["renewed"]))
    return max(0.0, (clock.now() - from_text(row["seen_at"])).total_seconds())


def life(clock: Clock, row: RowMapping) -> Life:
    """Return whether the process of a heartbeat lives, ended in order, or was lost."""
    if row["state"] == ENDED:
        return Life.ENDED
    if age_seconds(clock, row) <= _MISSED * float(row["seconds"]):
        return Life.ALIVE
    return Life.ENDED if row["state"] == ENDING else Life.LOST


class Heart:
    """Sends the heartbeats of this process from a thread, until its ``with`` block or ``stop`` ends it."""

    def __init__(
        self,
        ledger: Ledger,
        model: str,
        role: ProcessRole,
        seconds: float,
        *,
        gpu_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._ledger, self._seconds, self._gpu_bytes = ledger, seconds, gpu_bytes
        self._fixed = {"model": model, "role": role, "seconds": seconds}
        self._state, self.device = "starting", ""
        self._changed, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    @property
    def state(self) -> str:
        """What the process does. A change is told at once."""
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        if state != self._state:
            self._state = state
            self._changed.set()

    def start(self) -> None:
        """Begin to send heartbeats."""
        self._thread.start()

    def stop(self) -> None:
        """Tell that the process ended in order, and send no more heartbeats."""
        self._stopping.set()
        self.state = ENDED
        self._thread.join(self._seconds)

    def __enter__(self) -> Self:
        """Begin to send heartbeats."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell that the process ended in order."""
        self.stop()

    def _beat_on(self) -> None:
        while True:
            ending = self._stopping.is_set()
            self._changed.clear()
            try:
                self._beat()
            except (ErrataError, SQLAlchemyError) as error:  # it is tried again at the next heartbeat
                log.warning("no heartbeat", error=str(error))
            if ending:
                return
            if not self._stopping.is_set():
                self._changed.wait(self._seconds)

    def _beat(self) -> None:
        memory = {"memory_bytes": resident_bytes(), "gpu_memory_bytes": self._gpu_bytes()}
        now = {"state": self._state, "device": self.device}
        with self._ledger.write() as connection:
            beat(connection, self._ledger.clock, **now, **self._fixed, **memory)


def beat(connection: Connection, clock: Clock, **columns: Any) -> None:
    """Record what this process does now, and delete the rows of processes that ended long ago.

    A later process of the same role on this host replaces those that ended or were lost before it.
    """
    now, name, host = clock.now(), process_name(), socket.gethostname()
    gone = workers.c.seen_at < to_text(now - _KEPT)
    connection.execute(delete(workers).where((workers.c.name == name) | gone))
    silent = to_text(now - timedelta(seconds=_MISSED * float(columns["seconds"])))
    former = workers.c.name.startswith(f"{host}:", autoescape=True) & (workers.c.role == columns["role"])
    former &= (workers.c.model == columns["model"]) & (
        (workers.c.seen_at < silent) | (workers.c.state == ENDED)
    )
    connection.execute(delete(workers).where(former))
    stamp = {"seen_at": to_text(now), "boot": boot_id(), "renewed": clock.monotonic()}
    connection.execute(insert(workers).values(name=name, **stamp, **columns))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(workers), workers.c.seen_at, now)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, or 0 where there is no Linux /proc."""
    try:
        with Path("/proc/self/statm").open(encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
