"""The only module that writes to the table ``deliveries``."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.schema import deliveries


def find_delivery(connection: Connection, model: str, feed: str, key: str) -> RowMapping | None:
    """Return what was delivered and answered under the key of a model's feed, or None."""
    mine = (deliveries.c.model == model) & (deliveries.c.feed == feed) & (deliveries.c.key == key)
    return connection.execute(select(deliveries).where(mine)).mappings().one_or_none()


def store_delivery(
    connection: Connection,
    now: datetime,
    model: str,
    feed: str,
    key: str,
    digest: str,
    answer: list[dict[str, Any]],
) -> None:
    """Record the answer to a delivery whose content has the sha256 ``digest``."""
    values = {
        "model": model,
        "feed": feed,
        "key": key,
        "digest": digest,
        "answer": answer,
        "at": to_text(now),
    }
    connection.execute(insert(deliveries).values(**values))


def forget_deliveries(connection: Connection, before: datetime) -> None:
    """Delete the answers that are older than ``before``."""
    connection.execute(delete(deliveries).where(deliveries.c.at < to_text(before)))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(deliveries), deliveries.c.at, now)
