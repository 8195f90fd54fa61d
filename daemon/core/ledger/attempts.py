"""Attempts: each start of a batch, recorded before the work, and how it ended."""

from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.schema import attempts
from daemon.core.names import AttemptOutcome


def begin_attempt(connection: Connection, now: datetime, batch_id: str, worker: str) -> int:
    """Record the start of an attempt and return its number, from 1."""
    query = select(func.coalesce(func.max(attempts.c.number), 0)).where(attempts.c.batch_id == batch_id)
    number = int(connection.execute(query).scalar_one()) + 1
    row = {"batch_id": batch_id, "number": number, "worker": worker, "started_at": to_text(now)}
    connection.execute(insert(attempts).values(**row, outcome=AttemptOutcome.RUNNING))
    return number


def end_attempt(
    connection: Connection,
    now: datetime,
    batch_id: str,
    number: int,
    outcome: AttemptOutcome,
    error: str = "",
) -> None:
    """Record how an attempt ended. An attempt whose worker died has no end."""
    values = {"ended_at": to_text(now), "outcome": outcome, "error": error, "probe": None}
    connection.execute(update(attempts).where(_one(batch_id, number)).values(**values))


def begin_probe(connection: Connection, batch_id: str, number: int, probe: str) -> None:
    """Record which probe an attempt runs now: if the process dies, the next attempt leaves it out."""
    connection.execute(update(attempts).where(_one(batch_id, number)).values(probe=probe))


def fatal_probes(connection: Connection, batch_id: str) -> frozenset[str]:
    """The probes during which earlier attempts at a batch died."""
    died = (attempts.c.batch_id == batch_id) & (attempts.c.outcome == AttemptOutcome.RUNNING)
    query = select(attempts.c.probe).where(died, attempts.c.probe.is_not(None))
    return frozenset(connection.execute(query).scalars())


def count_failures(connection: Connection, batch_id: str) -> int:
    """How many attempts died outside of a probe, or ended in an error that the batch may have caused."""
    died = (attempts.c.outcome == AttemptOutcome.RUNNING) & attempts.c.probe.is_(None)
    failed = died | (attempts.c.outcome == AttemptOutcome.FAILED)
    query = select(func.count()).select_from(attempts).where(attempts.c.batch_id == batch_id, failed)
    return int(connection.execute(query).scalar_one())


def _one(batch_id: str, number: int) -> ColumnElement[bool]:
    return (attempts.c.batch_id == batch_id) & (attempts.c.number == number)
