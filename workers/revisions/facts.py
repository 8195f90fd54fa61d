"""The facts of a revision as a worker sees them: read from the ledger, with the pair that holds each."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, select

from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections
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

    @property
    def is_in_weights(self) -> bool:
        """Whether the weights hold it already, and only its pair is sought anew."""
        return self.replaces is not None and self.replaces.correction_id == self.correction_id

    def request(self) -> EditRequest:
        """The fact as the editor takes it."""
        return EditRequest(self.correction_id, self.subject, self.prompt, self.object or "")


def active_pairs(connection: Connection, model: str, at: int) -> list[Pair]:
    """The stored pairs whose sum is the memory at revision ``at``, in the order of their writing."""
    rows = active_tenures(connection, model, at)
    return [Pair(row["correction_id"], row["blob"], row["row"]) for row in rows if row["blob"] is not None]


def active_facts(connection: Connection, pairs: Sequence[Pair]) -> list[Fact]:
    """The corrections behind stored pairs, for probes."""
    by_id: dict[str, RowMapping] = {}
    ids = [pair.correction_id for pair in pairs]
    for some in in_chunks(ids):
        query = select(corrections).where(corrections.c.id.in_(some))
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


def known_facts(connection: Connection, model: str, at: int) -> list[Fact]:
    """The facts that revision ``at`` holds without a pair of theirs in the weights."""
    ids = [row["correction_id"] for row in active_tenures(connection, model, at) if row["blob"] is None]
    found: list[Fact] = []
    for some in in_chunks(ids):
        query = select(corrections).where(corrections.c.id.in_(some), corrections.c.object.is_not(None))
        found += [
            to_fact(row, None) for row in connection.execute(query.order_by(corrections.c.seq)).mappings()
        ]
    return found
