"""Turn one batch into a revision: lease, load head, plan, forget, write, guard, verify, probe, commit.

``Session.run`` is the worker's main path; read it from top to bottom. An error before the commit leaves head
as it was: the edit is made on this process's copy of the weights, which is then restored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from functools import partial

from sqlalchemy import RowMapping

from daemon.core.clock import from_text
from daemon.core.config.settings import Config
from daemon.core.errors import (
    EditError,
    ErrataError,
    FencedError,
    OutOfMemoryError,
    ProbeError,
    PromptError,
    StaleHeadError,
)
from daemon.core.fsio import FaultHook, no_fault
from daemon.core.ledger import batches
from daemon.core.ledger.attempts import (
    begin_attempt,
    begin_probe,
    count_failures,
    end_attempt,
    fatal_probes,
)
from daemon.core.ledger.healing import fail_healing, give_up
from daemon.core.ledger.heartbeats import process_name
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.probe_results import last_survey
from daemon.core.ledger.proposals import ProbeRow, Proposal, Written
from daemon.core.ledger.settlement import quarantine_refused
from daemon.core.log import get_logger
from daemon.core.names import AttemptOutcome, BatchState
from daemon.core.space import required_bytes
from workers.editing.editor import Associations, Editor
from workers.probes import fast, full, run_probes
from workers.probes.survey import survey
from workers.revisions.loading import Loaded
from workers.revisions.pairs import save_pairs
from workers.revisions.recovery import recover
from workers.revisions.store import Store
from workers.session.healing import heal
from workers.session.known import NOTE
from workers.session.lease import LeaseKeeper
from workers.session.plan import BatchPlan, make_plan
from workers.session.review import choose, mend_slipped
from workers.session.stages import Stages
from workers.session.working_copy import WorkingCopy
from workers.session.writing import EditResult, Writer

log = get_logger("errata.session")
_SURVEY_PATIENCE = 3  # survey periods for which surveys yield to waiting batches; then one must end
_PLANS = 5  # attempts while rollbacks keep moving head; after these the batch is sent again later


class Outcome(StrEnum):
    """How one run of a batch ended."""

    COMMITTED = "committed"
    NOTHING_TO_DO = "nothing to do"
    ALREADY_DONE = "already done"
    SPLIT = "split"
    BISECTED = "bisected"


class Session:
    """The only writer of a model in this process."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        editor: Editor,
        config: Config,
        *,
        fault: FaultHook = no_fault,
    ) -> None:
        self.ledger, self.store, self.editor, self.config = ledger, store, editor, config
        self.model = config.model.name
        self.copy = WorkingCopy(ledger, store, editor, config)
        self._fault = fault
        self._writer = Writer(store, editor, config.watch)
        self._attempt_number = 0

    def run(self, batch_id: str) -> Outcome:
        """Apply a batch exactly once, however often its id is delivered.

        Raises:
            LeaseHeldError, DiskFullError: another writer has the lease, or the disk is full. The batch is
            sent again later. Any other error counts as a failed attempt; after too many the batch is split.
        """
        if self._open_batch(batch_id) is None:
            return Outcome.ALREADY_DONE
        with LeaseKeeper(self.ledger, self.model, self.config.edit.lease_seconds, batch_id) as keeper:
            if (batch := self._open_batch(batch_id)) is None:
                return Outcome.ALREADY_DONE
            if self._gives_up(batch):
                return Outcome.SPLIT
            with self._attempt(batch_id):
                return self._apply(keeper, batch)

    def recover(self, why: str) -> int:
        """Make head loadable again after damaged blobs were found, and return its number.

        Raises:
            NotFoundError: no revision in the store is sound.
        """
        self.copy.loaded = None
        return recover(self.ledger, self.store, self.editor, self.model, why)

    def _apply(self, keeper: LeaseKeeper, batch: RowMapping) -> Outcome:
        """Plan, edit and commit, or bisect, and start again where a rollback moved head meanwhile."""
        batch_id = batch["id"]
        for _ in range(_PLANS):
            try:
                if batch["rollback"] is not None:
                    return self._heal(keeper, batch)
                return self._edit_once(keeper, batch_id)
            except (StaleHeadError, FencedError) as error:
                log.info("planned again", batch=batch_id, why=str(error))
                keeper.take()
        raise StaleHeadError(f"head moved {_PLANS} times under batch {batch_id}")

    def _heal(self, keeper: LeaseKeeper, batch: RowMapping) -> Outcome:
        """Bisect a portion of what a rollback took back. Where it cannot be measured, that ends in time."""
        try:
            return Outcome.BISECTED if heal(self.copy, keeper, batch) else Outcome.NOTHING_TO_DO
        except ProbeError as error:
            if self._attempt_number < self.config.edit.max_attempts:
                raise
            with self.ledger.write() as connection:
                fail_healing(connection, self.ledger.clock.now(), batch, str(error))
            return Outcome.NOTHING_TO_DO

    def _edit_once(self, keeper: LeaseKeeper, batch_id: str) -> Outcome:
        """Plan, edit and commit once, on head as it is now."""
        with self.ledger.read() as connection:
            self.store.require_space(required_bytes(connection, self.config))
        stages = Stages(self.ledger)
        with stages.measure("load"):
            parent = self.copy.load()
        plan = self._plan(batch_id, parent)
        if plan.empty:
            with self.ledger.write() as connection:
                batches.close_batch(connection, self.ledger.clock.now(), batch_id)
            return Outcome.NOTHING_TO_DO
        before = self.editor.snapshot()
        self.editor.mark()
        try:
            edit = self._writer.write(plan, stages)
            self._fault("session.written")
            with stages.measure("review"):
                self._review(plan, edit, parent)
            with stages.measure("verify"):
                self._writer.settle(edit)  # the review may have changed the weights
            if _changes_nothing(plan, edit):
                self.editor.rollback_to(before)
                return self._refuse_all(batch_id, edit)
            with stages.measure("probe"):
                edit.probes = self._probe(batch_id, plan, edit, parent)
            with stages.measure("save"):
                proposal = self._proposal(batch_id, parent, plan, edit, stages)
            self._fault("session.saved")
            number = self.ledger.commit(keeper.lease, proposal)
        except BaseException:
            self.editor.rollback_to(before)
            raise
        self.copy.loaded = Loaded(number, proposal.tensors)
        log.info(
            "committed",
            batch=batch_id,
            revision=number,
            facts=len(edit.written),
            mended=len(edit.mended),
            known=len(edit.known),
            refused=len(edit.refused),
        )
        self._fault("session.committed")
        return Outcome.COMMITTED

    def _refuse_all(self, batch_id: str, edit: EditResult) -> Outcome:
        """Close a batch whose facts were all refused, without a revision."""
        with self.ledger.write() as connection:
            now = self.ledger.clock.now()
            quarantine_refused(connection, now, edit.refused)
            batches.close_batch(connection, now, batch_id)
        log.warning("batch refused", batch=batch_id, refused=len(edit.refused))
        return Outcome.NOTHING_TO_DO

    # -- before the edit ------------------------------------------------------------------------------

    def _open_batch(self, batch_id: str) -> RowMapping | None:
        """The batch, unless it is done."""
        with self.ledger.read() as connection:
            batch = batches.get(connection, batch_id)
        is_open = batch is not None and batch["state"] in (BatchState.OPEN, BatchState.SENT)
        return batch if is_open else None

    def _gives_up(self, batch: RowMapping) -> bool:
        """Split a batch that was started too often, and send its halves as batches of their own."""
        batch_id = batch["id"]
        with self.ledger.write() as connection:
            starts = count_failures(connection, batch_id)
            if starts < self.config.edit.max_attempts:
                return False
            now, why = self.ledger.clock.now(), f"its batch failed {starts} times"
            if batch["rollback"] is None:
                halves = batches.split_or_refuse(connection, now, batch_id, why)
            else:
                halves = give_up(connection, now, batch, why, self.config.edit.batch_size)
        log.warning("batch split", batch=batch_id, starts=starts, halves=halves)
        return True

    @contextmanager
    def _attempt(self, batch_id: str) -> Iterator[None]:
        """Record a start before the work and its outcome after it.

        A process that is killed leaves no outcome.
        """
        with self.ledger.write() as connection:
            number = begin_attempt(connection, self.ledger.clock.now(), batch_id, process_name())
        self._attempt_number = number
        self._fault("session.attempt")
        outcome, message = AttemptOutcome.ENDED, ""
        try:
            yield
        except ErrataError as error:
            blamed = isinstance(error, (EditError, OutOfMemoryError, PromptError))
            outcome, message = AttemptOutcome.FAILED if blamed else AttemptOutcome.LATER, str(error)
            raise
        except KeyboardInterrupt:
            outcome, message = AttemptOutcome.LATER, "the worker was asked to end"
            raise
        except Exception as error:
            outcome, message = AttemptOutcome.FAILED, f"{type(error).__name__}: {error}"
            raise
        finally:
            with self.ledger.write() as connection:
                end_attempt(connection, self.ledger.clock.now(), batch_id, number, outcome, message)

    def _plan(self, batch_id: str, parent: int) -> BatchPlan:
        with self.ledger.read() as connection:
            waiting = batches.waiting(connection, batch_id)
            return make_plan(connection, self.model, parent, waiting, self.config.edit.joint)

    # -- the edit -------------------------------------------------------------------------------------

    def _review(self, plan: BatchPlan, edit: EditResult, parent: int) -> None:
        """Write older facts anew that are no longer answered, unless a guard refuses the new weights."""
        if _changes_nothing(plan, edit):
            return
        fresh = {fact.correction_id for fact in (*(fact for fact, _ in edit.mended), *edit.restored)}
        older = [
            fact for fact in self.copy.older_facts(plan, edit, parent) if fact.correction_id not in fresh
        ]
        reviewed = choose(older, self.config.edit.review, turn=parent)
        if not reviewed:
            return
        before = self.editor.snapshot()
        try:
            mended = mend_slipped(self.store, self.editor, reviewed)
            self.editor.guard(self.config.watch.batch_delta_ceiling, self.config.watch.delta_ceiling)
        except EditError as error:
            self.editor.rollback_to(before)
            log.warning("not mended", why=str(error))
            return
        edit.pairs += mended

    # -- after the edit -------------------------------------------------------------------------------

    def _probe(self, batch_id: str, plan: BatchPlan, edit: EditResult, parent: int) -> list[ProbeRow]:
        context = self.copy.probe_context(plan, edit, parent, seed=parent + 1)
        with self.ledger.read() as connection:
            fatal = fatal_probes(connection, batch_id)
        begins = partial(self._note_probe, batch_id)
        probes = fast(self.config.watch)
        return run_probes(probes, context, self.ledger.clock, begins=begins, fatal=fatal)

    def _note_probe(self, batch_id: str, probe: str) -> None:
        with self.ledger.write() as connection:
            begin_probe(connection, batch_id, self._attempt_number, probe)

    def survey(self) -> int:
        """Run all probes on head, slow ones too, record the results and return head's number."""
        number = self.copy.load()
        context = self.copy.probe_context(BatchPlan(), EditResult(), number, seed=number)
        survey(self.ledger, self.model, number, full(self.config.watch), context, self._yields)
        return number

    def _yields(self) -> bool:
        """Whether a survey stops for a waiting batch.

        It does not where the newest survey is too old, or where revisions wait for surveys to become live.
        """
        every = timedelta(seconds=self.config.watch.full_seconds)
        with self.ledger.read() as connection:
            if self.config.watch.full_before_live or not batches.are_open(connection, self.model):
                return False
            last = last_survey(connection, self.model)
        return self.ledger.clock.now() - from_text(last) < _SURVEY_PATIENCE * every

    def _proposal(
        self, batch_id: str, parent: int, plan: BatchPlan, edit: EditResult, stages: Stages
    ) -> Proposal:
        """Write the blobs of a new revision and describe it for the ledger."""
        tensors = {name: self.store.put({name: tensor}) for name, tensor in self.editor.published().items()}
        paired = [*edit.written, *edit.mended]
        blob = save_pairs(self.store, Associations.concat([pair for _, pair in paired])) if paired else None
        written = [Written(fact.correction_id, row) for row, (fact, _) in enumerate(paired)]
        written += [Written(fact.correction_id, None) for fact in plan.removals]
        written += [Written(fact.correction_id, None, NOTE) for fact in edit.known]
        norms = {str(layer): total for layer, (_, total) in self.editor.delta_norms().items()}
        return Proposal(
            model=self.model,
            parent=parent,
            batch_id=batch_id,
            recipe=self.editor.recipe.name,
            tensors=tensors,
            blob=blob,
            written=written,
            refused=edit.refused,
            probes=edit.probes,
            stages=stages.seconds,
            norms=norms,
        )


def _changes_nothing(plan: BatchPlan, edit: EditResult) -> bool:
    """Whether all facts of a batch were refused and none is taken out."""
    return not edit.written and not edit.known and not plan.removals
