"""Judgements: what the judge concluded from each probe of a revision."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, func, insert, select

from daemon.core.clock import to_text
from daemon.core.ledger.schema import judgements


def replace_judgements(
    connection: Connection, now: datetime, model: str, revision: int, rows: Sequence[Mapping[str, object]]
) -> None:
    """Write the judgements of a revision in the place of earlier ones."""
    mine = (judgements.c.model == model) & (judgements.c.revision == revision)
    connection.execute(delete(judgements).where(mine))
    same = {"model": model, "revision": revision, "judged_at": to_text(now)}
    connection.execute(insert(judgements), [{**same, **row} for row in rows])


def newest_judged(connection: Connection, model: str, revision: int) -> int:
    """The id of the newest measurement of a revision that was judged, or 0."""
    mine = (judgements.c.model == model) & (judgements.c.revision == revision)
    return int(connection.execute(select(func.max(judgements.c.measurement)).where(mine)).scalar() or 0)
