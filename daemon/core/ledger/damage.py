"""Incidents of the store: damaged blobs are brought to an operator's eyes, once a revision."""

from typing import Any

from sqlalchemy import Connection, insert, select, update

from daemon.core.ledger.schema import incidents
from daemon.core.names import STORE_PROBE, IncidentState, ProbeResult


def note_damage(connection: Connection, at: str, model: str, revision: int, why: str) -> None:
    """Open the incident of a revision whose blobs are unsound; one that there is already stays as it is."""
    if connection.execute(select(incidents.c.id).where(*_mine(model, revision))).first() is None:
        key = {"model": model, "revision": revision, "probe": STORE_PROBE, "message": why}
        values = {"state": IncidentState.OPEN, "opened_at": at, "result": ProbeResult.UNKNOWN}
        connection.execute(insert(incidents).values(**key, **values))


def note_recovery(
    connection: Connection, at: str, model: str, revision: int, what: str, back: int | None = None
) -> None:
    """Say what was done about the damage, also where the incident was closed before.

    ``back`` is the revision that a rollback made, if one was needed.
    """
    note_damage(connection, at, model, revision, what)
    values: dict[str, Any] = {"message": what, "state": IncidentState.OPEN, "closed_at": None}
    if back is not None:
        values["rollback_revision"] = back
    connection.execute(update(incidents).where(*_mine(model, revision)).values(**values))


def _mine(model: str, revision: int) -> tuple[Any, ...]:
    return (incidents.c.model == model, incidents.c.revision == revision, incidents.c.probe == STORE_PROBE)
