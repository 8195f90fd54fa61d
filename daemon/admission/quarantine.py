"""What an operator does with a quarantine entry: let it in after all, or drop it."""

from typing import Any

from sqlalchemy import Connection, RowMapping, select, update

from daemon.admission.newest_wins import Standing
from daemon.admission.record import Decision, arrive, load_facts, register, supersede
from daemon.core.corrections import parse_item
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, quarantine
from daemon.core.names import APPROVABLE, AdmissionOutcome, CorrectionState, QuarantineState
from daemon.core.relations.table import complete

_OPERATOR_TRUST = 100  # who releases an item vouches for it


def release(ledger: Ledger, entry: int, who: str, reason: str) -> Decision:
    """Let a held entry in, by the same newest-wins rules as everything else; returns where it went.

    A correction goes back to the queue even where a rollback had taken its value out. A raw item is parsed
    again, and stays held when it is still refused.

    Raises:
        NotFoundError: no such entry, or it is no longer held. InvalidCorrectionError: still refused.
    """
    with ledger.write() as connection:
        row = _held(connection, entry)
        if row["correction_id"] is None:
            decision = _admit_raw(connection, ledger, row)
        else:
            decision = place_again(connection, row, f"released by {who}: {reason}")
        _settle(connection, ledger, row, QuarantineState.RELEASED, who, reason, decision)
    return decision


def drop(ledger: Ledger, entry: int, who: str, reason: str) -> None:
    """Give a held entry up; its correction, if it has one, stays refused.

    Raises:
        NotFoundError: no such entry, or it is no longer held.
    """
    with ledger.write() as connection:
        row = _held(connection, entry)
        _settle(connection, ledger, row, QuarantineState.DROPPED, who, reason, None)


def _held(connection: Connection, entry: int) -> RowMapping:
    row = connection.execute(select(quarantine).where(quarantine.c.id == entry)).mappings().one_or_none()
    hint = "errata quarantine list shows what is held"
    if row is None:
        raise NotFoundError(f"there is no quarantine entry {entry}", hint=hint)
    if row["state"] != QuarantineState.HELD:
        raise NotFoundError(f"quarantine entry {entry} was {row['state']} already", hint=hint)
    return row


def _admit_raw(connection: Connection, ledger: Ledger, row: RowMapping) -> Decision:
    now = ledger.clock.now()
    correction = parse_item(row["raw"], complete=complete)
    arrival = arrive(correction, row["position"], _OPERATOR_TRUST, now, now)
    (decision,) = register(connection, now, row["feed"], _OPERATOR_TRUST, [arrival])
    return decision


def place_again(connection: Connection, row: RowMapping, why: str) -> Decision:
    """Newest wins again for a correction that is stored already; it waits for a new batch if it does."""
    mine = corrections.c.id == row["correction_id"]
    stored = connection.execute(select(corrections).where(mine)).mappings().one()
    position, fact_id = row["position"], stored["fact_id"]
    if stored["state"] != CorrectionState.QUARANTINED:  # let in through another of its entries
        return Decision(position, AdmissionOutcome.DUPLICATE, stored["id"], fact_id)
    fact = load_facts(connection, [fact_id])[fact_id]
    state = CorrectionState.QUARANTINED
    standing = Standing(stored["id"], stored["order_key"], stored["object"], stored["prompt"], state)
    placing = fact.place(standing, may_return=True)
    message = f"{why}; {placing.reason}" if placing.reason else why
    values = {"state": placing.state, "reason": message, "batch_id": None}
    connection.execute(update(corrections).where(mine).values(**values))
    supersede(connection, dict.fromkeys(placing.beaten, stored["id"]))
    return Decision(position, placing.outcome, stored["id"], fact_id, message=message)


def _settle(
    connection: Connection,
    ledger: Ledger,
    row: RowMapping,
    state: QuarantineState,
    who: str,
    reason: str,
    decision: Decision | None,
) -> None:
    """Close the entry and write down who did it."""
    now = ledger.clock.now()
    connection.execute(update(quarantine).where(quarantine.c.id == row["id"]).values(state=state))
    action = "quarantine.release" if state is QuarantineState.RELEASED else "quarantine.drop"
    details = {"reason": row["reason"], "correction": row["correction_id"]}
    if decision is not None:
        details |= {"correction": decision.correction_id, "outcome": decision.outcome}
    audit.record(connection, now, who, action, str(row["id"]), reason, details)


def waiting(connection: Connection, model: str, limit: int) -> list[dict[str, Any]]:
    """The entries that wait, oldest first, with what they say."""
    columns = (
        *(corrections.c[name] for name in ("subject", "relation", "object", "source")),
        *(quarantine.c[name] for name in ("id", "reason", "feed", "message", "at", "correction_id")),
    )
    query = (
        select(*columns)
        .join(corrections, corrections.c.id == quarantine.c.correction_id)
        .where(
            quarantine.c.state == QuarantineState.HELD,
            quarantine.c.reason.in_(APPROVABLE),
            corrections.c.model == model,
        )
    )
    rows = connection.execute(query.order_by(quarantine.c.id).limit(limit)).mappings()
    return [dict(row) for row in rows]


def approve(ledger: Ledger, entry: int, who: str, reason: str) -> Decision:
    """Let an entry in on a human's word, by newest-wins like everything else.

    Raises:
        NotFoundError: no such entry, no longer held, or held for a reason that no approval mends.
    """
    with ledger.read() as connection:
        found = connection.execute(select(quarantine.c.reason).where(quarantine.c.id == entry)).scalar()
    if found is not None and found not in APPROVABLE:
        hint = "errata quarantine release lets it in all the same"
        raise NotFoundError(f"entry {entry} does not wait for approval: it is held as {found}", hint=hint)
    return release(ledger, entry, who, reason)
