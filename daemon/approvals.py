"""What waits for a human: corrections that are well formed and that a rule does not let in by itself."""

from typing import Any

from sqlalchemy import Connection, select

from daemon.core.errors import NotFoundError
from daemon.core.ledger import Ledger
from daemon.core.names import QuarantineState
from daemon.core.schema import corrections, quarantine
from daemon.quarantine import release
from daemon.register import Decision
from daemon.trust import APPROVABLE


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
