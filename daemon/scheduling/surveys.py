"""Surveys: when all probes are due on head, and the request to run them."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from daemon.core.clock import from_text
from daemon.core.config.settings import Config
from daemon.core.errors import LeaseHeldError, NotFoundError
from daemon.core.ledger import leases
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.probe_results import last_survey
from daemon.core.ledger.schema import probe_results, revisions
from daemon.core.names import ALL_PROBES
from daemon.scheduling.dispatch import Queue
from daemon.views.figures import queue as waiting

_WHO = "scheduler"


def ask_for_survey(ledger: Ledger, config: Config, queue: Queue) -> bool:
    """Ask the worker for a survey when one is due and none runs, and return whether that was done.

    Raises UnavailableError if the queue does not take it. It is due again when the lease has expired.
    """
    model = config.model.name
    with ledger.read() as connection:
        if not is_due(connection, config, ledger.clock.now()):
            return False
    with ledger.write() as connection:
        try:  # the lease is never released: a survey that is lost is due again when the lease is over
            who = f"{_WHO}:{secrets.token_hex(4)}"
            seconds = float(config.edit.task_seconds)
            leases.acquire(connection, ledger.lease_clock, f"survey:{model}", who, seconds)
        except LeaseHeldError:
            return False
    queue.survey(model)
    return True


def is_due(connection: Connection, config: Config, now: datetime) -> bool:
    """Whether head's content needs a survey now. Waiting corrections delay it by one period at most."""
    model, every = config.model.name, timedelta(seconds=config.watch.full_seconds)
    try:
        current = head(connection, model)
    except NotFoundError:
        return False
    content = revisions.c.content == current["content"]
    same = select(revisions.c.number).where(revisions.c.model == model, content)
    mine = (probe_results.c.model == model) & (probe_results.c.probe == ALL_PROBES)
    done = select(probe_results.c.id).where(mine, probe_results.c.revision.in_(same)).limit(1)
    if connection.execute(done).scalar() is not None or current["number"] == 0:
        return False
    if config.watch.full_before_live:
        return True
    since = from_text(last_survey(connection, model))
    busy = waiting(connection, now, model)
    patience = 2 * every if busy.pending + busy.queued else every
    return now - since >= patience
