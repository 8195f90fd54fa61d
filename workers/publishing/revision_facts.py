"""What the ledger says of one revision, for those who are handed its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from daemon.core.ledger.chain import active_tenures, get_revision
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections, probe_results, revisions

_PROBE = ("probe", "version", "result", "score", "bound", "items", "measured_at")


@dataclass(frozen=True)
class RevisionFacts:
    """One revision: where it comes from, its tensors (name to blob), its facts and how it was probed."""

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
        """Facts by the feed that they came from."""
        found: dict[str, int] = {}
        for fact in self.facts:
            found[fact["feed"]] = found.get(fact["feed"], 0) + 1
        return dict(sorted(found.items()))

    def manifest(self) -> dict[str, Any]:
        """All of it but the facts one by one, for programs."""
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
    """Gather one revision.

    Raises:
        NotFoundError: there is none with this number.
    """
    row = get_revision(connection, model, number)
    held = active_tenures(connection, model, number)
    taught = {row["correction_id"]: row["since"] for row in held if row["blob"] is not None}
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
        absent=len(held) - len(taught),
        probes=_probes(connection, model, row["content"]),
    )


def _facts(connection: Connection, since: Mapping[str, int]) -> list[dict[str, Any]]:
    """The corrections with these ids, in their order, and the revision since which each is held."""
    wanted = ("fact_id", "id", "subject", "relation", "prompt", "object", "source", "feed", "admitted_at")
    columns = [corrections.c[name] for name in wanted]
    found: dict[str, dict[str, Any]] = {}
    for some in in_chunks(since):
        query = select(*columns).where(corrections.c.id.in_(some))
        found |= {row["id"]: dict(row) for row in connection.execute(query).mappings()}
    return [found[one] | {"since": since[one]} for one in since]


def _probes(connection: Connection, model: str, content: str) -> list[dict[str, Any]]:
    """The newest measurement of each probe on this content, whichever revision it was made under."""
    same = select(revisions.c.number).where(revisions.c.model == model, revisions.c.content == content)
    mine = (probe_results.c.model == model) & probe_results.c.revision.in_(same)
    rows = connection.execute(select(probe_results).where(mine).order_by(probe_results.c.id)).mappings()
    newest = {row["probe"]: {key: row[key] for key in _PROBE} for row in rows.all()}
    return [newest[name] for name in sorted(newest)]
