"""Try batches on a working copy of head without committing them."""

from collections.abc import Callable, Sequence

from sqlalchemy import select

from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.schema import corrections
from workers.probes import Probe, run_probes
from workers.session.plan import BatchPlan, make_plan
from workers.session.stages import Stages
from workers.session.working_copy import WorkingCopy
from workers.session.writing import EditResult, Writer

Accept = Callable[[Sequence[ProbeRow]], bool]
"""Takes the probe results of an attempt and returns whether the attempt stays in the copy."""


class Rehearsal:
    """Attempts that accumulate in the weights of a working copy and never make a revision."""

    def __init__(self, copy: WorkingCopy) -> None:
        self.copy = copy
        self._writer = Writer(copy.store, copy.editor, copy.config.watch)
        self._parent = -1
        self._plan, self._edit = BatchPlan(), EditResult()

    def begin(self) -> None:
        """Load head as it is now, for the attempts that follow."""
        self._parent = self.copy.load()
        self._plan, self._edit = BatchPlan(), EditResult()

    def measure(self, probes: Sequence[Probe]) -> list[ProbeRow]:
        """The probe results of the copy as it is now."""
        return self._measure(probes, self._plan, self._edit)

    def attempt(self, ids: Sequence[str], probes: Sequence[Probe], accept: Accept) -> bool:
        """Write corrections on top of those accepted before, and undo them unless ``accept`` returns true."""
        plan = self._plan_of(ids)
        before = self.copy.editor.snapshot()
        self.copy.editor.mark()
        try:
            edit = self._writer.write(plan, Stages(self.copy.ledger))
            so_far = self._plan.joined(plan), self._edit.joined(edit)
            accepted = accept(self._measure(probes, *so_far))
        except BaseException:
            self.copy.editor.rollback_to(before)
            raise
        if accepted:
            self._plan, self._edit = so_far
        else:
            self.copy.editor.rollback_to(before)
        return accepted

    def _plan_of(self, ids: Sequence[str]) -> BatchPlan:
        with self.copy.ledger.read() as connection:
            query = select(corrections).where(corrections.c.id.in_(ids)).order_by(corrections.c.seq)
            rows = connection.execute(query).mappings().all()
            # facts of head keep their pairs, so none is solved again
            return make_plan(connection, self.copy.model, self._parent, rows, joint=0)

    def _measure(self, probes: Sequence[Probe], plan: BatchPlan, edit: EditResult) -> list[ProbeRow]:
        context = self.copy.probe_context(plan, edit, self._parent, seed=self._parent + 1)
        return run_probes(probes, context, self.copy.ledger.clock)
