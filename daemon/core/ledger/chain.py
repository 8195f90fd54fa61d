"""The chain of revisions: append to it, mark its revisions, and read it."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from daemon.core.clock import to_text
from daemon.core.errors import NotFoundError, StaleHeadError
from daemon.core.ledger.database import in_chunks, no_later
from daemon.core.ledger.revision import content_hash
from daemon.core.ledger.schema import judgements, revisions, tenures
from daemon.core.names import AUTOMATIC, ProbeResult, RevisionKind, RevisionState, RollbackCause


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
    norms: Mapping[str, float] | None = None,
    stages: Mapping[str, float] | None = None,
    batch_id: str | None = None,
    content_of: int | None = None,
    cause: RollbackCause | None = None,
    who: str | None = None,
    reason: str = "",
) -> None:
    """Append revision ``number``, whose parent is the one before it.

    A rollback has a ``cause``, says who made it, and whose content it has. Raises StaleHeadError if the
    revision or its batch is in the chain already.
    """
    row = {"model": model, "number": number, "parent": number - 1 if number else None, "kind": kind}
    row |= {"content": content_hash(tensors), "tensors": dict(tensors), "recipe": recipe, "token": token}
    row |= {"state": state, "stages": dict(stages or {}), "norms": dict(norms or {}), "active_facts": 0}
    row |= {"batch_id": batch_id, "content_of": content_of, "cause": cause, "who": who, "reason": reason}
    try:
        connection.execute(insert(revisions).values(**row, created_at=to_text(now)))
    except IntegrityError as error:  # the primary key is the compare-and-swap
        raise StaleHeadError(f"revision {number} or its batch is already there") from error


def count_active(connection: Connection, model: str, number: int) -> None:
    """Record in a revision how many facts its weights hold."""
    count = sum(1 for row in active_tenures(connection, model, number) if row["blob"] is not None)
    mine = (revisions.c.model == model) & (revisions.c.number == number)
    connection.execute(update(revisions).where(mine).values(active_facts=count))


def set_revision_state(connection: Connection, model: str, number: int, state: RevisionState) -> None:
    """Put a revision into a state.

    One that was taken back stays rejected, and has this state when a later rollback brings it back.
    """
    mine = (revisions.c.model == model) & (revisions.c.number == number)
    there = revisions.c.taken_back_by.is_(None)
    connection.execute(update(revisions).where(mine, there).values(state=state))
    connection.execute(update(revisions).where(mine, ~there).values(state_before=state))


def mark_taken_back(connection: Connection, model: str, by: int) -> list[int]:
    """Reject what the rollback ``by`` left behind, and return what head holds, newest first.

    A revision that an earlier rollback took back and that head holds again has its earlier state again.
    """
    held = path(connection, model, by)
    mine = revisions.c.model == model
    chain = connection.execute(select(revisions.c.number, revisions.c.taken_back_by).where(mine)).all()
    there = set(held)
    left = [row.number for row in chain if row.number not in there and row.taken_back_by is None]
    back = [row.number for row in chain if row.number in there and row.taken_back_by is not None]
    rejected = {"state_before": revisions.c.state, "state": RevisionState.REJECTED, "taken_back_by": by}
    restored = {"state": revisions.c.state_before, "state_before": None, "taken_back_by": None}
    for numbers, values in ((left, rejected), (back, restored)):
        for some in in_chunks(numbers):
            connection.execute(update(revisions).where(mine, revisions.c.number.in_(some)).values(values))
    return held


def promote_forebears(connection: Connection, model: str, number: int) -> None:
    """Make the candidates live that led to ``number`` and passed all probes that were run on them."""
    judged = select(judgements.c.revision).where(judgements.c.model == model)
    bad = judged.where(judgements.c.result != ProbeResult.OK)
    candidate = (revisions.c.model == model) & (revisions.c.state == RevisionState.CANDIDATE)
    passed = revisions.c.number.in_(judged) & revisions.c.number.not_in(bad)
    for some in in_chunks(path(connection, model, number)[1:]):
        mine = candidate & passed & revisions.c.number.in_(some)
        connection.execute(update(revisions).where(mine).values(state=RevisionState.LIVE))


def went_back_by_itself(connection: Connection, model: str, since: str) -> bool:
    """Whether evidence led to a rollback after ``since``, without a human."""
    automatic = (revisions.c.model == model) & revisions.c.cause.in_(AUTOMATIC)
    query = select(revisions.c.number).where(automatic, revisions.c.created_at > since).limit(1)
    return connection.execute(query).scalar() is not None


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


def path(connection: Connection, model: str, number: int) -> list[int]:
    """The revisions whose content is part of revision ``number``: itself and what led to it, newest first.

    A rollback is followed to the revision that it brought back, so what it left behind is not in the list.
    """
    query = select(revisions.c.number, revisions.c.parent, revisions.c.content_of).where(
        revisions.c.model == model, revisions.c.number <= number
    )
    steps = {
        row.number: row.parent if row.content_of is None else row.content_of
        for row in connection.execute(query)
    }
    led: list[int] = []
    at: int | None = number
    while at is not None:
        led.append(at)
        at = steps[at]
    return led


def newest_edit(connection: Connection, model: str, held: Sequence[int]) -> int:
    """The newest of the revisions ``held`` that an edit made, or 0."""
    edits = (revisions.c.model == model) & (revisions.c.kind == RevisionKind.EDIT)
    for some in in_chunks(held):
        query = select(func.max(revisions.c.number)).where(edits, revisions.c.number.in_(some))
        number = connection.execute(query).scalar()
        if number is not None:
            return int(number)
    return 0


def lineage(connection: Connection, model: str, number: int) -> list[int]:
    """The revisions that led to ``number``, newest first, without the rollbacks among them."""
    mine = (revisions.c.model == model) & (revisions.c.content_of.is_not(None))
    rollbacks = set(connection.execute(select(revisions.c.number).where(mine)).scalars())
    return [one for one in path(connection, model, number) if one != number and one not in rollbacks]


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(revisions), revisions.c.created_at, now)
