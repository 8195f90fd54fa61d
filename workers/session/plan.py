"""What a batch asks of the weights: which stored pairs to forget, which facts to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, select

from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections
from daemon.core.names import CorrectionState
from workers.revisions.facts import Fact, Pair, to_fact


@dataclass(frozen=True)
class Plan:
    """A batch against one head: the facts to write, those to take out, and older ones of their subjects.

    Facts with one key share one value, so the value of an older one is sought again with that of the new one,
    and without that of one that goes.
    """

    writes: list[Fact] = field(default_factory=list)
    removals: list[Fact] = field(default_factory=list)
    joint: list[Fact] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.writes and not self.removals


def make_plan(
    connection: Connection, model: str, head: int, waiting: Sequence[RowMapping], joint: int
) -> Plan:
    """Decide for each waiting correction of a batch what the weights at ``head`` need.

    The newest correction of a fact wins within the batch too; its old pair is to be forgotten first. At most
    ``joint`` older facts of the same subjects are sought again with them, the newest first.
    """
    held = {
        row["fact_id"]: Pair(row["correction_id"], row["blob"], row["row"])
        for row in active_tenures(connection, model, head)
        if row["blob"] is not None
    }
    newest: dict[str, RowMapping] = {}
    for row in waiting:
        if row["fact_id"] not in newest or row["order_key"] > newest[row["fact_id"]]["order_key"]:
            newest[row["fact_id"]] = row
    facts = [to_fact(row, held.get(row["fact_id"])) for row in newest.values()]
    subjects = {fact.subject for fact in facts if fact.object is not None or fact.replaces is not None}
    others = {pair.correction_id: pair for fact_id, pair in held.items() if fact_id not in newest}
    return Plan(
        [f for f in facts if f.object is not None],
        [f for f in facts if f.object is None],
        _about(connection, model, sorted(subjects), others, joint),
    )


def _about(
    connection: Connection, model: str, subjects: Sequence[str], held: Mapping[str, Pair], limit: int
) -> list[Fact]:
    """The facts about ``subjects`` among those that are ``held``, the newest first."""
    found: list[RowMapping] = []
    for some in in_chunks(subjects if limit else ()):
        query = select(corrections).where(
            corrections.c.model == model,
            corrections.c.state == CorrectionState.APPLIED,
            corrections.c.subject.in_(some),
        )
        found += [row for row in connection.execute(query).mappings() if row["id"] in held]
    found.sort(key=lambda row: -row["seq"])
    return [to_fact(row, held[row["id"]]) for row in found[:limit]]
