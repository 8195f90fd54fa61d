"""Switches that an operator turns: hold back a model's edits, or a feed, and let them go on."""

from sqlalchemy import Connection, delete, insert, select, update

from daemon.core.clock import to_text
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents, switches
from daemon.core.names import IncidentState


def pause(ledger: Ledger, *, model: str, feed: str | None, who: str, reason: str) -> bool:
    """Hold back the model's edits, or one feed; returns whether that changed anything."""
    return _turn(ledger, model, feed, who, reason, on=True)


def resume(ledger: Ledger, *, model: str, feed: str | None, who: str, reason: str) -> bool:
    """Let the model's edits, or one feed, go on; ends a freeze. Returns whether that changed anything."""
    return _turn(ledger, model, feed, who, reason, on=False)


def is_feed_paused(connection: Connection, feed: str) -> bool:
    """Whether a feed is held back, by a human or by itself."""
    query = select(switches.c.is_on).where(switches.c.name == f"feed:{feed}")
    return bool(connection.execute(query).scalar())


def close_incident(ledger: Ledger, number: int, who: str, reason: str) -> None:
    """Settle an incident by hand.

    Raises:
        NotFoundError: no such incident.
    """
    with ledger.write() as connection:
        now = ledger.clock.now()
        row = connection.execute(select(incidents).where(incidents.c.id == number)).mappings().one_or_none()
        if row is None:
            raise NotFoundError(f"there is no incident {number}", hint="errata incidents lists them")
        closed = {"state": IncidentState.CLOSED, "closed_at": row["closed_at"] or to_text(now)}
        connection.execute(update(incidents).where(incidents.c.id == number).values(**closed))
        details = {"model": row["model"], "revision": row["revision"], "probe": row["probe"]}
        audit.record(connection, now, who, "close incident", str(number), reason, details)


def _turn(ledger: Ledger, model: str, feed: str | None, who: str, reason: str, *, on: bool) -> bool:
    name = f"paused:{model}" if feed is None else f"feed:{feed}"
    with ledger.write() as connection:
        now = ledger.clock.now()
        before = bool(connection.execute(select(switches.c.is_on).where(switches.c.name == name)).scalar())
        connection.execute(delete(switches).where(switches.c.name == name))
        connection.execute(insert(switches).values(name=name, is_on=on, reason=reason, at=to_text(now)))
        if feed is None and not on:
            _thaw(connection, model, to_text(now))
        action = "pause" if on else "resume"
        audit.record(connection, now, who, action, name, reason, {"was_on": before})
    return before is not on


def _thaw(connection: Connection, model: str, at: str) -> None:
    """A freeze ends when a human says so; its incidents are then settled."""
    frozen = (incidents.c.model == model, incidents.c.state == IncidentState.FROZEN)
    values = {"state": IncidentState.CLOSED, "closed_at": at}
    connection.execute(update(incidents).where(*frozen).values(**values))
