"""Incidents: open them, record what was done about them, close them."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, select, update

from daemon.core.clock import to_text
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit
from daemon.core.ledger.database import in_chunks, no_later
from daemon.core.ledger.schema import incidents, revisions
from daemon.core.names import (
    AUTOMATIC,
    STORE_PROBE,
    UNSETTLED,
    IncidentState,
    ProbeResult,
    RollbackCause,
    Subject,
)


def find_incident(connection: Connection, model: str, revision: int, probe: str) -> RowMapping | None:
    """The incident of a probe of a revision, or None."""
    query = select(incidents).where(_of_probe(model, revision, probe))
    return connection.execute(query).mappings().one_or_none()


def open_incident(
    connection: Connection,
    now: datetime,
    model: str,
    revision: int,
    probe: str,
    message: str,
    *,
    subject: Subject,
    result: ProbeResult,
    name: str = "",
    since: int | None = None,
    alert: str | None = None,
) -> None:
    """Open the incident of a probe of a revision, or open it again with what is known now.

    ``subject`` is what it accuses: the revision itself, or a feed, consumer or host of the given ``name``, or
    the store, while that revision was head. ``since`` is the last revision that was good, ``alert`` the
    episode of the alert that reported it. What accuses a revision that was taken back is settled already.
    """
    gone = _taken_back_by(connection, model, revision) if subject is Subject.REVISION else None
    state = IncidentState.OPEN if gone is None else IncidentState.CLOSED
    values = {"state": state, "result": result, "message": message, "since": since, "alert": alert}
    values |= {"subject": subject, "subject_name": name, "rollback_revision": gone}
    values |= {"opened_at": to_text(now), "closed_at": None if gone is None else to_text(now)}
    mine = _of_probe(model, revision, probe)
    if not connection.execute(update(incidents).where(mine).values(**values)).rowcount:
        connection.execute(insert(incidents).values(model=model, revision=revision, probe=probe, **values))


def open_damage(connection: Connection, now: datetime, model: str, revision: int, message: str) -> None:
    """Open the incident of a revision with damaged blobs, unless there is one."""
    if find_incident(connection, model, revision, STORE_PROBE) is None:
        open_incident(
            connection, now, model, revision, STORE_PROBE, message,
            subject=Subject.STORE, result=ProbeResult.UNKNOWN,
        )  # fmt: skip


def record_recovery(
    connection: Connection,
    now: datetime,
    model: str,
    revision: int,
    message: str,
    rollback_revision: int | None = None,
) -> None:
    """Record what was done about damaged blobs in the open incident, also where it was closed before."""
    open_damage(connection, now, model, revision, message)
    values: dict[str, Any] = {"message": message, "state": IncidentState.OPEN, "closed_at": None}
    if rollback_revision is not None:
        values["rollback_revision"] = rollback_revision
    connection.execute(update(incidents).where(_of_probe(model, revision, STORE_PROBE)).values(**values))


def add_to_story(connection: Connection, model: str, rollback: int, story: str) -> None:
    """Add to the incidents that a rollback answered what became of the corrections that it took back."""
    mine = (incidents.c.model == model) & (incidents.c.rollback_revision == rollback)
    told = incidents.c.message + f"; {story}"
    connection.execute(update(incidents).where(mine).values(message=told))


def close_answered(
    connection: Connection, now: datetime, model: str, revision: int, probes: Collection[str]
) -> None:
    """Close the incidents of probes that were unknown and now have a result."""
    unknown = (incidents.c.result == ProbeResult.UNKNOWN) & (incidents.c.state == IncidentState.OPEN)
    of_revision = (incidents.c.model == model) & (incidents.c.revision == revision)
    _close(connection, now, of_revision & incidents.c.probe.in_(probes) & unknown)


def settle_left_behind(
    connection: Connection,
    now: datetime,
    model: str,
    rollback: int,
    held: Collection[int],
    cause: RollbackCause,
) -> None:
    """Settle the incidents that accuse revisions which head, that is ``rollback``, no longer holds.

    They count as answered where the evidence itself led back, and as closed where somebody else did.
    """
    mine = (incidents.c.model == model) & (incidents.c.subject == Subject.REVISION)
    unsettled = mine & incidents.c.state.in_(UNSETTLED)
    rows = connection.execute(select(incidents).where(unsettled)).mappings().all()
    left = [row for row in rows if row["revision"] not in held]
    degraded = [row["id"] for row in left if cause in AUTOMATIC and row["result"] == ProbeResult.DEGRADED]
    others = [row["id"] for row in left if row["id"] not in degraded]
    answered = {"state": IncidentState.ROLLED_BACK, "rollback_revision": rollback}
    for some in in_chunks(degraded):
        _close(connection, now, incidents.c.id.in_(some), **answered)
    for some in in_chunks(others):
        _close(connection, now, incidents.c.id.in_(some), rollback_revision=rollback)


def close_frozen(connection: Connection, now: datetime, model: str) -> None:
    """Close the incidents that froze a model."""
    frozen = incidents.c.state == IncidentState.FROZEN
    _close(connection, now, (incidents.c.model == model) & frozen)


def close_of_feed(connection: Connection, now: datetime, model: str, feed: str) -> None:
    """Close the incidents that accuse a feed."""
    accused = (incidents.c.subject == Subject.FEED) & (incidents.c.subject_name == feed)
    mine = (incidents.c.model == model) & accused & incidents.c.state.in_(UNSETTLED)
    _close(connection, now, mine)


def accusations(connection: Connection, model: str, held: Collection[int]) -> Sequence[RowMapping]:
    """The open incidents that accuse a revision among ``held`` of being degraded."""
    bad = (incidents.c.state == IncidentState.OPEN) & (incidents.c.result == ProbeResult.DEGRADED)
    mine = (incidents.c.model == model) & (incidents.c.subject == Subject.REVISION) & bad
    rows = connection.execute(select(incidents).where(mine).order_by(incidents.c.id)).mappings().all()
    return [row for row in rows if row["revision"] in held]


def incidents_of_alerts(connection: Connection, model: str) -> Sequence[RowMapping]:
    """The incidents that alerts opened, oldest first."""
    mine = (incidents.c.model == model) & incidents.c.alert.is_not(None)
    return connection.execute(select(incidents).where(mine).order_by(incidents.c.id)).mappings().all()


def freeze_incidents(connection: Connection, ids: Iterable[int]) -> int:
    """Mark those of the incidents as frozen that are still open, and return how many."""
    mine = incidents.c.id.in_(ids) & (incidents.c.state == IncidentState.OPEN)
    return connection.execute(update(incidents).where(mine).values(state=IncidentState.FROZEN)).rowcount


def close_incident(connection: Connection, now: datetime, number: int, who: str, reason: str) -> None:
    """Close an incident by hand, or raise NotFoundError if there is none."""
    row = connection.execute(select(incidents).where(incidents.c.id == number)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"there is no incident {number}", hint="errata incidents lists them")
    closed = {"state": IncidentState.CLOSED, "closed_at": row["closed_at"] or to_text(now)}
    connection.execute(update(incidents).where(incidents.c.id == number).values(**closed))
    details = {"model": row["model"], "revision": row["revision"], "probe": row["probe"]}
    audit.record(connection, now, who, "close incident", str(number), reason, details)


def was_rolled_back(connection: Connection, model: str, since: str, probe: str) -> bool:
    """Whether a rollback answered an incident of a probe after ``since``."""
    mine = (incidents.c.model == model) & (incidents.c.state == IncidentState.ROLLED_BACK)
    query = select(incidents.c.id).where(mine, incidents.c.probe == probe, incidents.c.closed_at > since)
    return connection.execute(query.limit(1)).scalar() is not None


def _taken_back_by(connection: Connection, model: str, revision: int) -> int | None:
    mine = (revisions.c.model == model) & (revisions.c.number == revision)
    return connection.execute(select(revisions.c.taken_back_by).where(mine)).scalar_one_or_none()


def _close(connection: Connection, now: datetime, which: ColumnElement[bool], **more: Any) -> None:
    values = {"state": IncidentState.CLOSED, "closed_at": to_text(now), **more}
    connection.execute(update(incidents).where(which).values(**values))


def _of_probe(model: str, revision: int, probe: str) -> ColumnElement[bool]:
    of_revision = and_(incidents.c.model == model, incidents.c.revision == revision)
    return of_revision & (incidents.c.probe == probe)


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(incidents), incidents.c.opened_at, now)
    no_later(connection, update(incidents), incidents.c.closed_at, now)
