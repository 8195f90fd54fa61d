"""What the ledger still needs of the store: the tensors of kept revisions and the pairs that they hold."""

from sqlalchemy import Connection, and_, or_, select, update

from daemon.core.ledger import chain
from daemon.core.ledger.schema import revisions, tenures


def forget_tensors(connection: Connection, model: str, keep: int) -> int:
    """Give up the tensors of all but the base, live and the newest ``keep`` revisions; returns how many.

    Such a revision stays in the chain, but can no longer be gone back to.
    """
    newest = chain.head(connection, model)["number"]
    live = chain.live(connection, model)
    old = and_(
        revisions.c.model == model,
        revisions.c.kept,
        revisions.c.number > 0,
        revisions.c.number <= newest - keep,
        revisions.c.number != (live["number"] if live else 0),
    )
    return connection.execute(update(revisions).where(old).values(kept=False)).rowcount


def kept_blobs(connection: Connection) -> dict[str, tuple[str, int]]:
    """Every blob that a kept revision of any model needs, with the newest revision that needs it."""
    needed: dict[str, tuple[str, int]] = {}
    rows = connection.execute(select(revisions).where(revisions.c.kept).order_by(revisions.c.number))
    oldest: dict[str, int] = {}
    newest: dict[str, int] = {}
    for row in rows.mappings():
        newest[row["model"]] = row["number"]
        if row["number"] > 0:
            oldest.setdefault(row["model"], row["number"])
        needed |= dict.fromkeys(row["tensors"].values(), (row["model"], row["number"]))
    for model, first in oldest.items():
        still = or_(tenures.c.until.is_(None), tenures.c.until > first)
        query = select(tenures.c.blob, tenures.c.until).where(
            tenures.c.model == model, tenures.c.blob.is_not(None), still
        )
        for span in connection.execute(query):
            last = newest[model] if span.until is None else span.until - 1
            before = needed.get(span.blob, (model, 0))[1]
            needed[span.blob] = (model, max(before, last))
    return needed
