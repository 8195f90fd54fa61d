"""The chain of revisions with their probes, verdicts and changes of facts."""

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, func, select

from daemon.core.ledger.chain import get_revision
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections, judgements, probe_results, revisions, tenures
from daemon.views.figures import head_number, live_number
from daemon.views.rows import Row, fetch

_REVISION = (
    "number", "parent", "kind", "state", "content", "content_of", "batch_id", "recipe", "reason",
    "active_facts", "created_at", "cause", "who", "taken_back_by",
)  # fmt: skip
_PROBE = ("probe", "version", "result", "score", "bound", "items", "seconds", "measured_at")


def revision_list(connection: Connection, model: str, limit: int, before: int | None = None) -> list[Row]:
    """Return the newest ``limit`` revisions below ``before``, newest first, each with its probes."""
    query = select(revisions).where(revisions.c.model == model)
    if before is not None:
        query = query.where(revisions.c.number < before)
    rows = fetch(connection, query.order_by(revisions.c.number.desc()).limit(limit))
    head, live = head_number(connection, model), live_number(connection, model)
    probes = newest_probes(connection, model, [row["number"] for row in rows])
    return [_revision(row, head, live) | {"probes": probes.get(row["number"], [])} for row in rows]


def revision_detail(connection: Connection, model: str, number: int) -> Row:
    """Return one revision with its tensors, stages, norms, probes and changes of facts, or NotFoundError."""
    row = get_revision(connection, model, number)
    shown = _revision(row, head_number(connection, model), live_number(connection, model))
    return shown | {
        "model": model,
        "tensors": dict(row["tensors"]),
        "stages": dict(row["stages"]),
        "norms": dict(row["norms"]),
        "probes": newest_probes(connection, model, [number]).get(number, []),
        "written": _changed(connection, model, tenures.c.since == number),
        "ended": _changed(connection, model, tenures.c.until == number),
    }


def newest_probes(connection: Connection, model: str, numbers: Sequence[int]) -> dict[int, list[Row]]:
    """Return the newest measurement of each probe by revision, in order of the probes' names."""
    by_revision: dict[int, list[Row]] = {}
    for some in in_chunks(numbers):
        newest = (
            select(func.max(probe_results.c.id))
            .where(probe_results.c.model == model, probe_results.c.revision.in_(some))
            .group_by(probe_results.c.revision, probe_results.c.probe)
        )
        for row in _probe_rows(connection, newest):
            by_revision.setdefault(row["revision"], []).append(_probe(row))
    return by_revision


def probes_in_force(connection: Connection, model: str) -> list[Row]:
    """Return the newest measurement of each probe on head's content, which earlier revisions may share."""
    newest = (
        select(func.max(probe_results.c.id))
        .where(probe_results.c.model == model, probe_results.c.revision.in_(_same_as_head(connection, model)))
        .group_by(probe_results.c.probe)
    )
    return [_probe(row) for row in _probe_rows(connection, newest)]


def verdicts_in_force(connection: Connection, model: str) -> list[Row]:
    """Return the judge's newest verdict on each probe of the content of head."""
    same = _same_as_head(connection, model)
    query = select(judgements).where(judgements.c.model == model, judgements.c.revision.in_(same))
    rows = fetch(connection, query.order_by(judgements.c.probe, judgements.c.revision))
    return list({row["probe"]: row for row in rows}.values())


def finite(value: float | None) -> float | None:
    """Return the number, or None for NaN and infinity, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else value


def _same_as_head(connection: Connection, model: str) -> Select[Any]:
    """Select the numbers of the revisions that have the content of head."""
    head = head_number(connection, model)
    content = select(revisions.c.content).where(revisions.c.model == model, revisions.c.number == head)
    same = revisions.c.content == content.scalar_subquery()
    return select(revisions.c.number).where(revisions.c.model == model, same)


def _probe_rows(connection: Connection, ids: Select[Any]) -> list[Row]:
    query = select(probe_results).where(probe_results.c.id.in_(ids)).order_by(probe_results.c.probe)
    return fetch(connection, query)


def _probe(row: Row) -> Row:
    numbers = {key: finite(row[key]) for key in ("score", "bound", "seconds")}
    return {key: row[key] for key in _PROBE} | numbers


def _revision(row: Row | RowMapping, head: int | None, live: int | None) -> Row:
    flags = {"is_head": row["number"] == head, "is_live": row["number"] == live}
    return {key: row[key] for key in _REVISION} | flags


def _changed(connection: Connection, model: str, when: ColumnElement[bool]) -> list[Row]:
    """Return the corrections that a revision wrote into the weights or took out."""
    query = (
        select(
            tenures.c.fact_id, tenures.c.correction_id, corrections.c.subject,
            corrections.c.relation, corrections.c.object,
        )
        .join(corrections, corrections.c.id == tenures.c.correction_id)
        .where(tenures.c.model == model, when)
        .order_by(tenures.c.id)
    )  # fmt: skip
    return fetch(connection, query)
