"""One batch from the queue into a revision: lease, head, plan, forget, write, guard, verify, probe, commit.

``Session.run`` is the worker's main path; read it from top to bottom. Whatever goes wrong before the commit,
head is as it was: the edit happens on this process's copy of the weights, which is put back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from functools import partial

from daemon.core.clock import from_text
from daemon.core.config.settings import Config
from daemon.core.errors import (
    EditError,
    ErrataError,
    FencedError,
    OutOfMemoryError,
    PromptError,
    StaleHeadError,
)
from daemon.core.fsio import FaultHook, no_fault
from daemon.core.ledger import batches
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow, Proposal, Written
from daemon.core.ledger.settlement import close_batch, settle_refused
from daemon.core.log import get_logger
from daemon.core.names import BatchState
from workers.editing.editor import Associations, Editor
from workers.probes import BaseAnswers, ProbeContext, fast, full, run_probes
from workers.probes.survey import survey
from workers.revisions.facts import Fact, active_facts, active_pairs, known_facts
from workers.revisions.loading import Loaded, load_head
from workers.revisions.pairs import save_pairs
from workers.revisions.recovery import recover
from workers.revisions.store import Store
from workers.session.known import NOTE
from workers.session.lease import LeaseKeeper, worker_name
from workers.session.plan import Plan, make_plan
from workers.session.review import choose, mend_slipped
from workers.session.stages import Stages
from workers.session.writing import Edit, Writer

log = get_logger("errata.session")
_SURVEY_PATIENCE = 3  # runs that may be due before one goes on to its end beside waiting batches
_PLANS = 5  # times a batch is planned again when rollbacks keep moving head


class Outcome(StrEnum):
    """How a delivery of a batch ended."""

    COMMITTED = "committed"
    NOTHING_TO_DO = "nothing to do"
    ALREADY_DONE = "already done"
    SPLIT = "split"


class Session:
    """The one writer of one model in this process."""

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
        self._fault = fault
        self._loaded: Loaded | None = None
        self._base = BaseAnswers(editor)
        self._writer = Writer(store, editor, config.watch)
        self._attempt_number = 0

    def run(self, batch_id: str) -> Outcome:
        """Apply a batch exactly once, however often it is delivered.

        Raises:
            LeaseHeldError: another writer is at work; the batch comes again. DiskFullError: likewise.
            Any other error counts as a failed attempt; a batch that keeps failing is split.
        """
        if not self._is_open(batch_id):
            return Outcome.ALREADY_DONE
        with LeaseKeeper(
            self.ledger, self.model, self.config.edit.lease_seconds, batch_id, str(self.editor.model.device)
        ) as keeper:
            if not self._is_open(batch_id):
                return Outcome.ALREADY_DONE
            if self._gives_up(batch_id):
                return Outcome.SPLIT
            with self._attempt(batch_id):
                return self._apply(keeper, batch_id)

    def recover(self, why: str) -> int:
        """Make head loadable again after damaged blobs were found; returns its number.

        Raises:
            NotFoundError: nothing in the store is sound.
        """
        self._loaded = None
        return recover(self.ledger, self.store, self.editor, self.model, why)

    def _apply(self, keeper: LeaseKeeper, batch_id: str) -> Outcome:
        """Plan, edit and commit; again when a rollback moved head meanwhile."""
        for _ in range(_PLANS):
            try:
                return self._edit_once(keeper, batch_id)
            except (StaleHeadError, FencedError) as error:
                log.info("planned again", batch=batch_id, why=str(error))
                keeper.retake()
        raise StaleHeadError(f"head moved {_PLANS} times under batch {batch_id}")

    def _edit_once(self, keeper: LeaseKeeper, batch_id: str) -> Outcome:
        """One plan on one head."""
        self.store.require_space(self.config.store.reserve_bytes)
        stages = Stages(self.ledger)
        with stages.measure("load"):
            parent = self._load()
        plan = self._plan(batch_id, parent)
        if plan.empty:
            with self.ledger.write() as connection:
                close_batch(connection, self.ledger.clock.now(), batch_id)
            return Outcome.NOTHING_TO_DO
        before = self.editor.checkpoint()
        try:
            edit = self._writer.write(plan, stages)
            self._fault("session.written")
            if not edit.written and not edit.known and not plan.removals:
                self.editor.rollback_to(before)
                return self._refuse_all(batch_id, edit)
            with stages.measure("review"):
                self._review(plan, edit, parent)
            with stages.measure("probe"):
                edit.probes = self._probe(batch_id, plan, edit, parent)
            with stages.measure("save"):
                proposal = self._proposal(batch_id, parent, plan, edit, stages)
            self._fault("session.saved")
            number = self.ledger.commit(keeper.lease, proposal)
        except BaseException:
            self.editor.rollback_to(before)
            raise
        self._loaded = Loaded(number, proposal.tensors)
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

    def _refuse_all(self, batch_id: str, edit: Edit) -> Outcome:
        """Close a batch of which nothing was left; the weights are as they were, so no revision is made."""
        with self.ledger.write() as connection:
            now = self.ledger.clock.now()
            settle_refused(connection, now, edit.refused)
            close_batch(connection, now, batch_id)
        log.warning("batch refused", batch=batch_id, refused=len(edit.refused))
        return Outcome.NOTHING_TO_DO

    # -- before the edit ------------------------------------------------------------------------------

    def _is_open(self, batch_id: str) -> bool:
        with self.ledger.read() as connection:
            batch = batches.get(connection, batch_id)
        return batch is not None and batch["state"] in (BatchState.OPEN, BatchState.SENT)

    def _gives_up(self, batch_id: str) -> bool:
        """Split a batch that was started too often; its halves go through the outbox."""
        with self.ledger.write() as connection:
            starts = batches.crashed_attempts(connection, batch_id)
            if starts < self.config.edit.max_attempts:
                return False
            why = f"its batch failed {starts} times"
            halves = batches.split_or_refuse(connection, self.ledger.clock.now(), batch_id, why)
        log.warning("batch split", batch=batch_id, starts=starts, halves=halves)
        return True

    @contextmanager
    def _attempt(self, batch_id: str) -> Iterator[None]:
        """Count a start before the work, and say how it ended; a killed process says nothing."""
        with self.ledger.write() as connection:
            number = batches.begin_attempt(connection, self.ledger.clock.now(), batch_id, worker_name())
        self._attempt_number = number
        self._fault("session.attempt")
        outcome = "ended"
        try:
            yield
        except ErrataError as error:
            blamed = isinstance(error, (EditError, OutOfMemoryError, PromptError))
            outcome = f"{'failed' if blamed else 'later'}: {error}"
            raise
        except Exception as error:
            outcome = f"failed: {type(error).__name__}: {error}"
            raise
        finally:
            with self.ledger.write() as connection:
                batches.end_attempt(connection, self.ledger.clock.now(), batch_id, number, outcome)

    def _load(self) -> int:
        """Bring the editor to head; a warm worker that wrote head itself has nothing to do."""
        with self.ledger.read() as connection:
            current = head(connection, self.model)
            pairs = active_pairs(connection, self.model, current["number"])
        if self._loaded is None or self._loaded.number != current["number"]:
            self._loaded = None
            self._loaded = load_head(self.store, self.editor, current, pairs)
        return int(current["number"])

    def _plan(self, batch_id: str, parent: int) -> Plan:
        with self.ledger.read() as connection:
            waiting = batches.waiting(connection, batch_id)
            return make_plan(connection, self.model, parent, waiting, self.config.edit.joint)

    # -- the edit -------------------------------------------------------------------------------------

    def _review(self, plan: Plan, edit: Edit, parent: int) -> None:
        """Mend older facts that have slipped; where a guard refuses that, they stay as they were."""
        fresh = {fact.correction_id for fact, _ in edit.mended}
        older = [fact for fact in self._older(plan, edit, parent) if fact.correction_id not in fresh]
        asked = choose(older, self.config.edit.review, turn=parent)
        if not asked:
            return
        before = self.editor.snapshot()
        try:
            mended = mend_slipped(self.store, self.editor, asked)
            self.editor.guard(self.config.watch.batch_delta_ceiling, self.config.watch.delta_ceiling)
        except EditError as error:
            self.editor.rollback_to(before)
            log.warning("not mended", why=str(error))
            return
        edit.mended += mended

    # -- after the edit -------------------------------------------------------------------------------

    def _probe(self, batch_id: str, plan: Plan, edit: Edit, parent: int) -> list[ProbeRow]:
        context = self._context(plan, edit, parent)
        with self.ledger.read() as connection:
            fatal = batches.fatal_probes(connection, batch_id)
        begins = partial(self._note_probe, batch_id)
        probes = fast(self.config.watch)
        return run_probes(probes, context, self.ledger.clock, begins=begins, fatal=fatal)

    def _context(self, plan: Plan, edit: Edit, parent: int) -> ProbeContext:
        """What the weights should hold now."""
        older = self._older(plan, edit, parent)
        with self.ledger.read() as connection:
            touched = {fact.fact_id for fact in (*plan.writes, *plan.removals)}
            older += [f for f in known_facts(connection, self.model, parent) if f.fact_id not in touched]
        written = [*(fact for fact, _ in edit.written), *edit.known]
        return ProbeContext(self.editor, written, older, self.config.watch, self._base, seed=parent + 1)

    def _note_probe(self, batch_id: str, probe: str) -> None:
        with self.ledger.write() as connection:
            batches.note_probe(connection, batch_id, self._attempt_number, probe)

    def survey(self) -> int:
        """Run all probes on head, the slow ones included, and add the results; returns its number."""
        number = self._load()
        with self.ledger.read() as connection:
            older = active_facts(connection, active_pairs(connection, self.model, number))
            older += known_facts(connection, self.model, number)
        context = ProbeContext(self.editor, [], older, self.config.watch, self._base, seed=number)
        survey(self.ledger, self.model, number, full(self.config.watch), context, self._gives_way)
        return number

    def _gives_way(self) -> bool:
        """Whether a survey lets a batch go first: not for ever, and not where revisions wait for surveys."""
        every = timedelta(seconds=self.config.watch.full_seconds)
        with self.ledger.read() as connection:
            if self.config.watch.full_before_live or not batches.are_open(connection, self.model):
                return False
            last = batches.last_survey(connection, self.model)
        return self.ledger.clock.now() - from_text(last) < _SURVEY_PATIENCE * every

    def _older(self, plan: Plan, edit: Edit, parent: int) -> list[Fact]:
        """The facts that were written before this batch and are not replaced by it."""
        new = [fact for fact, _ in edit.written]
        gone = {f.replaces.correction_id for f in (*new, *plan.removals) if f.replaces is not None}
        with self.ledger.read() as connection:
            pairs = [p for p in active_pairs(connection, self.model, parent) if p.correction_id not in gone]
            return active_facts(connection, pairs)

    def _proposal(self, batch_id: str, parent: int, plan: Plan, edit: Edit, stages: Stages) -> Proposal:
        """Write the blobs, then describe the revision that they make."""
        tensors = {name: self.store.put({name: tensor}) for name, tensor in self.editor.published().items()}
        held = [*edit.written, *edit.mended]
        blob = save_pairs(self.store, Associations.concat([pair for _, pair in held])) if held else None
        written = [Written(fact.correction_id, row) for row, (fact, _) in enumerate(held)]
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
