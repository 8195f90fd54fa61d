"""Heartbeats: when each worker process was last heard of, and what it was doing."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, update

from daemon.core.clock import to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import workers

_KEPT = timedelta(days=1)  # long enough to see in the morning what ended at night


def beat(
    connection: Connection,
    now: datetime,
    name: str,
    model: str,
    state: str,
    device: str,
    memory_bytes: int,
    gpu_memory_bytes: int = 0,
) -> None:
    """Record what a worker does now, and delete the rows of processes that ended long ago."""
    gone = workers.c.seen_at < to_text(now - _KEPT)
    connection.execute(delete(workers).where((workers.c.name == name) | gone))
    row = {"name": name, "model": model, "state": state, "device": device, "memory_bytes": memory_bytes}
    row |= {"gpu_memory_bytes": gpu_memory_bytes, "seen_at": to_text(now)}
    connection.execute(insert(workers).values(**row))


def heard(ledger: Ledger, model: str, names: Iterable[str]) -> None:
    """Record that worker processes answered a ping."""
    with ledger.write() as connection:
        now = ledger.clock.now()
        for name in names:
            mine = workers.c.name == name
            if not connection.execute(update(workers).where(mine).values(seen_at=to_text(now))).rowcount:
                beat(connection, now, name, model, "up", "", 0)


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(workers), workers.c.seen_at, now)
