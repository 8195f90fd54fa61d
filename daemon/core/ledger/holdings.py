"""What the ledger needs of the store: the tensors of kept revisions and the pairs that are in force."""

from sqlalchemy import Connection, RowMapping, or_, select

from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.schema import revisions, tenures


def kept_blobs(connection: Connection, model: str | None = None) -> dict[str, tuple[str, int]]:
    """Every blob that a kept revision needs, with the newest revision that needs it.

    Without ``model`` the blobs of all models, which may share a store.
    """
    needed: dict[str, tuple[str, int]] = {}
    query = select(revisions).where(revisions.c.kept).order_by(revisions.c.number)
    rows = connection.execute(query if model is None else query.where(revisions.c.model == model))
    oldest: dict[str, int] = {}
    newest: dict[str, int] = {}
    for row in rows.mappings():
        newest[row["model"]] = row["number"]
        if row["number"] > 0:
            oldest.setdefault(row["model"], row["number"])
        needed |= dict.fromkeys(row["tensors"].values(), (row["model"], row["number"]))
    for name, first in oldest.items():
        still = or_(tenures.c.until.is_(None), tenures.c.until > first)
        spans = select(tenures.c.blob, tenures.c.until).where(
            tenures.c.model == name, tenures.c.blob.is_not(None), still
        )
        for span in connection.execute(spans):
            last = newest[name] if span.until is None else span.until - 1
            before = needed.get(span.blob, (name, 0))[1]
            needed[span.blob] = (name, max(before, last))
    return needed


def blobs_of(connection: Connection, revision: RowMapping) -> list[str]:
    """The blobs that a revision needs: its tensors, and the pairs from which they follow."""
    tenures_there = active_tenures(connection, revision["model"], revision["number"])
    pairs = {row["blob"] for row in tenures_there if row["blob"] is not None}
    return sorted({*revision["tensors"].values(), *pairs})
