"""Plan a batch: which stored pairs to forget and which facts to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, select

from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections
from daemon.core.names import CorrectionState
from workers.revisions.facts import Fact, Pair, to_fact


@dataclass(frozen=True)
class BatchPlan:
    """A batch on one head: facts to write, facts to take out, and older facts about their subjects.

    Facts about one subject share one key and therefore one value, so the value of an older fact (``joint``)
    is solved again together with the new one, or without the one that is taken out.
    """

    writes: list[Fact] = field(default_factory=list)
    removals: list[Fact] = field(default_factory=list)
    joint: list[Fact] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.writes and not self.removals

    def joined(self, other: "BatchPlan") -> "BatchPlan":
        """Both plans as one, without the facts that are solved jointly."""
        return BatchPlan([*self.writes, *other.writes], [*self.removals, *other.removals])


def make_plan(
    connection: Connection, model: str, head: int, waiting: Sequence[RowMapping], joint: int
) -> BatchPlan:
    """Decide for each waiting correction of a batch what must change in the weights of revision ``head``.

    Of several corrections of one fact the newest is taken, and it replaces the pair of the fact in head.
    At most ``joint`` older facts about the same subjects are solved again with them, the newest first.
    """
    in_weights = {
        row["fact_id"]: Pair(row["correction_id"], row["blob"], row["row"])
        for row in active_tenures(connection, model, head)
        if row["blob"] is not None
    }
    newest: dict[str, RowMapping] = {}
    for row in waiting:
        if row["fact_id"] not in newest or row["order_key"] > newest[row["fact_id"]]["order_key"]:
            newest[row["fact_id"]] = row
    facts = [to_fact(row, in_weights.get(row["fact_id"])) for row in newest.values()]
    subjects = {fact.subject for fact in facts if fact.object is not None or fact.replaces is not None}
    others = {pair.correction_id: pair for fact_id, pair in in_weights.items() if fact_id not in newest}
    return BatchPlan(
        [f for f in facts if f.object is not None],
        [f for f in facts if f.object is None],
        _about(connection, model, sorted(subjects), others, joint),
    )


def _about(
    connection: Connection, model: str, subjects: Sequence[str], pairs: Mapping[str, Pair], limit: int
) -> list[Fact]:
    """At most ``limit`` applied facts about ``subjects`` that have one of ``pairs``, the newest first."""
    rows: list[RowMapping] = []
    for some in in_chunks(subjects if limit else ()):
        query = select(corrections).where(
            corrections.c.model == model,
            corrections.c.state == CorrectionState.APPLIED,
            corrections.c.subject.in_(some),
        )
        rows += [row for row in connection.execute(query).mappings() if row["id"] in pairs]
    rows.sort(key=lambda row: -row["seq"])
    return [to_fact(row, pairs[row["id"]]) for row in rows[:limit]]
