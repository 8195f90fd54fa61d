"""The facts of a revision, read from the ledger, and the stored pairs that carry them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, select

from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections
from workers.editing.prompts import EditRequest


@dataclass(frozen=True)
class Pair:
    """The blob and row in which the key and value of a correction are stored."""

    correction_id: str
    blob: str
    row: int


@dataclass(frozen=True)
class Fact:
    """A correction as the editor and the probes need it.

    ``replaces`` is the pair that carries the fact in the weights now.
    """

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
        """Whether the weights contain this very correction, so that it is only solved again."""
        return self.replaces is not None and self.replaces.correction_id == self.correction_id

    def request(self) -> EditRequest:
        """The fact as a request to the editor."""
        return EditRequest(self.correction_id, self.subject, self.prompt, self.object or "")


def active_pairs(connection: Connection, model: str, at: int) -> list[Pair]:
    """The stored pairs that make up revision ``at``, in the order in which they were written."""
    rows = active_tenures(connection, model, at)
    return [Pair(row["correction_id"], row["blob"], row["row"]) for row in rows if row["blob"] is not None]


def active_facts(connection: Connection, pairs: Sequence[Pair]) -> list[Fact]:
    """The facts that the stored pairs carry."""
    rows = correction_rows(connection, [pair.correction_id for pair in pairs])
    return [to_fact(rows[pair.correction_id], pair) for pair in pairs]


def correction_rows(connection: Connection, ids: Iterable[str]) -> dict[str, RowMapping]:
    """The corrections with these ids, by their id."""
    rows: dict[str, RowMapping] = {}
    for some in in_chunks(ids):
        query = select(corrections).where(corrections.c.id.in_(some))
        rows |= {row["id"]: row for row in connection.execute(query).mappings()}
    return rows


def to_fact(row: RowMapping, replaces: Pair | None) -> Fact:
    """Make a fact of a row of ``corrections``."""
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
    """The facts of revision ``at`` that the model answered without an edit, oldest first."""
    ids = [row["correction_id"] for row in active_tenures(connection, model, at) if row["blob"] is None]
    rows = correction_rows(connection, ids).values()
    return [
        to_fact(row, None)
        for row in sorted(rows, key=lambda row: int(row["seq"]))
        if row["object"] is not None
    ]
