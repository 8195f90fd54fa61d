"""The only module that writes to the table ``quarantine``."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, update

from daemon.core.clock import to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.schema import quarantine
from daemon.core.names import QuarantineState


@dataclass(frozen=True)
class QuarantineEntry:
    """One refused item by its text ``raw``, or one stored correction that may not be applied by its id.

    ``reason`` is a ``QuarantineReason``, ``message`` is for people.
    """

    model: str
    feed: str
    position: str
    reason: str
    message: str
    raw: str = ""
    correction_id: str | None = None


def add_to_quarantine(connection: Connection, now: datetime, entries: Iterable[QuarantineEntry]) -> None:
    """Insert entries that wait for an operator."""
    waits = {"state": QuarantineState.HELD, "at": to_text(now)}
    rows = [asdict(entry) | waits for entry in entries]
    if rows:
        connection.execute(insert(quarantine), rows)


def close_entry(connection: Connection, entry_id: int, state: QuarantineState) -> None:
    """Mark an entry as released or dropped."""
    connection.execute(update(quarantine).where(quarantine.c.id == entry_id).values(state=state))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(quarantine), quarantine.c.at, now)
