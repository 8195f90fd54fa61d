"""Renew the writer's lease from a thread during a long edit."""

import threading
from types import TracebackType
from typing import Self

from daemon.core.errors import ErrataError, FencedError
from daemon.core.ledger import leases
from daemon.core.ledger.heartbeats import process_name
from daemon.core.ledger.ledger import Ledger
from daemon.core.log import get_logger
from daemon.core.names import writer_lease

log = get_logger("errata.worker")


class LeaseKeeper:
    """Takes the writer lease of a model for a ``with`` block and renews it from a thread.

    Raises on entry:
        LeaseHeldError: another writer has the lease.
    """

    def __init__(self, ledger: Ledger, model: str, seconds: float, batch_id: str) -> None:
        self._ledger, self._model, self._seconds = ledger, model, seconds
        self._batch_id = batch_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease-keeper", daemon=True)
        self.lease: leases.Lease

    def __enter__(self) -> Self:
        """Take the lease and begin to renew it."""
        self.take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lease back."""
        self._stop.set()
        self._thread.join(timeout=self._seconds)
        with self._ledger.write() as connection:
            leases.release(connection, self._ledger.lease_clock, self.lease)

    def take(self) -> None:
        """Take the lease, or a newer token where a rollback fenced the one that we had.

        Raises:
            LeaseHeldError: another writer has it.
        """
        with self._ledger.write() as connection:
            clock, name = self._ledger.lease_clock, writer_lease(self._model)
            self.lease = leases.acquire(
                connection, clock, name, process_name(), self._seconds, self._batch_id
            )

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            try:
                with self._ledger.write() as connection:
                    leases.renew(connection, self._ledger.lease_clock, self.lease, self._seconds)
            except FencedError:
                continue  # a rollback took the lease: the commit is refused, and the session plans again
            except ErrataError as error:
                log.warning("lease not renewed", error=str(error))
