"""Scrubs: the runs that compared every needed blob with its name."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from daemon.core.clock import from_text, to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.schema import scrubs


def last_scrub(connection: Connection) -> datetime | None:
    """When the last scrub ended, or None before the first."""
    last = connection.execute(select(scrubs.c.at).order_by(scrubs.c.id.desc()).limit(1)).scalar()
    return None if last is None else from_text(last)


def insert_scrub(
    connection: Connection, now: datetime, blobs: int, size: int, unsound: Mapping[str, str], seconds: float
) -> None:
    """Add a scrub of ``blobs`` files with ``size`` bytes, with what is wrong with each damaged blob."""
    row = {"blobs": blobs, "bytes": size, "unsound": dict(unsound), "seconds": seconds, "at": to_text(now)}
    connection.execute(insert(scrubs).values(**row))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(scrubs), scrubs.c.at, now)
