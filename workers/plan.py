"""What a batch asks of the weights: which stored pairs to forget, which facts to write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, select

from daemon.core.chain import active_tenures
from daemon.core.names import CorrectionState
from daemon.core.schema import corrections
from workers.editing.prompts import EditRequest

_CHUNK = 500  # values in one IN list


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

    @property
    def is_held(self) -> bool:
        """Whether the weights hold it already, and only its pair is sought anew."""
        return self.replaces is not None and self.replaces.correction_id == self.correction_id

    def request(self) -> EditRequest:
        """The fact as the editor takes it."""
        return EditRequest(self.correction_id, self.subject, self.prompt, self.object or "")


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


def active_pairs(connection: Connection, model: str, at: int) -> list[Pair]:
    """The stored pairs whose sum is the memory at revision ``at``, in the order of their writing."""
    rows = active_tenures(connection, model, at)
    return [Pair(row["correction_id"], row["blob"], row["row"]) for row in rows if row["blob"] is not None]


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
    for start in range(0, len(subjects) if limit else 0, _CHUNK):
        query = select(corrections).where(
            corrections.c.model == model,
            corrections.c.state == CorrectionState.APPLIED,
            corrections.c.subject.in_(subjects[start : start + _CHUNK]),
        )
        found += [row for row in connection.execute(query).mappings() if row["id"] in held]
    found.sort(key=lambda row: -row["seq"])
    return [to_fact(row, held[row["id"]]) for row in found[:limit]]


def active_facts(connection: Connection, pairs: Sequence[Pair]) -> list[Fact]:
    """The corrections behind stored pairs, for probes."""
    by_id: dict[str, RowMapping] = {}
    ids = [pair.correction_id for pair in pairs]
    for start in range(0, len(ids), _CHUNK):
        query = select(corrections).where(corrections.c.id.in_(ids[start : start + _CHUNK]))
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
