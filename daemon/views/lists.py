"""Lists of quarantine, incidents, feeds, switches, publications and audit."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from daemon.core.ledger.schema import audit, feeds, incidents, publications, quarantine, switches
from daemon.core.ledger.switches import is_feed_paused
from daemon.core.names import UNSETTLED, Subject
from daemon.views.figures import seconds_since
from daemon.views.rows import Row, fetch


def quarantine_list(
    connection: Connection, *, limit: int, state: str | None = None, model: str | None = None
) -> list[Row]:
    """Return the newest quarantine entries, of one model or of all, newest first."""
    query = select(quarantine)
    if model is not None:
        query = query.where(quarantine.c.model == model)
    if state is not None:
        query = query.where(quarantine.c.state == state)
    return fetch(connection, query.order_by(quarantine.c.id.desc()).limit(limit))


def incident_list(
    connection: Connection, *, limit: int, model: str | None = None, unsettled: bool = False
) -> list[Row]:
    """Return the newest incidents, newest first, with ``unsettled`` only those that are not settled."""
    query = select(incidents)
    if model is not None:
        query = query.where(incidents.c.model == model)
    if unsettled:
        query = query.where(incidents.c.state.in_(UNSETTLED))
    return fetch(connection, query.order_by(incidents.c.id.desc()).limit(limit))


def accused(incident: Mapping[str, Any]) -> str:
    """What an incident accuses, such as "revision 12" or "feed wiki"."""
    if incident["subject"] == Subject.REVISION:
        return f"revision {incident['revision']}"
    return f"{incident['subject']} {incident['subject_name']}".strip()


def feed_list(connection: Connection, now: datetime, model: str) -> list[Row]:
    """Return a model's feeds that were ever pulled, with items, age of the last pull in seconds and error."""
    query = select(feeds).where(feeds.c.model == model).order_by(feeds.c.name)
    return [
        {
            "name": row["name"],
            "items": row["items"],
            "error": row["error"],
            "pulled_at": row["pulled_at"],
            "lag_seconds": seconds_since(now, row["pulled_at"]) if row["pulled_at"] else None,
            "paused": is_feed_paused(connection, model, row["name"]),
        }
        for row in fetch(connection, query)
    ]


def switch_list(connection: Connection) -> list[Row]:
    """Return every switch that was ever turned on or off, of every model."""
    return fetch(connection, select(switches).order_by(switches.c.name, switches.c.model))


def publication_list(connection: Connection, model: str) -> list[Row]:
    """Return each place of publication, with the revision sent last and the one that is confirmed."""
    mine = publications.c.model == model
    return fetch(connection, select(publications).where(mine).order_by(publications.c.place))


def audit_list(connection: Connection, *, limit: int) -> list[Row]:
    """Return the newest rows of the audit, newest first."""
    return fetch(connection, select(audit).order_by(audit.c.id.desc()).limit(limit))
