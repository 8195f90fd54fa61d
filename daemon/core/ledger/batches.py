"""Batches: made from waiting corrections, sent, done, or split when they keep failing."""

import secrets
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.corrections import put_in_batch, put_up_for_bisect
from daemon.core.ledger.database import no_later
from daemon.core.ledger.proposals import Refusal
from daemon.core.ledger.schema import batches, corrections
from daemon.core.ledger.settlement import quarantine_refused
from daemon.core.names import BatchState, CorrectionState, QuarantineReason


def create(connection: Connection, now: datetime, model: str, correction_ids: Sequence[str]) -> str:
    """Put corrections into a new batch in the outbox, and return its id."""
    (batch_id,) = create_all(connection, now, model, [correction_ids])
    return batch_id


def create_all(
    connection: Connection, now: datetime, model: str, groups: Sequence[Sequence[str]]
) -> list[str]:
    """Put each group of corrections into a new batch in the outbox, and return the batches' ids."""
    made = {_new_id(): group for group in groups}
    if not made:
        return []
    about = {"model": model, "state": BatchState.OPEN, "created_at": to_text(now)}
    connection.execute(insert(batches), [{"id": batch_id, **about} for batch_id in made])
    for batch_id, group in made.items():
        put_in_batch(connection, batch_id, group)
    return list(made)


def create_bisect(
    connection: Connection, now: datetime, model: str, rollback: int, correction_ids: Sequence[str]
) -> str:
    """Put corrections that ``rollback`` reverted into a new batch for bisect, and return its id."""
    batch_id = _new_id()
    about = {"id": batch_id, "model": model, "state": BatchState.OPEN, "created_at": to_text(now)}
    connection.execute(insert(batches).values(**about, rollback=rollback))
    put_up_for_bisect(connection, batch_id, correction_ids)
    return batch_id


def mark_sent(connection: Connection, now: datetime, batch_ids: Sequence[str]) -> None:
    """Record that the queue has taken batches. One that is done already stays done."""
    values = {"state": BatchState.SENT, "sent_at": to_text(now), "sends": batches.c.sends + 1}
    waits = batches.c.state.in_((BatchState.OPEN, BatchState.SENT))
    connection.execute(update(batches).where(batches.c.id.in_(batch_ids), waits).values(**values))


def get(connection: Connection, batch_id: str) -> RowMapping | None:
    """A batch, or None."""
    return connection.execute(select(batches).where(batches.c.id == batch_id)).mappings().one_or_none()


def are_open(connection: Connection, model: str) -> bool:
    """Whether a batch waits to be applied."""
    live = batches.c.state.in_((BatchState.OPEN, BatchState.SENT))
    query = select(batches.c.id).where(batches.c.model == model, live).limit(1)
    return connection.execute(query).first() is not None


def waiting(connection: Connection, batch_id: str) -> Sequence[RowMapping]:
    """The corrections of a batch that are still to be applied, in order of admission."""
    query = select(corrections).where(
        corrections.c.batch_id == batch_id, corrections.c.state == CorrectionState.QUEUED
    )
    return connection.execute(query.order_by(corrections.c.seq)).mappings().all()


def up_for_bisect(connection: Connection, batch_id: str) -> Sequence[RowMapping]:
    """The corrections of a batch that are still reverted, in order of admission."""
    query = select(corrections).where(
        corrections.c.batch_id == batch_id, corrections.c.state == CorrectionState.REVERTED
    )
    return connection.execute(query.order_by(corrections.c.seq)).mappings().all()


def close_batch(
    connection: Connection, now: datetime, batch_id: str, state: BatchState = BatchState.DONE
) -> None:
    """Mark a batch as done, or as split."""
    values = {"state": state, "closed_at": to_text(now)}
    connection.execute(update(batches).where(batches.c.id == batch_id).values(**values))


def split_or_refuse(connection: Connection, now: datetime, batch_id: str, why: str) -> list[str]:
    """Cut a batch that keeps failing in two, or quarantine the only correction that is left of it.

    Returns the ids of the new batches in the outbox.
    """
    rows = waiting(connection, batch_id)
    close_batch(connection, now, batch_id, BatchState.SPLIT)
    if len(rows) <= 1:
        reason = QuarantineReason.CRASHED_WORKER
        quarantine_refused(connection, now, [Refusal(row["id"], reason, why) for row in rows])
        return []
    ids = [row["id"] for row in rows]
    middle = len(ids) // 2
    model = rows[0]["model"]
    return create_all(connection, now, model, [ids[:middle], ids[middle:]])


def _new_id() -> str:
    return "b" + secrets.token_hex(10)


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(batches), batches.c.created_at, now)
    no_later(connection, update(batches), batches.c.sent_at, now)
