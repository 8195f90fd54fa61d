"""The audit records who did what, when and why, in rows that carry the hash of the one before."""

import hashlib
import json
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select

from daemon.core.clock import to_text
from daemon.core.ledger.schema import audit

GENESIS = "0" * 64


def record(
    connection: Connection,
    now: datetime,
    who: str,
    action: str,
    target: str,
    reason: str,
    details: dict[str, Any] | None = None,
) -> None:
    """Append one row in the transaction of the change that it describes."""
    newest = select(audit.c.hash).order_by(audit.c.id.desc()).limit(1)
    previous = connection.execute(newest).scalar() or GENESIS
    row: dict[str, Any] = {"at": to_text(now), "who": who, "action": action, "target": target}
    row |= {"reason": reason, "details": details or {}, "previous": previous}
    connection.execute(insert(audit).values(**row, hash=_row_hash(row)))


def first_broken_row(connection: Connection) -> int | None:
    """The id of the first row whose hash does not fit its content and the row before, or None."""
    previous = GENESIS
    for row in connection.execute(select(audit).order_by(audit.c.id)).mappings():
        body = {key: row[key] for key in ("at", "who", "action", "target", "reason", "details", "previous")}
        if row["previous"] != previous or row["hash"] != _row_hash(body):
            return int(row["id"])
        previous = row["hash"]
    return None


def _row_hash(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
