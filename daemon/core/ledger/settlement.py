"""What a new revision means for each correction: applied, superseded, retracted, reverted, quarantined."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, and_, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.corrections import leave_batch, set_state
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.proposals import ProbeRow, Proposal, Refusal
from daemon.core.ledger.quarantine import QuarantineEntry, add_to_quarantine
from daemon.core.ledger.schema import batches, corrections, probe_results, tenures
from daemon.core.names import BatchState, CorrectionState


def settle_refused(connection: Connection, now: datetime, refused: Sequence[Refusal]) -> None:
    """Quarantine corrections that cannot be applied, each with its reason."""
    for refusal in refused:
        one = refusal.correction_id
        set_state(connection, [one], CorrectionState.QUARANTINED, refusal.message)
        feed = connection.execute(select(corrections.c.feed).where(corrections.c.id == one)).scalar_one()
        entry = QuarantineEntry(feed, one, refusal.reason, refusal.message, correction_id=one)
        add_to_quarantine(connection, now, [entry])


def close_batch(connection: Connection, now: datetime, batch_id: str) -> None:
    """Mark a batch as done."""
    values = {"state": BatchState.DONE, "closed_at": to_text(now)}
    connection.execute(update(batches).where(batches.c.id == batch_id).values(**values))


def settle_written(connection: Connection, proposal: Proposal, number: int) -> None:
    """Give each written correction its fact from ``number`` on and end what held the fact before."""
    for written in proposal.written:
        row = (
            connection.execute(select(corrections).where(corrections.c.id == written.correction_id))
            .mappings()
            .one()
        )
        held = and_(
            tenures.c.model == proposal.model, tenures.c.fact_id == row["fact_id"], tenures.c.until.is_(None)
        )
        before = connection.execute(select(tenures.c.correction_id).where(held)).scalars().all()
        connection.execute(update(tenures).where(held).values(until=number))
        outcome = CorrectionState.RETRACTED if row["object"] is None else CorrectionState.SUPERSEDED
        set_state(connection, before, outcome, f"by {written.correction_id} in revision {number}")
        connection.execute(
            insert(tenures).values(
                model=proposal.model,
                fact_id=row["fact_id"],
                correction_id=written.correction_id,
                since=number,
                blob=None if written.row is None else proposal.blob,
                row=written.row,
            )
        )
    for note in {written.note for written in proposal.written}:
        these = [written.correction_id for written in proposal.written if written.note == note]
        set_state(connection, these, CorrectionState.APPLIED, note)


def move_tenures(connection: Connection, model: str, to: int, number: int) -> tuple[int, int]:
    """Make ``number`` hold exactly what ``to`` held; returns how many were taken back and restored."""
    now_held = {
        (r["correction_id"], r["blob"], r["row"]): r for r in active_tenures(connection, model, number)
    }
    wanted = {(r["correction_id"], r["blob"], r["row"]): r for r in active_tenures(connection, model, to)}
    closed = [row for key, row in now_held.items() if key not in wanted]
    opened = [row for key, row in wanted.items() if key not in now_held]
    orders = _order_keys(connection, [row["correction_id"] for row in (*closed, *opened)])
    successor = {row["fact_id"]: row for row in opened}
    for row in closed:
        connection.execute(update(tenures).where(tenures.c.id == row["id"]).values(until=number))
        state = _state_after(row, successor.get(row["fact_id"]), orders)
        set_state(connection, [row["correction_id"]], state, f"rollback to {to} in revision {number}")
    for row in opened:
        same = {key: row[key] for key in ("model", "fact_id", "correction_id", "blob", "row")}
        connection.execute(insert(tenures).values(**same, since=number))
    set_state(connection, [row["correction_id"] for row in opened], CorrectionState.APPLIED)
    _beat_waiting(connection, opened, orders, number)
    return len(closed), len(opened)


def _beat_waiting(
    connection: Connection, opened: Sequence[RowMapping], orders: Mapping[str, str], number: int
) -> None:
    """What waits for a fact and is older than the value that came back would undo it; newest wins."""
    for row in opened:
        waits = corrections.c.state.in_((CorrectionState.PENDING, CorrectionState.QUEUED))
        query = select(corrections.c.id, corrections.c.order_key).where(
            corrections.c.fact_id == row["fact_id"], waits
        )
        restored = row["correction_id"]
        older = [w.id for w in connection.execute(query) if w.order_key < orders[restored]]
        why = f"by {restored}, which revision {number} brought back"
        set_state(connection, older, CorrectionState.SUPERSEDED, why)


def wait_again(connection: Connection, ids: Iterable[str], why: str) -> list[str]:
    """Let corrections that a rollback reverted wait for a batch, unless something newer does or holds.

    Returns those that wait; what is beaten is superseded, and what is no longer reverted stays as it is.
    """
    waiting = []
    newer_counts = (CorrectionState.PENDING, CorrectionState.QUEUED, CorrectionState.APPLIED)
    for one in ids:
        mine = (corrections.c.id == one) & (corrections.c.state == CorrectionState.REVERTED)
        row = connection.execute(select(corrections).where(mine)).mappings().one_or_none()
        if row is None:
            continue
        newer = select(corrections.c.id).where(
            corrections.c.fact_id == row["fact_id"],
            corrections.c.order_key > row["order_key"],
            corrections.c.state.in_(newer_counts),
        )
        beaten = connection.execute(newer.limit(1)).first() is not None
        state = CorrectionState.SUPERSEDED if beaten else CorrectionState.PENDING
        leave_batch(connection, one, state, why)
        if not beaten:
            waiting.append(one)
    return waiting


def reverted_by(connection: Connection, model: str, number: int) -> list[str]:
    """The corrections that the rollback ``number`` took back and that are still held, oldest first."""
    query = (
        select(corrections.c.id)
        .join(tenures, tenures.c.correction_id == corrections.c.id)
        .where(
            tenures.c.model == model,
            tenures.c.until == number,
            corrections.c.state == CorrectionState.REVERTED,
        )
        .order_by(corrections.c.seq)
    )
    return list(dict.fromkeys(connection.execute(query).scalars()))


def _state_after(closed: RowMapping, opened: RowMapping | None, orders: Mapping[str, str]) -> CorrectionState:
    """A correction whose tenure ends is superseded by a newer one, otherwise taken back."""
    if opened is None or orders[opened["correction_id"]] < orders[closed["correction_id"]]:
        return CorrectionState.REVERTED
    return CorrectionState.RETRACTED if opened["blob"] is None else CorrectionState.SUPERSEDED


def _order_keys(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for some in in_chunks(ids):
        query = select(corrections.c.id, corrections.c.order_key).where(corrections.c.id.in_(some))
        found |= {row.id: row.order_key for row in connection.execute(query)}
    return found


def insert_probes(
    connection: Connection, now: datetime, model: str, number: int, probes: Sequence[ProbeRow]
) -> None:
    """Append measurements of a revision."""
    for probe in probes:
        connection.execute(
            insert(probe_results).values(
                model=model,
                revision=number,
                probe=probe.probe,
                version=probe.version,
                result=probe.result,
                score=probe.score,
                bound=probe.bound,
                items=probe.items,
                seconds=probe.seconds,
                details=probe.details,
                outcomes=probe.outcomes.to_json() if probe.outcomes else None,
                measured_at=to_text(now),
            )
        )
