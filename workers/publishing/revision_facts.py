"""What the ledger records about one revision, for the users of its published weights."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from daemon.core.ledger.chain import active_tenures, get_revision
from daemon.core.ledger.schema import probe_results, revisions
from workers.revisions.facts import correction_rows

_PROBE = ("probe", "version", "result", "score", "bound", "items", "measured_at")


@dataclass(frozen=True)
class RevisionFacts:
    """One revision: its origin, its tensors (name to blob), its facts and its probe results."""

    model: str
    number: int
    kind: str
    state: str
    content: str
    content_of: int | None
    recipe: str
    created_at: str
    tensors: Mapping[str, str]
    norms: Mapping[str, float]
    facts: Sequence[Mapping[str, Any]]
    absent: int
    probes: Sequence[Mapping[str, Any]]

    @property
    def sources(self) -> dict[str, int]:
        """The number of facts from each feed."""
        return dict(sorted(Counter(fact["feed"] for fact in self.facts).items()))

    def manifest(self) -> dict[str, Any]:
        """Everything except the single facts, as a JSON document."""
        return {
            "model": self.model,
            "revision": self.number,
            "kind": self.kind,
            "state": self.state,
            "content": self.content,
            "content_of": self.content_of,
            "recipe": self.recipe,
            "created_at": self.created_at,
            "tensors": dict(self.tensors),
            "norms": dict(self.norms),
            "active_facts": len(self.facts),
            "facts_held_absent": self.absent,
            "sources": self.sources,
            "probes": [dict(row) for row in self.probes],
        }


def read_revision(connection: Connection, model: str, number: int) -> RevisionFacts:
    """Read one revision from the ledger.

    Raises:
        NotFoundError: there is no revision with this number.
    """
    row = get_revision(connection, model, number)
    tenures = active_tenures(connection, model, number)
    taught = {row["correction_id"]: row["since"] for row in tenures if row["blob"] is not None}
    return RevisionFacts(
        model=model,
        number=number,
        kind=row["kind"],
        state=row["state"],
        content=row["content"],
        content_of=row["content_of"],
        recipe=row["recipe"],
        created_at=row["created_at"],
        tensors=dict(row["tensors"]),
        norms=dict(row["norms"]),
        facts=_facts(connection, taught),
        absent=len(tenures) - len(taught),
        probes=_probes(connection, model, row["content"]),
    )


def _facts(connection: Connection, since: Mapping[str, int]) -> list[dict[str, Any]]:
    """The corrections with these ids, and the revision since which the weights contain each."""
    wanted = ("fact_id", "id", "subject", "relation", "prompt", "object", "source", "feed", "admitted_at")
    rows = correction_rows(connection, since)
    return [{name: rows[one][name] for name in wanted} | {"since": since[one]} for one in since]


def _probes(connection: Connection, model: str, content: str) -> list[dict[str, Any]]:
    """The newest result of each probe on this content, measured on any revision that has it."""
    same = select(revisions.c.number).where(revisions.c.model == model, revisions.c.content == content)
    mine = (probe_results.c.model == model) & probe_results.c.revision.in_(same)
    rows = connection.execute(select(probe_results).where(mine).order_by(probe_results.c.id)).mappings()
    newest = {row["probe"]: {key: row[key] for key in _PROBE} for row in rows.all()}
    return [newest[name] for name in sorted(newest)]
