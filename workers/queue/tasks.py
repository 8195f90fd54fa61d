"""Celery's side of the work: a thin task that hands a batch id to the session of this process."""

from celery import Celery
from structlog.contextvars import bound_contextvars

from daemon.core.config.settings import Config
from daemon.core.errors import CorruptBlobError, ErrataError
from daemon.core.log import get_logger
from daemon.core.names import EDIT_TASK, SURVEY_TASK, TARGETS_TASK
from daemon.core.tracing import span
from workers.queue.assemble import SessionHolder
from workers.queue.target_worker import Seeker

log = get_logger("errata.tasks")


def register(app: Celery, config: Config, holder: SessionHolder | None = None) -> None:
    """Give ``app`` its tasks; the model is loaded on the first one, in the pool's child."""
    mine, seeker = holder or SessionHolder(config), Seeker(config)

    @app.task(name=TARGETS_TASK)  # type: ignore[untyped-decorator]
    def targets(job: str) -> None:
        """Seek the targets of a chunk; what fails is written beside it for who waits."""
        seeker.run(job)

    @app.task(name=EDIT_TASK)  # type: ignore[untyped-decorator]
    def edit(batch_id: str) -> None:
        """Apply one batch."""
        deliver(mine, batch_id)

    @app.task(name=SURVEY_TASK)  # type: ignore[untyped-decorator]
    def survey() -> None:
        """Run all probes on head."""
        survey_head(mine)


def deliver(holder: SessionHolder, batch_id: str) -> None:
    """Apply a batch. What fails is noted in the ledger, and the batch comes again by reconcile."""
    try:
        with bound_contextvars(batch=batch_id), span("batch", batch=batch_id, model=holder.model):
            outcome = holder.session().run(batch_id)
        log.info("batch", batch=batch_id, outcome=str(outcome))
    except CorruptBlobError as error:
        log.warning("corrupt blob", batch=batch_id, error=str(error))
        _recover(holder, error.message)
    except ErrataError as error:
        log.warning("batch later", batch=batch_id, code=error.code, error=str(error))
    except Exception:  # the process's edge: any bug in an edit is an attempt that failed, not a dead worker
        log.exception("batch failed", batch=batch_id)
        holder.forget()


def survey_head(holder: SessionHolder) -> None:
    """Run all probes on head; what fails is tried again when the next run is due."""
    try:
        log.info("surveyed", revision=holder.session().survey())
    except CorruptBlobError as error:
        log.warning("corrupt blob", error=str(error))
        _recover(holder, error.message)
    except ErrataError as error:
        log.warning("survey later", code=error.code, error=str(error))


def _recover(holder: SessionHolder, why: str) -> None:
    """Bring head back to what is sound; the batch comes again on that."""
    try:
        holder.session().recover(why)
    except ErrataError as error:
        log.warning("not recovered", code=error.code, error=str(error))
    finally:
        holder.forget()
