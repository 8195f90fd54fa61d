"""What a batch asks of the weights: which stored pairs to forget, which facts to write."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, select

from daemon.core.chain import active_tenures
from daemon.core.schema import corrections
from workers.editing.prompts import EditRequest


@dataclass(frozen=True)
class Pair:
    """Where the association of an active correction is stored."""

    correction_id: str
    blob: str
    row: int


@dataclass(frozen=True)
class Fact:
    """One correction as the worker sees it, with the pair that holds its fact now."""

    correction_id: str
    fact_id: str
    subject: str
    prompt: str
    object: str | None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    replaces: Pair | None = None

    def request(self) -> EditRequest:
        """The fact as the editor takes it."""
        return EditRequest(self.correction_id, self.subject, self.prompt, self.object or "")


@dataclass(frozen=True)
class Plan:
    """A batch against one head: the facts to write, those to take out, and those that a newer one beat."""

    writes: list[Fact] = field(default_factory=list)
    removals: list[Fact] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.writes and not self.removals


def active_pairs(connection: Connection, model: str, at: int) -> list[Pair]:
    """The stored pairs whose sum is the memory at revision ``at``, in the order of their writing."""
    rows = active_tenures(connection, model, at)
    return [Pair(row["correction_id"], row["blob"], row["row"]) for row in rows if row["blob"] is not None]


def make_plan(connection: Connection, model: str, head: int, waiting: Sequence[RowMapping]) -> Plan:
    """Decide for each waiting correction of a batch what the weights at ``head`` need.

    The newest correction of a fact wins within the batch too; its old pair is to be forgotten first.
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
    return Plan([f for f in facts if f.object is not None], [f for f in facts if f.object is None])


def active_facts(connection: Connection, pairs: Sequence[Pair]) -> list[Fact]:
    """The corrections behind stored pairs, for probes."""
    by_id: dict[str, RowMapping] = {}
    ids = [pair.correction_id for pair in pairs]
    for start in range(0, len(ids), 500):
        query = select(corrections).where(corrections.c.id.in_(ids[start : start + 500]))
        by_id |= {row["id"]: row for row in connection.execute(query).mappings()}
    return [to_fact(by_id[pair.correction_id], pair) for pair in pairs]


def to_fact(row: RowMapping, replaces: Pair | None) -> Fact:
    """A ledger row as a fact."""
    return Fact(
        correction_id=row["id"],
        fact_id=row["fact_id"],
        subject=row["subject"],
        prompt=row["prompt"],
        object=row["object"],
        paraphrases=tuple(row["paraphrases"]),
        neighborhood=tuple(row["neighborhood"]),
        replaces=replaces,
    )
