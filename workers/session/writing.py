"""Writing a plan into the weights in memory: what a guard or the verification refuses is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.core.config.watch import WatchConfig
from daemon.core.errors import EditError
from daemon.core.ledger.proposals import ProbeRow, Refusal
from daemon.core.names import QuarantineReason
from workers.editing.editor import Associations, Editor, Verdict
from workers.editing.guards import retry_without
from workers.revisions.facts import Fact
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store
from workers.session.known import split_known
from workers.session.plan import Plan
from workers.session.stages import Stages

Entry = tuple[Fact, Associations]
"""A fact and its pairs, one a layer."""


@dataclass
class Edit:
    """What one attempt did to the weights in memory."""

    written: list[Entry] = field(default_factory=list)
    mended: list[Entry] = field(default_factory=list)  # older facts with a new pair
    known: list[Fact] = field(default_factory=list)  # answered right without being written
    refused: list[Refusal] = field(default_factory=list)
    probes: list[ProbeRow] = field(default_factory=list)


class Writer:
    """Forgets, writes, guards and verifies; the caller takes the weights back when it does not commit."""

    def __init__(self, store: Store, editor: Editor, watch: WatchConfig) -> None:
        self.store, self.editor = store, editor
        self._ceilings = watch.batch_delta_ceiling, watch.delta_ceiling

    def write(self, plan: Plan, stages: Stages) -> Edit:
        """Take out what is to go, write the rest, and leave out what is refused."""
        edit = Edit()
        with stages.measure("forget"):
            self._forget_replaced(plan.removals)
        with stages.measure("verify"):
            edit.known, unknown = split_known(self.editor, plan.writes)
        with stages.measure("write"):
            subjects = {fact.subject for fact in (*unknown, *plan.removals)}
            self._write_guarded([*unknown, *(fact for fact in plan.joint if fact.subject in subjects)], edit)
            edit.known, slipped = split_known(self.editor, edit.known)  # by what was just written
            self._write_guarded(slipped, edit)
        with stages.measure("verify"):
            self._drop_unlearned(edit)
        edit.mended = [(fact, pair) for fact, pair in edit.written if fact.is_held]
        edit.written = [(fact, pair) for fact, pair in edit.written if not fact.is_held]
        return edit

    def _write_guarded(self, facts: Sequence[Fact], edit: Edit) -> None:
        """Write facts without those that a guard refuses; where it does not say which, halves find them."""
        if not facts:
            return
        before = self.editor.checkpoint()
        try:
            self._forget_replaced(facts)
            associations = self.editor.write([fact.request() for fact in facts])
            self.editor.guard(*self._ceilings)
        except EditError as error:
            self.editor.rollback_to(before)
            refused, parts = retry_without([fact.correction_id for fact in facts], error)
            for fact in (facts[row] for row in refused):
                if not fact.is_held:  # it keeps the pair that it had
                    edit.refused.append(Refusal(fact.correction_id, error.reason, error.message))
            for part in parts:
                self._write_guarded([facts[row] for row in part], edit)
            return
        edit.written += [(fact, associations.select([i])) for i, fact in enumerate(facts)]

    def _drop_unlearned(self, edit: Edit) -> None:
        """Take out facts that greedy decoding does not answer; their old value, if any, comes back.

        What was sought jointly with a refused fact carries its answer too, and is sought again without.
        """
        asked, edit.written = edit.written, []
        kept: list[Entry] = []
        while asked:
            learned, unlearned = self._verify(asked)
            edit.refused += [_not_learned(fact, verdict) for fact, verdict in unlearned]
            subjects = {fact.subject for fact, _ in unlearned}
            kept += learned
            tainted = [entry for entry in kept if entry[0].subject in subjects]
            kept = [entry for entry in kept if entry[0].subject not in subjects]
            for entry in tainted:
                self._take_out(entry)
            if any(not fact.is_held for fact, _ in tainted):  # else each has its own pair back
                self._write_guarded([fact for fact, _ in tainted], edit)
            asked, edit.written = edit.written, []
        edit.written = kept

    def _verify(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[tuple[Fact, Verdict]]]:
        """What greedy decoding answers, and the new facts that it does not; those are out of the weights."""
        verdicts = self.editor.verify([fact.request() for fact, _ in entries])
        learned, unlearned = [], []
        for entry, verdict in zip(entries, verdicts, strict=True):
            fact = entry[0]
            if verdict.ok:
                learned.append(entry)
                continue
            self._take_out(entry)
            if not fact.is_held:
                unlearned.append((fact, verdict))
        return learned, unlearned

    def _take_out(self, entry: Entry) -> None:
        """Forget a pair; the one that it replaced is back."""
        fact, pair = entry
        self.editor.forget(pair)
        if fact.replaces is not None:
            self.editor.remember(load_pairs(self.store, [fact.replaces], self.editor.layers))

    def _forget_replaced(self, facts: Sequence[Fact]) -> None:
        pairs = [fact.replaces for fact in facts if fact.replaces is not None]
        if pairs:
            self.editor.forget(load_pairs(self.store, pairs, self.editor.layers))


def _not_learned(fact: Fact, verdict: Verdict) -> Refusal:
    message = f"after the edit the model answers {verdict.answer[:60]!r}"
    if fact.prompt.startswith(fact.subject):
        message += "; subjects are learned better with some words before them"
    return Refusal(fact.correction_id, QuarantineReason.NOT_LEARNED, message)
