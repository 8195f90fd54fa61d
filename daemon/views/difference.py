"""What lies between two revisions: facts, weights, probes."""

from typing import Any

from sqlalchemy import Connection, select

from daemon.core.ledger.chain import active_tenures, get_revision
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections
from daemon.views.chain import newest_probes

Row = dict[str, Any]


def difference(connection: Connection, model: str, first: int, second: int) -> Row:
    """Facts added, changed or taken out on the way from ``first`` to ``second``; norms and probes of both.

    Raises:
        NotFoundError: there is no such revision.
    """
    before, after = (get_revision(connection, model, number) for number in (first, second))
    old, new = (_held(connection, model, number) for number in (first, second))
    said = _said(connection, {*old.values(), *new.values()})
    facts = [
        _fact(fact, said.get(old.get(fact, "")), said.get(new.get(fact, "")))
        for fact in {**old, **new}
        if old.get(fact) != new.get(fact)
    ]
    return {
        "model": model,
        "from": first,
        "to": second,
        "same_content": before["content"] == after["content"],
        "tensors_changed": sorted(
            name for name, blob in after["tensors"].items() if before["tensors"].get(name) != blob
        ),
        "facts": sorted(facts, key=lambda row: (row["change"], row["subject"], row["relation"])),
        "norms": _pairs(before["norms"], after["norms"]),
        "probes": _pairs(*(_scores(connection, model, number) for number in (first, second))),
    }


def _held(connection: Connection, model: str, number: int) -> dict[str, str]:
    """Fact to the correction that holds it."""
    return {row["fact_id"]: row["correction_id"] for row in active_tenures(connection, model, number)}


def _said(connection: Connection, ids: set[str]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    columns = [corrections.c[name] for name in ("id", "subject", "relation", "object")]
    for some in in_chunks(sorted(ids)):
        query = select(*columns).where(corrections.c.id.in_(some))
        found |= {row["id"]: dict(row) for row in connection.execute(query).mappings()}
    return found


def _fact(fact: str, before: Row | None, after: Row | None) -> Row:
    """One fact that differs; an object that is None is held absent, a side without row says nothing."""
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
