"""Figures of the ledger, such as counts of corrections and depth and age of the queue."""

import shutil
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Column, ColumnElement, Connection, and_, func, select

from daemon.core.clock import from_text
from daemon.core.config.settings import Config
from daemon.core.ledger.schema import (
    batches,
    corrections,
    feed_outcomes,
    incidents,
    quarantine,
    revisions,
    scrubs,
    tenures,
)
from daemon.core.names import UNSETTLED, CorrectionState, RevisionKind, RevisionState

Counts = dict[tuple[str, ...], int]
WAITING = (CorrectionState.PENDING, CorrectionState.QUEUED)


@dataclass(frozen=True)
class Queue:
    """The corrections that wait for one model, and how long the oldest has waited."""

    pending: int
    queued: int
    oldest_age_seconds: float


def seconds_since(now: datetime, text: str) -> float:
    """Return the seconds from a moment of the ledger to ``now``, or 0 when the clocks disagree."""
    return max(0.0, (now - from_text(text)).total_seconds())


def models(connection: Connection) -> list[str]:
    """Return the models that have a chain of revisions."""
    query = select(revisions.c.model).where(revisions.c.number == 0).order_by(revisions.c.model)
    return list(connection.execute(query).scalars())


def corrections_by_state(connection: Connection) -> Counts:
    """Count corrections by (model, state, feed)."""
    return _count(connection, corrections.c.model, corrections.c.state, corrections.c.feed)


def batches_by_state(connection: Connection) -> Counts:
    """Count batches by (model, state)."""
    return _count(connection, batches.c.model, batches.c.state)


def quarantine_by_reason(connection: Connection) -> Counts:
    """Count quarantine entries by (model, reason, state)."""
    return _count(connection, quarantine.c.model, quarantine.c.reason, quarantine.c.state)


def feed_items(connection: Connection) -> Counts:
    """Count the items that were ever read by (model, feed, outcome)."""
    rows = connection.execute(select(feed_outcomes)).mappings()
    return {(row["model"], row["feed"], row["outcome"]): int(row["count"]) for row in rows}


def queue(connection: Connection, now: datetime, model: str) -> Queue:
    """Return depth and age of the queue, with age 0 when it is empty."""
    query = select(corrections.c.state, func.count(), func.min(corrections.c.admitted_at))
    query = query.where(corrections.c.model == model, corrections.c.state.in_(WAITING))
    rows = connection.execute(query.group_by(corrections.c.state)).all()
    depth = {state: int(count) for state, count, _ in rows}
    oldest = min((admitted for _, _, admitted in rows), default=None)
    return Queue(
        pending=depth.get(CorrectionState.PENDING, 0),
        queued=depth.get(CorrectionState.QUEUED, 0),
        oldest_age_seconds=seconds_since(now, oldest) if oldest else 0.0,
    )


def revisions_of_kind(connection: Connection, model: str, kind: RevisionKind) -> int:
    """Count the revisions of a kind."""
    query = select(func.count()).where(revisions.c.model == model, revisions.c.kind == kind)
    return int(connection.execute(query).scalar_one())


def head_number(connection: Connection, model: str) -> int | None:
    """Return the number of the newest revision, or None without one."""
    return connection.execute(select(func.max(revisions.c.number)).where(revisions.c.model == model)).scalar()


def live_number(connection: Connection, model: str) -> int | None:
    """Return the number of the newest revision that passed its probes, or None without one."""
    mine = (revisions.c.model == model, revisions.c.state == RevisionState.LIVE)
    return connection.execute(select(func.max(revisions.c.number)).where(*mine)).scalar()


def incidents_open(connection: Connection, model: str) -> int:
    """Count the incidents that are open or froze the model."""
    query = select(func.count()).where(incidents.c.model == model, incidents.c.state.in_(UNSETTLED))
    return int(connection.execute(query).scalar_one())


def facts_written(connection: Connection, model: str) -> int:
    """Count the facts that edits wrote, without those that a rollback brought back."""
    made = and_(revisions.c.model == tenures.c.model, revisions.c.number == tenures.c.since)
    query = (
        select(func.count())
        .select_from(tenures.join(revisions, made))
        .where(tenures.c.model == model, tenures.c.blob.is_not(None), revisions.c.kind == RevisionKind.EDIT)
    )
    return int(connection.execute(query).scalar_one())


def incidents_by_state(connection: Connection) -> Counts:
    """Count incidents by (model, subject, result, state)."""
    by = (incidents.c.model, incidents.c.subject, incidents.c.result, incidents.c.state)
    return _count(connection, *by)


def promotion_lag_seconds(connection: Connection, now: datetime, model: str) -> float:
    """Return the age of the oldest candidate above live, or 0 without one."""
    query = select(func.min(revisions.c.created_at)).where(
        revisions.c.model == model,
        revisions.c.state == RevisionState.CANDIDATE,
        revisions.c.number > (live_number(connection, model) or 0),
    )
    oldest = connection.execute(query).scalar()
    return 0.0 if oldest is None else seconds_since(now, oldest)


def free_bytes(config: Config) -> int:
    """Return the free bytes on the file system of the store, which may not exist yet."""
    folder = config.store_path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def unsound_blobs(connection: Connection, model: str) -> int:
    """Count the blobs that the last scrub of a model found missing or damaged."""
    mine = select(scrubs.c.unsound).where(scrubs.c.model == model)
    unsound = connection.execute(mine.order_by(scrubs.c.id.desc()).limit(1)).scalar()
    return len(unsound or ())


def _count(connection: Connection, *columns: Column[str]) -> Counts:
    wanted: tuple[ColumnElement[str], ...] = columns
    rows = connection.execute(select(*wanted, func.count()).group_by(*wanted))
    return {tuple(row[:-1]): int(row[-1]) for row in rows}
