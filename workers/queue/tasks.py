"""The Celery tasks, which hand batch ids and jobs to the session and the model of this process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery
from celery.exceptions import Reject
from structlog.contextvars import bound_contextvars

from daemon.core.config.settings import Config
from daemon.core.errors import CorruptBlobError, ErrataError, LeaseHeldError
from daemon.core.log import get_logger
from daemon.core.names import EDIT_TASK, SURVEY_TASK, TARGETS_TASK
from daemon.core.tracing import span
from workers.queue.assemble import SessionHolder
from workers.queue.interruption import Interruption
from workers.queue.leading import leading_step
from workers.queue.target_worker import TargetWorker

log = get_logger("errata.tasks")
_LOOK_SECONDS = 0.5  # between looks at a lease that another writer has


def add_tasks(
    app: Celery,
    config: Config,
    holder: SessionHolder | None = None,
    interruption: Interruption | None = None,
) -> None:
    """Add the tasks to ``app``, taken by the worker that leads. The first loads the model, in a child."""
    session_holder, target_worker = holder or SessionHolder(config), TargetWorker(config)
    interruptible = (interruption or Interruption()).task
    app.steps["consumer"].add(leading_step(config))

    @app.task(name=TARGETS_TASK)  # type: ignore[untyped-decorator]
    def targets(job: str) -> None:
        """Find the targets of a chunk and write them, or the error, for the editing worker."""
        with interruptible():
            target_worker.run(job)

    @app.task(name=EDIT_TASK)  # type: ignore[untyped-decorator]
    def edit(batch_id: str) -> None:
        """Apply one batch, after the lease of a writer before this one."""
        with interruptible():
            if not deliver_when_free(session_holder, batch_id, 2 * config.edit.lease_seconds):
                raise Reject("another writer has the lease", requeue=True)

    @app.task(name=SURVEY_TASK)  # type: ignore[untyped-decorator]
    def survey() -> None:
        """Run all probes on head."""
        with interruptible():
            survey_head(session_holder)


def deliver_when_free(holder: SessionHolder, batch_id: str, patience: float) -> bool:
    """Apply a batch, and return False if another writer kept the lease for ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while not deliver(holder, batch_id):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def deliver(holder: SessionHolder, batch_id: str) -> bool:
    """Apply a batch, and return False if another writer has the lease.

    Another failure is recorded in the ledger, and the scheduler sends the batch again.
    """
    with bound_contextvars(batch=batch_id), _contained(holder, "batch"):
        try:
            with span("batch", batch=batch_id, model=holder.model):
                outcome = holder.session().run(batch_id)
        except LeaseHeldError as error:
            log.info("waits for the lease", why=str(error))
            return False
        log.info("batch", outcome=str(outcome))
    return True


def survey_head(holder: SessionHolder) -> None:
    """Run all probes on head, without a retry before the next survey is due."""
    with _contained(holder, "survey"):
        log.info("surveyed", revision=holder.session().survey())


@contextmanager
def _contained(holder: SessionHolder, task: str) -> Iterator[None]:
    """Log an error of the block instead of raising it, and make head loadable again after damage."""
    holder.tell("busy")
    try:
        yield
    except CorruptBlobError as error:
        log.warning("corrupt blob", error=str(error))
        _recover(holder, error.message)
    except ErrataError as error:
        log.warning(f"{task} later", code=error.code, error=str(error))
    except Exception:  # the process's edge: a bug fails one task and must not end the worker
        log.exception(f"{task} failed")
        holder.forget()
    finally:
        holder.tell("idle")


def _recover(holder: SessionHolder, why: str) -> None:
    """Make head loadable again, after which the scheduler sends the batch again."""
    try:
        holder.session().recover(why)
    except ErrataError as error:
        log.warning("not recovered", code=error.code, error=str(error))
    finally:
        holder.forget()
