"""Scrubs: the runs that compared every needed blob with its name."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from daemon.core.clock import from_text, to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.schema import scrubs


def last_scrub(connection: Connection, model: str) -> datetime | None:
    """When the last scrub of a model ended, or None before the first."""
    mine = select(scrubs.c.at).where(scrubs.c.model == model)
    last = connection.execute(mine.order_by(scrubs.c.id.desc()).limit(1)).scalar()
    return None if last is None else from_text(last)


def insert_scrub(
    connection: Connection,
    now: datetime,
    model: str,
    blobs: int,
    size: int,
    unsound: Mapping[str, str],
    seconds: float,
) -> None:
    """Add a scrub of ``blobs`` files with ``size`` bytes, with what is wrong with each damaged blob."""
    row = {"model": model, "blobs": blobs, "bytes": size, "unsound": dict(unsound), "seconds": seconds}
    connection.execute(insert(scrubs).values(**row, at=to_text(now)))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(scrubs), scrubs.c.at, now)
