"""The only module that writes to the tables ``feeds`` and ``feed_outcomes``."""

from collections import Counter
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.schema import feed_outcomes, feeds
from daemon.core.names import AdmissionOutcome


def find_feed(connection: Connection, model: str, name: str) -> RowMapping | None:
    """Return the row of a model's feed, or None before its first pull or item."""
    return connection.execute(select(feeds).where(_of_feed(model, name))).mappings().one_or_none()


def move_cursor(connection: Connection, model: str, name: str, cursor: dict[str, Any]) -> None:
    """Set the place from which the next pull reads."""
    _change(connection, model, name, cursor=cursor)


def note_pull(connection: Connection, now: datetime, model: str, name: str, cursor: dict[str, Any]) -> None:
    """Record the cursor and time of a pull that succeeded, and clear the last error."""
    _change(connection, model, name, cursor=cursor, error="", pulled_at=to_text(now))


def note_error(connection: Connection, now: datetime, model: str, name: str, error: str) -> None:
    """Record the error and time of a pull that failed."""
    _change(connection, model, name, error=error, pulled_at=to_text(now))


def count_items(connection: Connection, model: str, name: str, counts: Counter[AdmissionOutcome]) -> None:
    """Add the outcomes of a chunk of items to the feed's totals."""
    if not counts:
        return
    _change(connection, model, name, items=feeds.c["items"] + counts.total())
    for outcome, count in counts.items():
        of_feed = (feed_outcomes.c.model == model) & (feed_outcomes.c.feed == name)
        change = update(feed_outcomes).where(of_feed, feed_outcomes.c.outcome == outcome)
        if not connection.execute(change.values(count=feed_outcomes.c.count + count)).rowcount:
            row = {"model": model, "feed": name, "outcome": outcome, "count": count}
            connection.execute(insert(feed_outcomes).values(**row))


def _change(connection: Connection, model: str, name: str, **values: Any) -> None:
    """Update the feed's row, inserting it first where it is missing, which serial transactions make safe."""
    change = update(feeds).where(_of_feed(model, name)).values(**values)
    if not connection.execute(change).rowcount:
        connection.execute(insert(feeds).values(model=model, name=name, cursor={}, items=0))
        connection.execute(change)


def _of_feed(model: str, name: str) -> ColumnElement[bool]:
    return (feeds.c.model == model) & (feeds.c.name == name)


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(feeds), feeds.c.pulled_at, now)
