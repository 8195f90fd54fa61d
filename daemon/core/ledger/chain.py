"""Reading the chain of revisions: head, one revision, and what held at it."""

from collections.abc import Sequence

from sqlalchemy import Connection, RowMapping, or_, select

from daemon.core.errors import NotFoundError
from daemon.core.ledger.schema import revisions, tenures
from daemon.core.names import RevisionState


def head(connection: Connection, model: str) -> RowMapping:
    """The newest revision.

    Raises:
        NotFoundError: the model has none yet.
    """
    query = select(revisions).where(revisions.c.model == model).order_by(revisions.c.number.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"model {model!r} has no revision yet", hint="errata prepare founds revision 0")
    return row


def live(connection: Connection, model: str) -> RowMapping | None:
    """The newest revision that passed its probes; None when there is none."""
    good = (revisions.c.model == model) & (revisions.c.state == RevisionState.LIVE)
    query = select(revisions).where(good).order_by(revisions.c.number.desc()).limit(1)
    return connection.execute(query).mappings().one_or_none()


def find_revision(connection: Connection, model: str, number: int) -> RowMapping | None:
    """A revision, or None."""
    query = select(revisions).where(revisions.c.model == model, revisions.c.number == number)
    return connection.execute(query).mappings().one_or_none()


def get_revision(connection: Connection, model: str, number: int) -> RowMapping:
    """A revision.

    Raises:
        NotFoundError: there is none with this number.
    """
    row = find_revision(connection, model, number)
    if row is None:
        raise NotFoundError(f"there is no revision {number} of {model!r}", hint="errata revisions lists them")
    return row


def active_tenures(connection: Connection, model: str, at: int) -> Sequence[RowMapping]:
    """The tenures that hold at revision ``at``, oldest first; those without blob hold a fact absent."""
    query = (
        select(tenures)
        .where(tenures.c.model == model, tenures.c.since <= at)
        .where(or_(tenures.c.until.is_(None), tenures.c.until > at))
        .order_by(tenures.c.id)
    )
    return connection.execute(query).mappings().all()


def lineage(connection: Connection, model: str, number: int) -> list[int]:
    """The revisions from which ``number`` came, newest first: through a rollback to what it brought back.

    What a rollback left behind is not among them, nor are the rollbacks themselves.
    """
    query = select(revisions.c.number, revisions.c.parent, revisions.c.content_of).where(
        revisions.c.model == model, revisions.c.number <= number
    )
    links = {row.number: (row.parent, row.content_of) for row in connection.execute(query)}
    found: list[int] = []
    at = number
    while True:
        parent, content_of = links[at]
        step = parent if content_of is None else content_of
        if content_of is None and at != number:
            found.append(at)
        if step is None:
            return found
        at = step
