"""Short lists: quarantine, incidents, feeds, workers, switches, audit."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, select

from daemon.core.ledger.schema import audit, feeds, incidents, publications, quarantine, switches, workers
from daemon.core.ledger.switches import is_feed_paused
from daemon.core.names import UNSETTLED
from daemon.views.figures import seconds_since

Row = dict[str, Any]


def quarantine_list(connection: Connection, *, limit: int, state: str | None = None) -> list[Row]:
    """The newest quarantine entries, newest first."""
    query = select(quarantine)
    if state is not None:
        query = query.where(quarantine.c.state == state)
    return _rows(connection, query.order_by(quarantine.c.id.desc()).limit(limit))


def incident_list(
    connection: Connection, *, limit: int, model: str | None = None, unsettled: bool = False
) -> list[Row]:
    """The newest incidents, newest first; ``unsettled``: only those that still need somebody."""
    query = select(incidents)
    if model is not None:
        query = query.where(incidents.c.model == model)
    if unsettled:
        query = query.where(incidents.c.state.in_(UNSETTLED))
    return _rows(connection, query.order_by(incidents.c.id.desc()).limit(limit))


def feed_list(connection: Connection, now: datetime) -> list[Row]:
    """Every feed that was ever pulled: items read, age of the last pull in seconds, last error, pause."""
    rows = connection.execute(select(feeds).order_by(feeds.c.name)).mappings()
    return [
        {
            "name": row["name"],
            "items": row["items"],
            "error": row["error"],
            "pulled_at": row["pulled_at"],
            "lag_seconds": seconds_since(now, row["pulled_at"]) if row["pulled_at"] else None,
            "paused": is_feed_paused(connection, row["name"]),
        }
        for row in rows.all()
    ]


def worker_list(connection: Connection, now: datetime, *, limit: int = 50) -> list[Row]:
    """The workers seen last, with the age of their heartbeat in seconds."""
    rows = _rows(connection, select(workers).order_by(workers.c.seen_at.desc()).limit(limit))
    return [row | {"heartbeat_age_seconds": seconds_since(now, row["seen_at"])} for row in rows]


def switch_list(connection: Connection) -> list[Row]:
    """Every switch that was ever turned."""
    return _rows(connection, select(switches).order_by(switches.c.name))


def publication_list(connection: Connection, model: str) -> list[Row]:
    """Each place of publication: the revision it was given last and the one it is known to have."""
    mine = publications.c.model == model
    return _rows(connection, select(publications).where(mine).order_by(publications.c.place))


def audit_list(connection: Connection, *, limit: int) -> list[Row]:
    """The newest rows of the audit, newest first."""
    return _rows(connection, select(audit).order_by(audit.c.id.desc()).limit(limit))


def _rows(connection: Connection, query: Select[Any]) -> list[Row]:
    return [dict(row) for row in connection.execute(query).mappings()]
