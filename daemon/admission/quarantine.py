"""What an operator does with a quarantine entry: release it, approve it or drop it."""

from typing import Any

from sqlalchemy import Connection, RowMapping, select

from daemon.admission.newest_wins import Contender
from daemon.admission.record import OPERATOR_TRUST, Decision, arrive, load_contenders, store_arrivals
from daemon.core.corrections import parse_item
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit
from daemon.core.ledger.corrections import leave_batch, supersede
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.quarantine import close_entry
from daemon.core.ledger.schema import corrections, quarantine
from daemon.core.names import APPROVABLE, DEFAULT_MODEL, AdmissionOutcome, CorrectionState, QuarantineState
from daemon.core.relations.table import complete


def release(ledger: Ledger, entry: int, who: str, reason: str) -> Decision:
    """Admit a quarantined entry by the same newest-wins rules as everything else.

    A correction waits for a batch again even where a rollback had taken its value out. A raw item is parsed
    again, and stays in quarantine when it is still refused.

    Raises:
        NotFoundError: no such entry, or it was closed. InvalidCorrectionError: still refused.
    """
    with ledger.write() as connection:
        row = _open_entry(connection, entry)
        if row["correction_id"] is None:
            decision = _admit_raw(connection, ledger, row)
        else:
            decision = place_again(connection, row, f"released by {who}: {reason}")
        _close(connection, ledger, row, who, reason, decision)
    return decision


def approve(ledger: Ledger, entry: int, who: str, reason: str) -> Decision:
    """Release an entry that waits for a human's approval, or raise NotFoundError if it does not."""
    with ledger.read() as connection:
        why = connection.execute(select(quarantine.c.reason).where(quarantine.c.id == entry)).scalar()
    if why is not None and why not in APPROVABLE:
        raise NotFoundError(
            f"entry {entry} does not wait for approval: it is quarantined as {why}",
            hint=f"errata quarantine release {entry} admits it nevertheless",
        )
    return release(ledger, entry, who, reason)


def drop(ledger: Ledger, entry: int, who: str, reason: str) -> None:
    """Close a quarantined entry without admitting it, or raise NotFoundError if it is not open."""
    with ledger.write() as connection:
        _close(connection, ledger, _open_entry(connection, entry), who, reason, None)


def waiting(connection: Connection, model: str, limit: int) -> list[dict[str, Any]]:
    """Return the entries that wait for approval with what they state, oldest first."""
    columns = (
        *(corrections.c[name] for name in ("subject", "relation", "object", "source")),
        *(quarantine.c[name] for name in ("id", "reason", "feed", "message", "at", "correction_id")),
    )
    mine = (corrections.c.model == model) & (quarantine.c.state == QuarantineState.HELD)
    joined = select(*columns).join(corrections, corrections.c.id == quarantine.c.correction_id)
    query = joined.where(mine, quarantine.c.reason.in_(APPROVABLE)).order_by(quarantine.c.id).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def place_again(connection: Connection, entry: RowMapping, why: str) -> Decision:
    """Place the stored correction of a quarantine entry by newest-wins once more."""
    mine = corrections.c.id == entry["correction_id"]
    stored = connection.execute(select(corrections).where(mine)).mappings().one()
    position, fact_id = entry["position"], stored["fact_id"]
    if stored["state"] != CorrectionState.QUARANTINED:  # released through another of its entries
        return Decision(position, AdmissionOutcome.DUPLICATE, stored["id"], fact_id)
    state = CorrectionState.QUARANTINED
    contender = Contender(stored["id"], stored["order_key"], stored["object"], stored["prompt"], state)
    placement = load_contenders(connection, [fact_id])[fact_id].place(contender, may_return=True)
    message = f"{why}; {placement.message}" if placement.message else why
    leave_batch(connection, stored["id"], placement.state, message)
    supersede(connection, dict.fromkeys(placement.beaten, stored["id"]))
    return Decision(position, placement.outcome, stored["id"], fact_id, message=message)


def _open_entry(connection: Connection, entry: int) -> RowMapping:
    """Return an entry that is still in quarantine, or raise NotFoundError."""
    row = connection.execute(select(quarantine).where(quarantine.c.id == entry)).mappings().one_or_none()
    hint = "errata quarantine list shows the open entries"
    if row is None:
        raise NotFoundError(f"there is no quarantine entry {entry}", hint=hint)
    if row["state"] != QuarantineState.HELD:
        raise NotFoundError(f"quarantine entry {entry} was {row['state']} already", hint=hint)
    return row


def _admit_raw(connection: Connection, ledger: Ledger, entry: RowMapping) -> Decision:
    """Parse and store an item that was refused as it came, or raise InvalidCorrectionError again."""
    now = ledger.clock.now()
    model = entry["model"] or DEFAULT_MODEL
    correction = parse_item(entry["raw"], model, complete)
    arrival = arrive(correction, entry["position"], OPERATOR_TRUST, now, now)
    (decision,) = store_arrivals(connection, now, model, entry["feed"], OPERATOR_TRUST, [arrival])
    return decision


def _close(
    connection: Connection,
    ledger: Ledger,
    entry: RowMapping,
    who: str,
    reason: str,
    decision: Decision | None,
) -> None:
    """Close an entry, released with ``decision`` or dropped without one, and write the audit row."""
    details = {"reason": entry["reason"], "correction": entry["correction_id"]}
    state, action = QuarantineState.DROPPED, "quarantine.drop"
    if decision is not None:
        state, action = QuarantineState.RELEASED, "quarantine.release"
        details |= {"correction": decision.correction_id, "outcome": decision.outcome}
    close_entry(connection, entry["id"], state)
    audit.record(connection, ledger.clock.now(), who, action, str(entry["id"]), reason, details)
