"""The difference between two revisions in facts, weights and probes."""

from typing import Any

from sqlalchemy import Connection, select

from daemon.core.ledger.chain import active_tenures, get_revision
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections
from daemon.views.chain import newest_probes
from daemon.views.rows import Row, fetch


def difference(connection: Connection, model: str, first: int, second: int) -> Row:
    """Return the facts that differ between two revisions, with the norms and probes of both.

    Raises NotFoundError if one of the revisions does not exist.
    """
    before, after = (get_revision(connection, model, number) for number in (first, second))
    old, new = (_correction_by_fact(connection, model, number) for number in (first, second))
    rows = _corrections(connection, {*old.values(), *new.values()})
    was, tensors = before["tensors"], after["tensors"]
    facts = [
        _fact(fact, rows.get(old.get(fact, "")), rows.get(new.get(fact, "")))
        for fact in {**old, **new}
        if old.get(fact) != new.get(fact)
    ]
    return {
        "model": model,
        "from": first,
        "to": second,
        "same_content": before["content"] == after["content"],
        "tensors_changed": sorted(name for name, blob in tensors.items() if was.get(name) != blob),
        "facts": sorted(facts, key=lambda row: (row["change"], row["subject"], row["relation"])),
        "norms": _pairs(before["norms"], after["norms"]),
        "probes": _pairs(*(_scores(connection, model, number) for number in (first, second))),
    }


def _correction_by_fact(connection: Connection, model: str, number: int) -> dict[str, str]:
    """Return the id of the correction that a revision holds of each fact."""
    return {row["fact_id"]: row["correction_id"] for row in active_tenures(connection, model, number)}


def _corrections(connection: Connection, ids: set[str]) -> dict[str, Row]:
    """Return subject, relation and object of corrections by id."""
    columns = [corrections.c[name] for name in ("id", "subject", "relation", "object")]
    queries = (select(*columns).where(corrections.c.id.in_(some)) for some in in_chunks(sorted(ids)))
    return {row["id"]: row for query in queries for row in fetch(connection, query)}


def _fact(fact: str, before: Row | None, after: Row | None) -> Row:
    """Return one fact that differs, where a row is None if its revision does not hold the fact."""
    shown = after or before or {}
    change = "added" if before is None else "removed" if after is None else "changed"
    return {
        "change": change,
        "fact": fact,
        "subject": shown.get("subject"),
        "relation": shown.get("relation"),
        "before": before and before["object"],
        "after": after and after["object"],
    }


def _scores(connection: Connection, model: str, number: int) -> dict[str, float | None]:
    rows = newest_probes(connection, model, [number]).get(number, [])
    return {row["probe"]: row["score"] for row in rows}


def _pairs(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Row]:
    names = sorted({*before, *after})
    return {name: {"before": before.get(name), "after": after.get(name)} for name in names}
