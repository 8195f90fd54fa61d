"""Write a plan into the weights in memory and leave out the facts that are refused."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch

from daemon.core.config.watch import WatchConfig
from daemon.core.errors import EditError
from daemon.core.ledger.proposals import ProbeRow, Refusal
from daemon.core.log import get_logger
from daemon.core.names import QuarantineReason
from workers.editing.editor import Associations, Editor, Reading
from workers.editing.guards import retry_without
from workers.revisions.facts import Fact
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store
from workers.session.known import split_known
from workers.session.plan import BatchPlan
from workers.session.stages import Stages

log = get_logger("errata.session")
_MENDING_TURNS = 4  # turns in which facts that are lost are mended; after these they are dropped
WrittenFact = tuple[Fact, Associations]
"""A fact and its associations: one pair of key and value for each edited layer."""


@dataclass
class EditResult:
    """What one attempt changed in the weights in memory, and which of its facts were answered."""

    pairs: list[WrittenFact] = field(default_factory=list)  # in the weights: new facts, older ones anew
    known: list[Fact] = field(default_factory=list)  # answered correctly without being written
    restored: list[Fact] = field(default_factory=list)  # older facts that have their older pair again
    refused: list[Refusal] = field(default_factory=list)
    probes: list[ProbeRow] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)  # were right when they were last asked
    asked: Mapping[str, torch.Tensor] = field(default_factory=dict)  # the weights on which all were right

    @property
    def written(self) -> list[WrittenFact]:
        """The new facts that are in the weights."""
        return [(fact, pair) for fact, pair in self.pairs if not fact.is_in_weights]

    @property
    def mended(self) -> list[WrittenFact]:
        """The older facts with a new pair."""
        return [(fact, pair) for fact, pair in self.pairs if fact.is_in_weights]

    def joined(self, other: "EditResult") -> "EditResult":
        """The written and known facts of both."""
        return EditResult([*self.pairs, *other.pairs], known=[*self.known, *other.known])


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
            edit.answered |= {fact.correction_id for fact in edit.known}
        with stages.measure("write"):
            subjects = {fact.subject for fact in (*unknown, *plan.removals)}
            self._write_guarded([*unknown, *(fact for fact in plan.joint if fact.subject in subjects)], edit)
        with stages.measure("verify"):
            self.settle(edit)
        return edit

    def settle(self, edit: EditResult) -> None:
        """Ask every fact that stays on the weights as they are now, until all of them are answered.

        What is not answered changes the weights: it is mended or dropped, and then all are asked again. Facts
        are mended for ``_MENDING_TURNS`` only, and dropping ends when no fact is left, so this comes to an
        end. Nothing is asked where the weights are still those on which all were answered.
        """
        turn = 0
        while not _are_equal(edit.asked, shown := self.editor.published()):
            failed = self._ask(edit)
            lost = [one for one in failed if one in edit.answered] if turn < _MENDING_TURNS else []
            if not failed:
                edit.asked = shown
            elif len(lost) < len(failed):  # what was mended for nothing, or would be lost again, goes first
                self._drop({one: reading for one, reading in failed.items() if one not in lost}, edit)
            else:
                self._mend(set(lost), edit)
            turn += 1

    def _ask(self, edit: EditResult) -> dict[str, Reading]:
        """Ask all facts that stay, and return the readings of those that greedy decoding does not answer."""
        facts = [*(fact for fact, _ in edit.pairs), *edit.known, *edit.restored]
        readings = self.editor.verify([fact.request() for fact in facts])
        by_id = {fact.correction_id: reading for fact, reading in zip(facts, readings, strict=True)}
        edit.answered |= {one for one, reading in by_id.items() if reading.ok}
        return {one: reading for one, reading in by_id.items() if not reading.ok}

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
                if fact.is_in_weights:  # it keeps its older pair
                    self._note_restored([fact], edit)
                else:
                    edit.refused.append(Refusal(fact.correction_id, error.reason, error.message))
            for part in parts:
                self._write_guarded([facts[row] for row in part], edit)
            return
        edit.pairs += [(fact, associations.select([i])) for i, fact in enumerate(facts)]

    def _drop(self, failed: Mapping[str, Reading], edit: EditResult) -> None:
        """Refuse new facts that are not answered, and give older ones the pair back that they had.

        The values of facts solved jointly with a refused one contain its answer, so they are written again.
        """
        gone = [entry for entry in edit.pairs if entry[0].correction_id in failed]
        refused = [fact for fact, _ in gone if not fact.is_in_weights]
        subjects = {fact.subject for fact in refused}
        refused += [fact for fact in edit.known if fact.correction_id in failed]
        edit.refused += [_not_learned(fact, failed[fact.correction_id]) for fact in refused]
        given_up = [fact.correction_id for fact in edit.restored if fact.correction_id in failed]
        if given_up:
            log.warning("older facts slipped", facts=given_up)
        stays = [entry for entry in edit.pairs if entry[0].correction_id not in failed]
        tainted = [entry for entry in stays if entry[0].subject in subjects]
        edit.pairs = [entry for entry in stays if entry[0].subject not in subjects]
        edit.known = [fact for fact in edit.known if fact.correction_id not in failed]
        edit.restored = [fact for fact in edit.restored if fact.correction_id not in failed]
        for entry in (*gone, *tainted):
            self._take_out(entry)
        again = [fact for fact, _ in tainted]
        edit.answered -= {fact.correction_id for fact in again}
        if any(not fact.is_in_weights for fact in again):
            self._write_guarded(again, edit)
            again = []
        self._note_restored([*(fact for fact, _ in gone if fact.is_in_weights), *again], edit)

    def _mend(self, lost: Set[str], edit: EditResult) -> None:
        """Repair facts that were answered before other facts were dropped or mended.

        Whichever is not answered after this is dropped.
        """
        edit.answered -= lost
        slipped = [fact for fact in edit.known if fact.correction_id in lost]
        edit.known = [fact for fact in edit.known if fact.correction_id not in lost]
        entries = [entry for entry in edit.pairs if entry[0].correction_id in lost]
        older = [fact for fact in edit.restored if fact.correction_id in lost]
        entries += [(fact, self._stored_pair(fact)) for fact in older]
        if entries:
            self._mend_pairs(entries, edit)
        self._write_guarded(slipped, edit)

    def _mend_pairs(self, entries: Sequence[WrittenFact], edit: EditResult) -> None:
        """Mend facts that have a pair in the weights, unless a guard refuses the new weights."""
        before = self.editor.snapshot()
        try:
            facts = [fact for fact, _ in entries]
            pairs = Associations.concat([pair for _, pair in entries])
            mended = self.editor.mend([fact.request() for fact in facts], pairs)
            self.editor.guard(*self._ceilings)
        except EditError as error:
            self.editor.rollback_to(before)
            log.warning("not mended", why=str(error))
            return
        ids = {fact.correction_id for fact in facts}
        edit.restored = [fact for fact in edit.restored if fact.correction_id not in ids]
        edit.pairs = [entry for entry in edit.pairs if entry[0].correction_id not in ids]
        edit.pairs += [(fact, mended.select([row])) for row, fact in enumerate(facts)]

    def _note_restored(self, facts: Sequence[Fact], edit: EditResult) -> None:
        """Ask older facts like the others from now on: with their older pair they were answered."""
        edit.restored += facts
        edit.answered |= {fact.correction_id for fact in facts}

    def _stored_pair(self, fact: Fact) -> Associations:
        return load_pairs(self.store, [fact.replaces] if fact.replaces else [], self.editor.layers)

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


def _are_equal(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    """Whether both hold the same tensors, bit for bit."""
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def _not_learned(fact: Fact, reading: Reading) -> Refusal:
    message = f"after the edit the model answers {reading.answer[:60]!r}"
    if fact.prompt.startswith(fact.subject):
        message += "; a prompt with some words before the subject is learned better"
    return Refusal(fact.correction_id, QuarantineReason.NOT_LEARNED, message)
