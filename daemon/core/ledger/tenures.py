"""Tenures: from which revision to which a correction is in force, and where its pair is stored."""

from collections.abc import Iterable

from sqlalchemy import Connection, insert, select, update

from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import tenures


def begin_tenure(
    connection: Connection,
    model: str,
    fact_id: str,
    correction_id: str,
    since: int,
    blob: str | None,
    row: int | None,
) -> None:
    """Put a correction in force from revision ``since`` on.

    ``row`` is its row in the file of pairs ``blob``. Without both the fact is kept absent.
    """
    key = {"model": model, "fact_id": fact_id, "correction_id": correction_id}
    connection.execute(insert(tenures).values(**key, since=since, blob=blob, row=row))


def end_tenures_of_fact(connection: Connection, model: str, fact_id: str, until: int) -> list[str]:
    """End what is in force about a fact, and return the ids of the corrections that were."""
    in_force = (tenures.c.model == model) & (tenures.c.fact_id == fact_id) & tenures.c.until.is_(None)
    ids = connection.execute(select(tenures.c.correction_id).where(in_force)).scalars().all()
    connection.execute(update(tenures).where(in_force).values(until=until))
    return list(ids)


def end_tenures(connection: Connection, ids: Iterable[int], until: int) -> None:
    """End tenures, given by their own ids."""
    for some in in_chunks(ids):
        connection.execute(update(tenures).where(tenures.c.id.in_(some)).values(until=until))
