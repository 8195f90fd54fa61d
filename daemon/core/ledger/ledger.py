"""The ledger: transactions, and the ways in which head moves.

A revision exists only once a transaction of this module has appended it. ``commit`` appends the outcome of
an edit when the writer's fencing token is the newest and head is still the parent. ``rollback`` appends a
revision with the content of an earlier one, ``rebuild`` one with head's facts in new tensors. None deletes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from sqlalchemy import Connection, Engine, RowMapping

from daemon.core.blobs import REPAIR, BlobCheck
from daemon.core.clock import Clock, Dating, StepWatch, SystemClock
from daemon.core.errors import (
    CorruptBlobError,
    LedgerError,
    NotFoundError,
    StaleHeadError,
    StoreError,
)
from daemon.core.fsio import FaultHook, no_fault
from daemon.core.ledger import audit, leases
from daemon.core.ledger.batches import close_batch
from daemon.core.ledger.chain import (
    append_revision,
    count_active,
    find_revision,
    get_revision,
    head,
    mark_taken_back,
)
from daemon.core.ledger.database import (
    check_integrity,
    is_founded,
    migrate,
    open_engine,
    require_schema,
    schema_version,
    transaction,
)
from daemon.core.ledger.holdings import blobs_of
from daemon.core.ledger.incidents import settle_left_behind
from daemon.core.ledger.leases import Lease, LeaseClock
from daemon.core.ledger.probe_results import insert_probes
from daemon.core.ledger.proposals import ProbeRow, Proposal
from daemon.core.ledger.revision import content_hash
from daemon.core.ledger.settlement import apply_written, bring_back, quarantine_refused
from daemon.core.ledger.upgrade import upgrade
from daemon.core.names import RevisionKind, RevisionState, RollbackCause, writer_lease


class Ledger:
    """The ledger's database and the clock by which its rows are dated."""

    def __init__(self, engine: Engine, clock: Clock | None = None, fault: FaultHook = no_fault) -> None:
        self.engine = engine
        self.clock = clock or SystemClock()
        self.lease_clock, self.step_watch = LeaseClock(self.clock), StepWatch(self.clock)
        self.dating = Dating(self.clock)
        self._fault = fault

    @classmethod
    def open(cls, url: str, clock: Clock | None = None, fault: FaultHook = no_fault) -> Self:
        """Open and check the ledger at an SQLAlchemy URL, and create it where there is none.

        A ledger of another schema is left as it is. Raises LedgerError for one, or if the ledger is damaged,
        and UnavailableError if the database does not answer.
        """
        engine = _open_sound(url)
        if schema_version(engine) is None:
            migrate(engine)
        require_schema(engine)
        return cls(engine, clock, fault)

    @classmethod
    def open_existing(cls, url: str, clock: Clock | None = None) -> Self:
        """The same for commands that need a ledger that is there. Raises LedgerError if there is none."""
        if not is_founded(url):
            raise LedgerError("there is no ledger yet", hint="errata run creates it; check data_dir")
        return cls.open(url, clock)

    @classmethod
    def open_migrated(cls, url: str, clock: Clock | None = None) -> Self:
        """Open the ledger and bring an older one to the schema of this code, or create it.

        Raises UnavailableError also while another process works on an older ledger, else as ``open``.
        """
        engine = _open_sound(url)
        ledger = cls(engine, clock)
        upgrade(engine, ledger.clock.now())
        return ledger

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One serial, durable write transaction."""
        with transaction(self.engine, write=True) as connection:
            self._fault("ledger.begin")
            yield connection
            self._fault("ledger.commit")
        self._fault("ledger.committed")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view."""
        with transaction(self.engine, write=False) as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # -- how head moves ----------------------------------------------------------------------------

    def found(self, model: str, tensors: Mapping[str, str], recipe: str) -> None:
        """Append revision 0, the base weights. A second call with the same tensors changes nothing.

        Raises LedgerError if the model's chain was founded on other weights or layers.
        """
        with self.write() as connection:
            base = find_revision(connection, model, 0)
            if base is None:
                now, kind, state = self.clock.now(), RevisionKind.BASE, RevisionState.LIVE
                append_revision(connection, now, model, 0, kind, tensors, recipe, token=0, state=state)
            elif base["content"] != content_hash(tensors):
                edited = ", ".join(sorted(base["tensors"]))
                raise LedgerError(
                    f"the chain of {model!r} was founded on other weights or edited layers",
                    hint=f"it edits {edited}: set edit.recipe_overrides.layers to these, or use another "
                    "model name or data_dir for another model or recipe",
                )

    def commit(self, lease: Lease, proposal: Proposal) -> int:
        """Append the revision that a batch led to, and give every correction of the batch its state.

        Raises FencedError if a newer writer or a rollback took the token, StaleHeadError if head is another.
        """
        with self.write() as connection:
            leases.check(connection, lease)
            current = head(connection, proposal.model)
            if current["number"] != proposal.parent:
                raise StaleHeadError(f"head is {current['number']}, the edit began on {proposal.parent}")
            now, model, number = self.clock.now(), proposal.model, proposal.parent + 1
            append_revision(
                connection, now, model, number, kind=proposal.kind, tensors=proposal.tensors,
                recipe=proposal.recipe, token=lease.token, batch_id=proposal.batch_id,
                stages=proposal.stages, norms=proposal.norms,
            )  # fmt: skip
            apply_written(connection, proposal, number)
            quarantine_refused(connection, now, proposal.refused)
            insert_probes(connection, now, model, number, proposal.probes)
            count_active(connection, model, number)
            close_batch(connection, now, proposal.batch_id)
        return number

    def rollback(
        self,
        model: str,
        to: int,
        *,
        who: str,
        reason: str,
        cause: RollbackCause,
        check: BlobCheck,
        expected_head: int | None = None,
        in_transaction: Callable[[Connection, int], None] = lambda _connection, _number: None,
    ) -> int:
        """Append a revision with the content of ``to``. What it takes back becomes ``reverted``.

        The same transaction rejects every revision that head no longer holds and settles its incidents, so
        that nobody goes back for the same evidence again. An edit in progress loses its token and is planned
        again. ``in_transaction`` is called with the new number at the end. Raises NotFoundError if ``to`` is
        not there or its tensors were given up, CorruptBlobError if ``check`` refuses a blob that it needs,
        and StaleHeadError if head is not ``expected_head``.
        """
        self._require_blobs(model, to, check)
        with self.write() as connection:
            now = self.clock.now()
            current = _expected_head(connection, model, expected_head)
            target = _kept_revision(connection, model, to)
            lease = leases.overtake(connection, self.lease_clock, writer_lease(model), f"rollback by {who}")
            number = int(current["number"]) + 1
            append_revision(
                connection, now, model, number, RevisionKind.ROLLBACK, target["tensors"], target["recipe"],
                token=lease.token, state=RevisionState(target["state_before"] or target["state"]),
                norms=target["norms"], content_of=to, cause=cause, who=who, reason=reason,
            )  # fmt: skip
            taken_back, restored = bring_back(connection, model, to, number)
            count_active(connection, model, number)
            held = mark_taken_back(connection, model, number)
            settle_left_behind(connection, now, model, number, held, cause)
            details = {"head": number, "from": current["number"], "cause": cause}
            details |= {"reverted": taken_back, "restored": restored}
            audit.record(connection, now, who, "rollback", f"{model}@{to}", reason, details)
            in_transaction(connection, number)
        return number

    def _require_blobs(self, model: str, number: int, check: BlobCheck) -> None:
        """Check what a revision needs of the store, outside of any write: that reads all of it."""
        with self.read() as connection:
            needed = blobs_of(connection, _kept_revision(connection, model, number))
        try:
            check(needed)
        except StoreError as error:
            raise CorruptBlobError(
                f"revision {number} cannot come back: {error.message}",
                hint=f"go back to another revision, or {REPAIR}",
            ) from error

    def rebuild(
        self,
        model: str,
        tensors: Mapping[str, str],
        norms: Mapping[str, float],
        who: str,
        reason: str,
        expected_head: int,
    ) -> int:
        """Append a revision with head's facts in tensors that were solved anew, and return its number.

        Where the content is head's own, nothing is appended. Raises StaleHeadError if head is another.
        """
        with self.write() as connection:
            now = self.clock.now()
            current = _expected_head(connection, model, expected_head)
            if current["content"] == content_hash(tensors):
                return int(current["number"])
            lease = leases.overtake(connection, self.lease_clock, writer_lease(model), f"rebuild by {who}")
            number = int(current["number"]) + 1
            append_revision(
                connection, now, model, number, RevisionKind.REBUILD, tensors, current["recipe"],
                token=lease.token, state=RevisionState(current["state"]), norms=norms, reason=reason,
            )  # fmt: skip
            count_active(connection, model, number)
            audit.record(connection, now, who, "rebuild", f"{model}@{number - 1}", reason, {"head": number})
        return number

    def record_probes(self, model: str, number: int, probes: Sequence[ProbeRow]) -> None:
        """Add measurements of a revision, or raise NotFoundError if it does not exist."""
        with self.write() as connection:
            get_revision(connection, model, number)
            insert_probes(connection, self.clock.now(), model, number, probes)


def _expected_head(connection: Connection, model: str, expected: int | None) -> RowMapping:
    """The head of a model, or StaleHeadError if it is not the expected one."""
    current = head(connection, model)
    if expected is not None and current["number"] != expected:
        raise StaleHeadError(
            f"head is {current['number']}, not {expected}", hint="look at errata revisions, then repeat"
        )
    return current


def _kept_revision(connection: Connection, model: str, number: int) -> RowMapping:
    """A revision whose tensors are in the store, or NotFoundError."""
    row = get_revision(connection, model, number)
    if not row["kept"]:
        raise NotFoundError(
            f"the tensors of revision {number} were given up (store.keep_revisions)",
            hint="errata revisions lists those that are kept",
        )
    return row


def _open_sound(url: str) -> Engine:
    engine = open_engine(url)
    check_integrity(engine)
    return engine
