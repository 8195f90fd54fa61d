"""The chain of revisions as people read it: numbers, what each is, how it measured, what it changed."""

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, func, select

from daemon.core.ledger.chain import get_revision
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections, judgements, probe_results, revisions, tenures
from daemon.views.figures import head_number, live_number

Row = dict[str, Any]
_REVISION = (
    "number", "parent", "kind", "state", "content", "content_of", "batch_id", "recipe", "reason",
    "active_facts", "created_at",
)  # fmt: skip
_PROBE = ("probe", "version", "result", "score", "bound", "items", "seconds", "measured_at")


def revision_list(connection: Connection, model: str, limit: int, before: int | None = None) -> list[Row]:
    """The newest ``limit`` revisions below ``before``, newest first, each with its probes."""
    query = select(revisions).where(revisions.c.model == model)
    if before is not None:
        query = query.where(revisions.c.number < before)
    rows = connection.execute(query.order_by(revisions.c.number.desc()).limit(limit)).mappings().all()
    head, live = head_number(connection, model), live_number(connection, model)
    probes = newest_probes(connection, model, [row["number"] for row in rows])
    return [_revision(row, head, live) | {"probes": probes.get(row["number"], [])} for row in rows]


def revision_detail(connection: Connection, model: str, number: int) -> Row:
    """One revision with its tensors, stages, norms, probes and what it wrote and ended.

    Raises:
        NotFoundError: there is none with this number.
    """
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
    """The newest measurement of each probe of some revisions, in order of the probes' names."""
    found: dict[int, list[Row]] = {}
    for some in in_chunks(numbers):
        mine = and_(probe_results.c.model == model, probe_results.c.revision.in_(some))
        newest = (
            select(func.max(probe_results.c.id))
            .where(mine)
            .group_by(probe_results.c.revision, probe_results.c.probe)
        )
        for row in _probe_rows(connection, newest):
            found.setdefault(row["revision"], []).append(_probe(row))
    return found


def probes_in_force(connection: Connection, model: str) -> list[Row]:
    """The newest measurement of each probe on what head holds.

    A rollback makes a revision with the content of an earlier one; what was measured on that content counts.
    """
    head = head_number(connection, model)
    content = select(revisions.c.content).where(revisions.c.model == model, revisions.c.number == head)
    same = select(revisions.c.number).where(
        revisions.c.model == model, revisions.c.content == content.scalar_subquery()
    )
    newest = (
        select(func.max(probe_results.c.id))
        .where(probe_results.c.model == model, probe_results.c.revision.in_(same))
        .group_by(probe_results.c.probe)
    )
    return [_probe(row) for row in _probe_rows(connection, newest)]


def verdicts_in_force(connection: Connection, model: str) -> list[Row]:
    """What the judge said last of each probe on what head holds: of head, or of what it brought back."""
    head = head_number(connection, model)
    content = select(revisions.c.content).where(revisions.c.model == model, revisions.c.number == head)
    same = select(revisions.c.number).where(
        revisions.c.model == model, revisions.c.content == content.scalar_subquery()
    )
    query = select(judgements).where(judgements.c.model == model, judgements.c.revision.in_(same))
    rows = connection.execute(query.order_by(judgements.c.probe, judgements.c.revision)).mappings()
    return list({row["probe"]: dict(row) for row in rows}.values())


def finite(value: float | None) -> float | None:
    """The number, or None for what JSON cannot say."""
    return None if value is None or not math.isfinite(value) else value


def _probe_rows(connection: Connection, ids: Select[Any]) -> Sequence[RowMapping]:
    query = select(probe_results).where(probe_results.c.id.in_(ids)).order_by(probe_results.c.probe)
    return connection.execute(query).mappings().all()


def _probe(row: RowMapping) -> Row:
    numbers = {key: finite(row[key]) for key in ("score", "bound", "seconds")}
    return {key: row[key] for key in _PROBE} | numbers


def _revision(row: RowMapping, head: int | None, live: int | None) -> Row:
    flags = {"is_head": row["number"] == head, "is_live": row["number"] == live}
    return {key: row[key] for key in _REVISION} | flags


def _changed(connection: Connection, model: str, when: ColumnElement[bool]) -> list[Row]:
    """The corrections whose hold on a fact begins or ends with a revision."""
    query = (
        select(
            tenures.c.fact_id, tenures.c.correction_id, corrections.c.subject,
            corrections.c.relation, corrections.c.object,
        )
        .join(corrections, corrections.c.id == tenures.c.correction_id)
        .where(tenures.c.model == model, when)
        .order_by(tenures.c.id)
    )  # fmt: skip
    return [dict(row) for row in connection.execute(query).mappings()]
