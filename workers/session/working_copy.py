"""The weights of head in this process, which a session edits and on which a rehearsal tries corrections."""

from daemon.core.config.settings import Config
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from workers.editing.editor import Editor
from workers.probes import BaseAnswers, ProbeContext
from workers.revisions.facts import Fact, active_facts, active_pairs, known_facts
from workers.revisions.loading import Loaded, load_head
from workers.revisions.store import Store
from workers.session.plan import BatchPlan
from workers.session.writing import EditResult


class WorkingCopy:
    """An editor that is brought to head, and the facts that its weights should then know."""

    def __init__(self, ledger: Ledger, store: Store, editor: Editor, config: Config) -> None:
        self.ledger, self.store, self.editor, self.config = ledger, store, editor, config
        self.model = config.model.name
        self.loaded: Loaded | None = None
        self._base = BaseAnswers(editor)

    def load(self) -> int:
        """Bring the editor to head, unless it is there already, and return head's number.

        Raises:
            CorruptBlobError, StoreError: a blob of head is damaged or missing.
        """
        with self.ledger.read() as connection:
            current = head(connection, self.model)
            pairs = active_pairs(connection, self.model, current["number"])
        if self.loaded is None or self.loaded.number != current["number"]:
            self.loaded = None
            self.loaded = load_head(self.store, self.editor, current, pairs)
        return int(current["number"])

    def older_facts(self, plan: BatchPlan, edit: EditResult, parent: int) -> list[Fact]:
        """The facts with a pair in revision ``parent`` that this edit neither replaced nor removed."""
        new = [fact for fact, _ in edit.written]
        gone = {f.replaces.correction_id for f in (*new, *plan.removals) if f.replaces is not None}
        with self.ledger.read() as connection:
            pairs = [p for p in active_pairs(connection, self.model, parent) if p.correction_id not in gone]
            return active_facts(connection, pairs)

    def probe_context(self, plan: BatchPlan, edit: EditResult, parent: int, seed: int) -> ProbeContext:
        """The facts to probe after ``edit`` on revision ``parent``, of which ``seed`` draws the samples."""
        older = self.older_facts(plan, edit, parent)
        with self.ledger.read() as connection:
            touched = {fact.fact_id for fact in (*plan.writes, *plan.removals)}
            older += [f for f in known_facts(connection, self.model, parent) if f.fact_id not in touched]
        written = [*(fact for fact, _ in edit.written), *edit.known]
        return ProbeContext(self.editor, written, older, self.config.watch, self._base, seed)
