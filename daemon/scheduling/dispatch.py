"""The outbox: corrections become batches, and batches go to the queue, again where it lost them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Protocol

import redis
from kombu.exceptions import KombuError
from sqlalchemy import Connection, func, select

from daemon.core.broker import celery_app, redis_url
from daemon.core.clock import to_text
from daemon.core.config.settings import Config
from daemon.core.errors import UnavailableError
from daemon.core.ledger import batches, leases
from daemon.core.ledger.dates import settle_dates
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import batches as batch_table
from daemon.core.ledger.schema import corrections
from daemon.core.ledger.switches import is_paused
from daemon.core.names import EDIT_TASK, SURVEY_TASK, BatchState, CorrectionState, edit_queue, writer_lease

_AT_ONCE = 64  # batches in one transaction, so that no other writer waits long


class Queue(Protocol):
    """The queue of batch ids of each model."""

    def send(self, model: str, batch_id: str) -> None:
        """Put an id on the queue, or raise UnavailableError."""

    def survey(self, model: str) -> None:
        """Ask for a run of all probes, or raise UnavailableError."""

    def depth(self, model: str) -> int:
        """How many ids wait on the queue, or raise UnavailableError."""


class CeleryQueue:
    """The queue over Celery and Redis, whose messages carry nothing but the id of a batch."""

    def __init__(self, config: Config) -> None:
        self._app = celery_app(config)
        self._redis = redis.Redis.from_url(redis_url(config), socket_timeout=5, socket_connect_timeout=5)

    def send(self, model: str, batch_id: str) -> None:
        """Put an id on the queue, or raise UnavailableError."""
        with _redis_errors():
            self._app.send_task(EDIT_TASK, args=[batch_id], queue=edit_queue(model), retry=False)

    def survey(self, model: str) -> None:
        """Ask for a run of all probes on head, behind what is on the queue, or raise UnavailableError."""
        with _redis_errors():
            self._app.send_task(SURVEY_TASK, queue=edit_queue(model), retry=False)

    def depth(self, model: str) -> int:
        """How many ids wait and were not taken by a worker, or UnavailableError."""
        with _redis_errors():
            return int(self._redis.llen(edit_queue(model)))


@contextmanager
def _redis_errors() -> Iterator[None]:
    try:
        yield
    except (KombuError, redis.RedisError, OSError) as error:
        raise UnavailableError(
            f"Redis does not answer: {error}", hint="batches stay in the outbox and are sent when it is back"
        ) from error


def make_batches(ledger: Ledger, config: Config) -> int:
    """Make batches of waiting corrections that are full or old enough, and return how many.

    Only ``edit.batches_ahead`` batches are made ahead of the worker, because a correction that still waits
    can be replaced by a newer one without an edit.
    """
    settle_dates(ledger)
    model, made = config.model.name, 0
    while True:
        with ledger.write() as connection:
            if is_paused(connection, model):
                return made
            due = _due(connection, ledger, config)
            batches.create_all(connection, ledger.clock.now(), model, due)
        if not due:
            return made
        made += len(due)


def _due(connection: Connection, ledger: Ledger, config: Config) -> list[list[str]]:
    """The oldest waiting corrections, cut into the batches that are due, at most ``_AT_ONCE``."""
    size = config.edit.batch_size
    free = min(_AT_ONCE, config.edit.batches_ahead - _ahead(connection, config.model.name))
    if free <= 0:
        return []
    left = edits_left(connection, ledger.clock.now(), config.model.name, config.edit.edits_per_hour)
    wanted = free * size if left is None else min(free * size, left)
    mine = (corrections.c.model == config.model.name) & (corrections.c.state == CorrectionState.PENDING)
    waiting = select(corrections.c.id, corrections.c.admitted_at).where(mine)
    rows = connection.execute(waiting.order_by(corrections.c.seq).limit(wanted)).all()
    ripe = to_text(ledger.clock.now() - timedelta(seconds=config.edit.batch_age_seconds))
    cut = [rows[start : start + size] for start in range(0, len(rows), size)]
    if cut and len(cut[-1]) < size and min(row.admitted_at for row in cut[-1]) > ripe:
        cut.pop()
    return [[row.id for row in one] for one in cut]


def _ahead(connection: Connection, model: str) -> int:
    """How many batches are made and not yet done."""
    live = batch_table.c.state.in_((BatchState.OPEN, BatchState.SENT))
    query = select(func.count()).select_from(batch_table).where(batch_table.c.model == model, live)
    return int(connection.execute(query).scalar_one())


def send_open(ledger: Ledger, model: str, queue: Queue) -> int:
    """Send every batch of a model's outbox, and return how many.

    Raises UnavailableError if Redis does not take them; they stay in the outbox.
    """
    return _send(ledger, model, queue, BatchState.OPEN)


def reconcile(ledger: Ledger, config: Config, queue: Queue) -> int:
    """Send batches again that Redis lost or whose worker died, and return how many.

    A batch that arrives twice does no harm, because the second worker finds it done.
    """
    model = config.model.name
    with ledger.read() as connection:
        now = ledger.clock.now()
        if leases.current_note(connection, ledger.lease_clock, writer_lease(model)):
            return 0  # a worker is at work
        ripe = to_text(now - timedelta(seconds=config.edit.resend_seconds))
        sent = (batch_table.c.model == model) & (batch_table.c.state == BatchState.SENT)
        count = connection.execute(select(func.count()).select_from(batch_table).where(sent)).scalar_one()
    if queue.depth(model) >= count:
        return 0  # all of them still wait; nothing was lost
    return _send(ledger, model, queue, BatchState.SENT, before=ripe)


def _send(ledger: Ledger, model: str, queue: Queue, state: BatchState, before: str | None = None) -> int:
    # edits before bisects, in order of admission: dates do not tell it where the clock was set back
    bisects = batch_table.c.rollback.is_not(None)
    oldest = select(func.min(corrections.c.seq)).where(corrections.c.batch_id == batch_table.c.id)
    mine = (batch_table.c.model == model) & (batch_table.c.state == state)
    query = select(batch_table.c.id).where(mine)
    if before is not None:
        query = query.where(batch_table.c.sent_at <= before)
    with ledger.read() as connection:
        ordered = query.order_by(bisects, oldest.scalar_subquery(), batch_table.c.id)
        due = connection.execute(ordered).scalars().all()
    for start in range(0, len(due), _AT_ONCE):
        sent = []
        try:
            for batch_id in due[start : start + _AT_ONCE]:
                queue.send(model, batch_id)
                sent.append(batch_id)
        finally:  # what was sent is recorded even when the next one could not be sent
            with ledger.write() as connection:
                batches.mark_sent(connection, ledger.clock.now(), sent)
    return len(due)


def edits_left(connection: Connection, now: datetime, model: str, per_hour: int) -> int | None:
    """How many corrections may still be put into batches within the hour, or None for no limit.

    What waits is replaced by what is newer meanwhile, so that the next hour writes the newest values.
    """
    if per_hour <= 0:
        return None
    since = to_text(now - timedelta(hours=1))
    edits = (batch_table.c.model == model) & batch_table.c.rollback.is_(None)
    recent = select(batch_table.c.id).where(edits, batch_table.c.created_at > since)
    made = select(func.count()).select_from(corrections).where(corrections.c.batch_id.in_(recent))
    return max(0, per_hour - int(connection.execute(made).scalar_one()))
