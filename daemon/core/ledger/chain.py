"""The chain of revisions: append to it, mark its revisions, and read it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from daemon.core.clock import to_text
from daemon.core.errors import NotFoundError, StaleHeadError
from daemon.core.ledger.revision import content_hash
from daemon.core.ledger.schema import judgements, revisions, tenures
from daemon.core.names import ProbeResult, RevisionKind, RevisionState


def append_revision(
    connection: Connection,
    now: datetime,
    model: str,
    number: int,
    kind: RevisionKind,
    tensors: Mapping[str, str],
    recipe: str,
    *,
    token: int,
    state: RevisionState = RevisionState.CANDIDATE,
    **more: Any,
) -> None:
    """Append revision ``number``, whose parent is the one before it, with further columns in ``more``.

    Raises StaleHeadError if the revision or its batch is in the chain already.
    """
    row = {"model": model, "number": number, "parent": number - 1 if number else None, "kind": kind}
    row |= {"content": content_hash(tensors), "tensors": dict(tensors), "recipe": recipe, "token": token}
    row |= {"state": state, "stages": {}, "norms": {}, "active_facts": 0, "created_at": to_text(now)}
    try:
        connection.execute(insert(revisions).values(**row | more))
    except IntegrityError as error:  # the primary key is the compare-and-swap
        raise StaleHeadError(f"revision {number} or its batch is already there") from error


def count_active(connection: Connection, model: str, number: int) -> None:
    """Record in a revision how many facts its weights hold."""
    count = sum(1 for row in active_tenures(connection, model, number) if row["blob"] is not None)
    mine = (revisions.c.model == model) & (revisions.c.number == number)
    connection.execute(update(revisions).where(mine).values(active_facts=count))


def set_revision_state(connection: Connection, model: str, number: int, state: RevisionState) -> None:
    """Put a revision into a state."""
    mine = (revisions.c.model == model) & (revisions.c.number == number)
    connection.execute(update(revisions).where(mine).values(state=state))


def promote_forebears(connection: Connection, model: str, number: int) -> None:
    """Make the earlier candidates live that passed all probes that were run on them."""
    judged = select(judgements.c.revision).where(judgements.c.model == model)
    bad = judged.where(judgements.c.result != ProbeResult.OK)
    older = (revisions.c.model == model) & (revisions.c.number < number)
    passed = revisions.c.number.in_(judged) & revisions.c.number.not_in(bad)
    mine = older & (revisions.c.state == RevisionState.CANDIDATE) & passed
    connection.execute(update(revisions).where(mine).values(state=RevisionState.LIVE))


def forget_tensors(connection: Connection, model: str, keep: int) -> int:
    """Give up the tensors of old revisions, to which no rollback can go any more, and return of how many.

    The base, live and the newest ``keep`` revisions are spared.
    """
    newest = head(connection, model)["number"]
    good = live(connection, model)
    old = (revisions.c.model == model) & revisions.c.kept & (revisions.c.number > 0)
    spared = revisions.c.number != (good["number"] if good else 0)
    mine = old & (revisions.c.number <= newest - keep) & spared
    return connection.execute(update(revisions).where(mine).values(kept=False)).rowcount


def head(connection: Connection, model: str) -> RowMapping:
    """The newest revision, or NotFoundError if the model has none yet."""
    query = select(revisions).where(revisions.c.model == model).order_by(revisions.c.number.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"model {model!r} has no revision yet", hint="errata prepare founds revision 0")
    return row


def live(connection: Connection, model: str) -> RowMapping | None:
    """The newest revision that passed its probes, or None."""
    good = (revisions.c.model == model) & (revisions.c.state == RevisionState.LIVE)
    query = select(revisions).where(good).order_by(revisions.c.number.desc()).limit(1)
    return connection.execute(query).mappings().one_or_none()


def find_revision(connection: Connection, model: str, number: int) -> RowMapping | None:
    """A revision, or None."""
    query = select(revisions).where(revisions.c.model == model, revisions.c.number == number)
    return connection.execute(query).mappings().one_or_none()


def get_revision(connection: Connection, model: str, number: int) -> RowMapping:
    """A revision, or NotFoundError if there is none with this number."""
    row = find_revision(connection, model, number)
    if row is None:
        raise NotFoundError(f"there is no revision {number} of {model!r}", hint="errata revisions lists them")
    return row


def active_tenures(connection: Connection, model: str, at: int) -> Sequence[RowMapping]:
    """The tenures in force at revision ``at``, oldest first. One without blob keeps its fact absent."""
    query = (
        select(tenures)
        .where(tenures.c.model == model, tenures.c.since <= at)
        .where(or_(tenures.c.until.is_(None), tenures.c.until > at))
        .order_by(tenures.c.id)
    )
    return connection.execute(query).mappings().all()


def lineage(connection: Connection, model: str, number: int) -> list[int]:
    """The revisions that led to ``number``, newest first.

    A rollback is followed to the revision that it brought back: what it left behind is not in the list, nor
    is the rollback itself.
    """
    query = select(revisions.c.number, revisions.c.parent, revisions.c.content_of).where(
        revisions.c.model == model, revisions.c.number <= number
    )
    links = {row.number: (row.parent, row.content_of) for row in connection.execute(query)}
    ancestors: list[int] = []
    at = number
    while True:
        parent, content_of = links[at]
        step = parent if content_of is None else content_of
        if content_of is None and at != number:
            ancestors.append(at)
        if step is None:
            return ancestors
        at = step
