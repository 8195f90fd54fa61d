"""Write a plan into the weights in memory and leave out the facts that are refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.core.config.watch import WatchConfig
from daemon.core.errors import EditError
from daemon.core.ledger.proposals import ProbeRow, Refusal
from daemon.core.names import QuarantineReason
from workers.editing.editor import Associations, Editor, Reading
from workers.editing.guards import retry_without
from workers.revisions.facts import Fact
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store
from workers.session.known import split_known
from workers.session.plan import BatchPlan
from workers.session.stages import Stages

WrittenFact = tuple[Fact, Associations]
"""A fact and its associations: one pair of key and value for each edited layer."""


@dataclass
class EditResult:
    """What one attempt changed in the weights in memory."""

    written: list[WrittenFact] = field(default_factory=list)
    mended: list[WrittenFact] = field(default_factory=list)  # older facts with a new pair
    known: list[Fact] = field(default_factory=list)  # answered correctly without being written
    refused: list[Refusal] = field(default_factory=list)
    probes: list[ProbeRow] = field(default_factory=list)

    def joined(self, other: "EditResult") -> "EditResult":
        """The written and known facts of both."""
        return EditResult([*self.written, *other.written], known=[*self.known, *other.known])


class Writer:
    """Forgets, writes, guards and verifies facts.

    The caller restores the weights where it does not commit.
    """

    def __init__(self, store: Store, editor: Editor, watch: WatchConfig) -> None:
        self.store, self.editor = store, editor
        self._ceilings = watch.batch_delta_ceiling, watch.delta_ceiling

    def write(self, plan: BatchPlan, stages: Stages) -> EditResult:
        """Remove, write and verify the facts of a plan, and leave out those that are refused."""
        edit = EditResult()
        with stages.measure("forget"):
            self._forget_replaced(plan.removals)
        with stages.measure("verify"):
            edit.known, unknown = split_known(self.editor, plan.writes)
        with stages.measure("write"):
            subjects = {fact.subject for fact in (*unknown, *plan.removals)}
            self._write_guarded([*unknown, *(fact for fact in plan.joint if fact.subject in subjects)], edit)
            # the facts just written may have changed answers that were right before
            edit.known, slipped = split_known(self.editor, edit.known)
            self._write_guarded(slipped, edit)
        with stages.measure("verify"):
            self._drop_unlearned(edit)
        edit.mended = [(fact, pair) for fact, pair in edit.written if fact.is_in_weights]
        edit.written = [(fact, pair) for fact, pair in edit.written if not fact.is_in_weights]
        return edit

    def _write_guarded(self, facts: Sequence[Fact], edit: EditResult) -> None:
        """Write facts except those that a guard refuses.

        A refusal that names no fact splits them in halves, until the culprits are alone.
        """
        if not facts:
            return
        before = self.editor.snapshot()
        self.editor.mark()
        try:
            self._forget_replaced(facts)
            associations = self.editor.write([fact.request() for fact in facts])
            self.editor.guard(*self._ceilings)
        except EditError as error:
            self.editor.rollback_to(before)
            refused, parts = retry_without([fact.correction_id for fact in facts], error)
            for fact in (facts[row] for row in refused):
                if not fact.is_in_weights:  # it keeps its older pair
                    edit.refused.append(Refusal(fact.correction_id, error.reason, error.message))
            for part in parts:
                self._write_guarded([facts[row] for row in part], edit)
            return
        edit.written += [(fact, associations.select([i])) for i, fact in enumerate(facts)]

    def _drop_unlearned(self, edit: EditResult) -> None:
        """Remove facts that greedy decoding does not answer, and restore their older pairs.

        The values of facts solved jointly with a refused one contain its answer, so they are written again.
        """
        asked, edit.written = edit.written, []
        kept: list[WrittenFact] = []
        while asked:
            learned, unlearned = self._verify(asked)
            edit.refused += [_not_learned(fact, reading) for fact, reading in unlearned]
            subjects = {fact.subject for fact, _ in unlearned}
            kept += learned
            tainted = [entry for entry in kept if entry[0].subject in subjects]
            kept = [entry for entry in kept if entry[0].subject not in subjects]
            for entry in tainted:
                self._take_out(entry)
            if any(not fact.is_in_weights for fact, _ in tainted):  # else all have their older pair back
                self._write_guarded([fact for fact, _ in tainted], edit)
            asked, edit.written = edit.written, []
        edit.written = kept

    def _verify(self, entries: Sequence[WrittenFact]) -> tuple[list[WrittenFact], list[tuple[Fact, Reading]]]:
        """Split entries into those that greedy decoding answers and new facts that it does not answer.

        The latter are removed from the weights.
        """
        readings = self.editor.verify([fact.request() for fact, _ in entries])
        learned, unlearned = [], []
        for entry, reading in zip(entries, readings, strict=True):
            fact = entry[0]
            if reading.ok:
                learned.append(entry)
                continue
            self._take_out(entry)
            if not fact.is_in_weights:
                unlearned.append((fact, reading))
        return learned, unlearned

    def _take_out(self, entry: WrittenFact) -> None:
        """Forget a pair and restore the one that it replaced."""
        fact, pair = entry
        self.editor.forget(pair)
        if fact.replaces is not None:
            self.editor.remember(load_pairs(self.store, [fact.replaces], self.editor.layers))

    def _forget_replaced(self, facts: Sequence[Fact]) -> None:
        pairs = [fact.replaces for fact in facts if fact.replaces is not None]
        if pairs:
            self.editor.forget(load_pairs(self.store, pairs, self.editor.layers))


def _not_learned(fact: Fact, reading: Reading) -> Refusal:
    message = f"after the edit the model answers {reading.answer[:60]!r}"
    if fact.prompt.startswith(fact.subject):
        message += "; a prompt with some words before the subject is learned better"
    return Refusal(fact.correction_id, QuarantineReason.NOT_LEARNED, message)
