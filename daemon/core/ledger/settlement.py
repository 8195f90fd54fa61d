"""What a new revision means for corrections: applied, superseded, retracted, reverted or quarantined."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, select

from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.corrections import leave_batch, set_state
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.proposals import Proposal, Refusal
from daemon.core.ledger.quarantine import QuarantineEntry, add_to_quarantine
from daemon.core.ledger.schema import corrections, tenures
from daemon.core.ledger.tenures import begin_tenure, end_tenures, end_tenures_of_fact
from daemon.core.names import CorrectionState


def quarantine_refused(connection: Connection, now: datetime, refused: Sequence[Refusal]) -> None:
    """Quarantine corrections that cannot be applied, each with its reason."""
    for refusal in refused:
        one = refusal.correction_id
        set_state(connection, [one], CorrectionState.QUARANTINED, refusal.message)
        of_one = select(corrections.c.model, corrections.c.feed).where(corrections.c.id == one)
        model, feed = connection.execute(of_one).one()
        entry = QuarantineEntry(model, feed, one, refusal.reason, refusal.message, correction_id=one)
        add_to_quarantine(connection, now, [entry])


def apply_written(connection: Connection, proposal: Proposal, number: int) -> None:
    """Put each written correction in force from revision ``number`` on, in the place of what was before."""
    model = proposal.model
    for written in proposal.written:
        by_id = corrections.c.id == written.correction_id
        row = connection.execute(select(corrections).where(by_id)).mappings().one()
        before = end_tenures_of_fact(connection, model, row["fact_id"], number)
        ended = CorrectionState.RETRACTED if row["object"] is None else CorrectionState.SUPERSEDED
        set_state(connection, before, ended, f"by {written.correction_id} in revision {number}")
        blob = None if written.row is None else proposal.blob
        begin_tenure(connection, model, row["fact_id"], written.correction_id, number, blob, written.row)
    for note in {written.note for written in proposal.written}:
        these = [written.correction_id for written in proposal.written if written.note == note]
        set_state(connection, these, CorrectionState.APPLIED, note)


def bring_back(connection: Connection, model: str, to: int, number: int) -> tuple[int, int]:
    """Put in force at ``number`` exactly what was at ``to``, and count what was taken back and restored."""
    now_in_force = {_content(row): row for row in active_tenures(connection, model, number)}
    wanted = {_content(row): row for row in active_tenures(connection, model, to)}
    closed = [row for key, row in now_in_force.items() if key not in wanted]
    opened = [row for key, row in wanted.items() if key not in now_in_force]
    orders = _order_keys(connection, [row["correction_id"] for row in (*closed, *opened)])
    successor = {row["fact_id"]: row for row in opened}
    end_tenures(connection, [row["id"] for row in closed], number)
    for row in closed:
        state = _state_after(row, successor.get(row["fact_id"]), orders)
        set_state(connection, [row["correction_id"]], state, f"rollback to {to} in revision {number}")
    for row in opened:
        begin_tenure(connection, model, row["fact_id"], row["correction_id"], number, row["blob"], row["row"])
    set_state(connection, [row["correction_id"] for row in opened], CorrectionState.APPLIED)
    _supersede_waiting(connection, opened, orders, number)
    return len(closed), len(opened)


def _content(tenure: RowMapping) -> tuple[str, str | None, int | None]:
    return tenure["correction_id"], tenure["blob"], tenure["row"]


def _supersede_waiting(
    connection: Connection, opened: Sequence[RowMapping], orders: Mapping[str, str], number: int
) -> None:
    """Supersede what waits and is older than a value that came back, since it would undo that value."""
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
    """Let corrections that a rollback reverted wait for a batch, unless a newer one waits or is applied.

    Returns those that wait. What is beaten is superseded, and what is no longer reverted stays as it is.
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
    """The corrections that the rollback ``number`` took back and that are still reverted, oldest first."""
    reverted = corrections.c.state == CorrectionState.REVERTED
    ended = (tenures.c.model == model) & (tenures.c.until == number)
    joined = select(corrections.c.id).join(tenures, tenures.c.correction_id == corrections.c.id)
    query = joined.where(ended, reverted).order_by(corrections.c.seq)
    return list(dict.fromkeys(connection.execute(query).scalars()))


def _state_after(closed: RowMapping, opened: RowMapping | None, orders: Mapping[str, str]) -> CorrectionState:
    """The state of a correction whose tenure ends: superseded or retracted by a newer one, else reverted."""
    if opened is None or orders[opened["correction_id"]] < orders[closed["correction_id"]]:
        return CorrectionState.REVERTED
    return CorrectionState.RETRACTED if opened["blob"] is None else CorrectionState.SUPERSEDED


def _order_keys(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for some in in_chunks(ids):
        query = select(corrections.c.id, corrections.c.order_key).where(corrections.c.id.in_(some))
        keys |= {row.id: row.order_key for row in connection.execute(query)}
    return keys
