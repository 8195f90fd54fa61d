"""Publications: which revision each place was given last, and what the published folders hold."""

from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger.database import no_later
from daemon.core.ledger.schema import publications, published_folders
from daemon.core.published import Files, PublishedFile

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


def recorded_folders(connection: Connection, model: str) -> dict[int, Files]:
    """The files of each published folder of a model, by its revision."""
    mine = published_folders.c.model == model
    rows = connection.execute(select(published_folders).where(mine)).mappings().all()
    return {
        row["revision"]: {name: PublishedFile(**fields) for name, fields in row["files"].items()}
        for row in rows
    }


def record_folder(connection: Connection, model: str, revision: int, files: Files) -> None:
    """Record the files of a published folder."""
    forget_folders(connection, model, [revision])
    row = {"model": model, "revision": revision, "files": {n: asdict(file) for n, file in files.items()}}
    connection.execute(insert(published_folders).values(**row))


def forget_folders(connection: Connection, model: str, revisions: Collection[int]) -> None:
    """Delete the records of folders, which the publisher then writes again if they are still there."""
    mine = published_folders.c.model == model
    connection.execute(delete(published_folders).where(mine, published_folders.c.revision.in_(revisions)))


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(publications), publications.c.at, now)
