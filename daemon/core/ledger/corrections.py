"""The only module that writes to the table ``corrections``."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, update

from daemon.core.ledger.database import in_chunks, no_later
from daemon.core.ledger.schema import corrections
from daemon.core.names import CorrectionState


def store_corrections(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert new corrections, given as values by column."""
    if rows:
        connection.execute(insert(corrections), rows)


def set_state(connection: Connection, ids: Iterable[str], state: CorrectionState, reason: str = "") -> None:
    """Put corrections into a state without changing their batches."""
    for some in in_chunks(ids):
        these = corrections.c.id.in_(some)
        connection.execute(update(corrections).where(these).values(state=state, reason=reason))


def supersede(connection: Connection, winners: Mapping[str, str]) -> None:
    """Mark stored corrections (keys) as beaten by newer ones (values)."""
    if not winners:
        return
    change = (
        update(corrections)
        .where(corrections.c.id == bindparam("loser"))
        .values(state=CorrectionState.SUPERSEDED, reason=bindparam("why"))
    )
    connection.execute(change, [{"loser": loser, "why": f"by {by}"} for loser, by in winners.items()])


def put_in_batch(connection: Connection, batch_id: str, ids: Sequence[str]) -> None:
    """Queue corrections as members of a batch."""
    members = update(corrections).where(corrections.c.id.in_(bindparam("members", expanding=True)))
    change = members.values(state=CorrectionState.QUEUED, batch_id=bindparam("its_batch"))
    connection.execute(change, {"members": list(ids), "its_batch": batch_id})


def leave_batch(connection: Connection, correction_id: str, state: CorrectionState, reason: str) -> None:
    """Put a correction into a state in which it belongs to no batch, so that a new one can take it."""
    values = {"state": state, "reason": reason, "batch_id": None}
    connection.execute(update(corrections).where(corrections.c.id == correction_id).values(**values))


def put_up_for_bisect(connection: Connection, batch_id: str, ids: Sequence[str]) -> None:
    """Make reverted corrections members of a batch without changing their state."""
    for some in in_chunks(ids):
        these = corrections.c.id.in_(some)
        connection.execute(update(corrections).where(these).values(batch_id=batch_id))


def note_return(connection: Connection, ids: Iterable[str], rollback: int) -> None:
    """Record that corrections which a rollback took back are written again by themselves."""
    for some in in_chunks(ids):
        these = corrections.c.id.in_(some)
        connection.execute(update(corrections).where(these).values(came_back=rollback))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(corrections), corrections.c.admitted_at, now)
