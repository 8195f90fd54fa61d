"""A copy of head on which batches are tried and never committed."""

from collections.abc import Callable, Sequence

from sqlalchemy import select

from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.schema import corrections
from workers.probes import Probe, run_probes
from workers.session.plan import Plan, make_plan
from workers.session.session import Session
from workers.session.stages import Stages
from workers.session.writing import Edit

Accept = Callable[[Sequence[ProbeRow]], bool]
"""Told what was measured; whether the attempt stays in the copy."""


class Rehearsal(Session):
    """A session that writes and measures as any other does; what it tried lives in its own weights alone."""

    def begin(self) -> None:
        """Take head as it is now; what is tried from here on is tried on that."""
        self._parent = self._load()
        self._plan_so_far, self._edit_so_far = Plan(), Edit()

    def measure(self, probes: Sequence[Probe]) -> list[ProbeRow]:
        """What the probes say of the copy now."""
        return self._measure(probes, self._plan_so_far, self._edit_so_far)

    def attempt(self, ids: Sequence[str], probes: Sequence[Probe], accept: Accept) -> bool:
        """Write corrections on top of what was accepted before; what is not accepted never was there."""
        plan = self._plan_of(ids)
        before = self.editor.checkpoint()
        try:
            edit = self._writer.write(plan, Stages(self.ledger))
            whole = (_joined(self._plan_so_far, plan), _together(self._edit_so_far, edit))
            accepted = accept(self._measure(probes, *whole))
        except BaseException:
            self.editor.rollback_to(before)
            raise
        if accepted:
            self._plan_so_far, self._edit_so_far = whole
        else:
            self.editor.rollback_to(before)
        return accepted

    def _plan_of(self, ids: Sequence[str]) -> Plan:
        with self.ledger.read() as connection:
            query = select(corrections).where(corrections.c.id.in_(ids)).order_by(corrections.c.seq)
            rows = connection.execute(query).mappings().all()
            return make_plan(connection, self.model, self._parent, rows, joint=0)  # head stays as it is

    def _measure(self, probes: Sequence[Probe], plan: Plan, edit: Edit) -> list[ProbeRow]:
        return run_probes(probes, self._context(plan, edit, self._parent), self.ledger.clock)


def _joined(one: Plan, other: Plan) -> Plan:
    return Plan([*one.writes, *other.writes], [*one.removals, *other.removals])


def _together(one: Edit, other: Edit) -> Edit:
    return Edit(written=[*one.written, *other.written], known=[*one.known, *other.known])
