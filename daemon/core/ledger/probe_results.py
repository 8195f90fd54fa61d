"""Probe results: the measurements of revisions."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.chain import get_revision
from daemon.core.ledger.database import no_later
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.schema import probe_results
from daemon.core.names import ALL_PROBES

_COPIED = ("probe", "version", "result", "score", "bound", "items", "seconds", "details")


def insert_probes(
    connection: Connection, now: datetime, model: str, number: int, probes: Sequence[ProbeRow]
) -> None:
    """Append measurements of a revision."""
    for probe in probes:
        row = {name: getattr(probe, name) for name in _COPIED}
        row["outcomes"] = probe.outcomes.to_json() if probe.outcomes else None
        key = {"model": model, "revision": number, "measured_at": to_text(now)}
        connection.execute(insert(probe_results).values(**key, **row))


def last_survey(connection: Connection, model: str) -> str:
    """When all probes last ran to their end, or when the model was founded before the first time."""
    surveys = (probe_results.c.model == model) & (probe_results.c.probe == ALL_PROBES)
    last = connection.execute(select(func.max(probe_results.c.measured_at)).where(surveys)).scalar()
    return str(last or get_revision(connection, model, 0)["created_at"])


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(probe_results), probe_results.c.measured_at, now)
