"""Decide which worker of a model takes batches from the queue: the holder of the worker lease.

Two workers that took turns would load each other's revisions again and again. So a worker listens to the
queue of batches only while it leads. A step of Celery's consumer looks at the lease between messages, in the
process that receives them, which goes on while its child edits.
"""

from typing import Any

from celery import bootsteps
from celery.worker.consumer import Consumer
from celery.worker.consumer.tasks import Tasks

from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError, FencedError, LeaseHeldError
from daemon.core.ledger import leases
from daemon.core.ledger.heartbeats import process_name
from daemon.core.ledger.ledger import Ledger
from daemon.core.log import get_logger
from daemon.core.names import edit_queue, worker_lease

log = get_logger("errata.worker")
_RENEWALS = 3  # renewals within the length of a lease: two may fail
_LOOKS = 10  # looks at the lease within its length, so that a standby takes over soon after it is over


class WorkerLease:
    """The lease by which one worker of a model leads."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ledger: Ledger | None = None
        self._lease: leases.Lease | None = None
        self._renewed = 0.0
        self._waits = False

    @property
    def seconds(self) -> float:
        """The length of the lease."""
        return self._config.edit.lease_seconds

    def look(self) -> bool:
        """Renew the lease, or take it if nobody has it, and return whether this worker leads."""
        try:
            self._renew_or_take(self._open())
            self._waits = False
        except (LeaseHeldError, FencedError) as error:
            self._lease = None
            if not self._waits:
                log.info("stands by until another worker ends", why=str(error))
            self._waits = True
        except ErrataError as error:  # the ledger does not answer: whoever leads can commit nothing either
            log.warning("lease not renewed", code=error.code, error=str(error))
        finally:
            self._disconnect()
        return self._lease is not None

    def release(self) -> None:
        """Give the lease back, so that a standby takes over at its next look."""
        lease, self._lease = self._lease, None
        if lease is None or self._ledger is None:
            return
        try:
            with self._ledger.write() as connection:
                leases.release(connection, self._ledger.lease_clock, lease)
        except ErrataError as error:
            log.warning("lease not given back, it runs out", code=error.code, error=str(error))
        finally:
            self._disconnect()

    def _renew_or_take(self, ledger: Ledger) -> None:
        clock, now = ledger.lease_clock, ledger.clock.monotonic()
        if self._lease is not None and now - self._renewed < self.seconds / _RENEWALS:
            return
        name = worker_lease(self._config.model.name)
        if self._lease is None:
            with ledger.read() as connection:  # a standby looks often, and writes only if it can lead
                holder = leases.current_holder(connection, clock, name)
            if holder not in (None, process_name()):
                raise LeaseHeldError(f"{name} is held by {holder}")
        with ledger.write() as connection:
            if self._lease is None:
                self._lease = leases.acquire(connection, clock, name, process_name(), self.seconds, "leads")
                log.info("takes batches from the queue", token=self._lease.token)
            else:
                leases.renew(connection, clock, self._lease, self.seconds)
        self._renewed = now

    def _open(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger.open(self._config.ledger_url)
        return self._ledger

    def _disconnect(self) -> None:
        """Close all connections, because a child that is forked later must inherit none."""
        if self._ledger is not None:
            self._ledger.close()


def leading_step(config: Config) -> type[bootsteps.StartStopStep]:
    """Return the step of Celery's consumer that listens to the batches of a model only while it leads."""
    queue, lease = edit_queue(config.model.name), WorkerLease(config)

    class Leading(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
        """Begins to listen when the lease is taken, and ends when it is lost."""

        requires = (Tasks,)

        def __init__(self, parent: Consumer, **options: Any) -> None:
            super().__init__(parent, **options)
            # a target worker has another queue, and needs no lease
            self._is_editor = queue in parent.app.amqp.queues.consume_from
            self._timer: Any = None

        def start(self, parent: Consumer) -> None:
            """Look at the lease before the first message of each connection, and from then on."""
            if self._is_editor:
                self._look(parent)
                self._timer = parent.timer.call_repeatedly(lease.seconds / _LOOKS, self._look, (parent,))

        def stop(self, _parent: Consumer) -> None:
            """End to look, because the connection to Redis ended."""
            if self._timer is not None:
                self._timer.cancel()

        def shutdown(self, parent: Consumer) -> None:
            """Give the lease back, because this worker ends."""
            self.stop(parent)
            lease.release()

        def _look(self, parent: Consumer) -> None:
            leads, listens = lease.look(), queue in parent.app.amqp.queues.consume_from
            if leads and not listens:
                parent.add_task_queue(queue)
            elif listens and not leads:
                parent.cancel_task_queue(queue)

    return Leading
