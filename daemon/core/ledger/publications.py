"""Publications: which revision each place was given last, and which one it is known to have."""

from datetime import datetime

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.schema import publications

_MESSAGE_CHARACTERS = 500  # enough for the cause of a refusal, too little for a whole page of HTML


def publications_by_place(connection: Connection, model: str) -> dict[str, RowMapping]:
    """The newest publication of a model to each place."""
    rows = connection.execute(select(publications).where(publications.c.model == model)).mappings()
    return {row["place"]: row for row in rows.all()}


def record_publication(
    connection: Connection,
    now: datetime,
    model: str,
    place: str,
    revision: int,
    held: int | None,
    attempts: int = 1,
    message: str = "",
) -> None:
    """Record that a place was given a revision, ``held`` being the newest that it is known to have."""
    mine = (publications.c.model == model) & (publications.c.place == place)
    connection.execute(delete(publications).where(mine))
    row = {"model": model, "place": place, "revision": revision, "held": held, "attempts": attempts}
    row |= {"message": message[:_MESSAGE_CHARACTERS], "at": to_text(now)}
    connection.execute(insert(publications).values(**row))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(publications), publications.c.at, now)
