"""Facts as people ask for them: the list, one by id or subject, and the story of one."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Select, case, func, select

from daemon.core.errors import NotFoundError
from daemon.core.ledger.schema import corrections, revisions, tenures
from daemon.core.names import CorrectionState

Row = dict[str, Any]
_CURRENT = (CorrectionState.PENDING, CorrectionState.QUEUED, CorrectionState.APPLIED)
_ID = re.compile(r"f[0-9a-f]{20}")
_PREFIX = re.compile(r"f[0-9a-f]{3,19}")
_SHOWN = 10  # candidates that an ambiguous name lists


def fact_list(
    connection: Connection,
    model: str,
    *,
    limit: int,
    offset: int = 0,
    state: str | None = None,
) -> list[Row]:
    """Facts in order of their first correction: what is wanted now, where it stands, what the weights hold.

    ``object`` and ``state`` are those of the newest correction that counts; ``in_weights`` is what head was
    taught (None: nothing), since revision ``revision``, which was made at ``since``.
    """
    mine = corrections.c.model == model
    if state is None:  # rank the facts of one page only
        first = select(corrections.c.fact_id).where(mine).group_by(corrections.c.fact_id)
        page = first.order_by(func.min(corrections.c.seq)).limit(limit).offset(offset)
        query = _facts(_ranked().where(corrections.c.fact_id.in_(page)))
    else:
        query = _facts(_ranked().where(mine))
        query = query.where(query.selected_columns.state == state).limit(limit).offset(offset)
    rows = connection.execute(query.order_by(query.selected_columns.seq)).mappings()
    return [_without(dict(row), "seq") for row in rows]


def find_fact(connection: Connection, text: str, model: str | None = None) -> str:
    """The id of the fact that ``text`` names: a full id, a subject as it was written, or a unique prefix.

    Raises:
        NotFoundError: there is none, or several; then the message lists them.
    """
    subject = " ".join(unicodedata.normalize("NFC", text).split())
    ways = [corrections.c.subject == subject]
    if _ID.fullmatch(text):
        ways.insert(0, corrections.c.fact_id == text)
    elif _PREFIX.fullmatch(text):  # only hex digits: nothing that LIKE could read as a pattern
        ways.append(corrections.c.fact_id.startswith(text))
    for way in ways:
        query = select(corrections.c.fact_id, corrections.c.subject, corrections.c.relation).where(way)
        if model is not None:
            query = query.where(corrections.c.model == model)
        found = {row.fact_id: row for row in connection.execute(query.order_by(corrections.c.seq))}
        if len(found) == 1:
            return str(next(iter(found)))
        if found:
            raise NotFoundError(f"{text[:60]!r} names {len(found)} facts", hint=_candidates(found))
    raise NotFoundError(f"there is no fact {text[:60]!r}", hint="errata facts lists them")


def fact_story(connection: Connection, fact_id: str) -> Row:
    """Everything that was ever said about one fact, in order of admission, and when each held in the weights.

    Raises:
        NotFoundError: no correction speaks of it.
    """
    query = select(corrections).where(corrections.c.fact_id == fact_id).order_by(corrections.c.seq)
    said = connection.execute(query).mappings().all()
    if not said:
        raise NotFoundError(f"there is no fact {fact_id[:60]!r}", hint="errata facts lists them")
    holds = select(tenures).where(tenures.c.fact_id == fact_id).order_by(tenures.c.id)
    held: dict[str, list[Row]] = {}
    for row in connection.execute(holds).mappings():
        held.setdefault(row["correction_id"], []).append({"since": row["since"], "until": row["until"]})
    keys = (
        "id", "object", "prompt", "paraphrases", "neighborhood", "source", "feed", "trust", "admitted_at",
        "state", "reason", "batch_id",
    )  # fmt: skip
    return {
        "fact": fact_id,
        "model": said[0]["model"],
        "subject": said[0]["subject"],
        "relation": said[0]["relation"],
        "corrections": [{key: row[key] for key in keys} | {"held": held.get(row["id"], [])} for row in said],
    }


def current_correction(connection: Connection, fact_id: str) -> Row:
    """The correction of a fact that counts now.

    Raises:
        NotFoundError: no correction speaks of it.
    """
    ranked = _ranked().where(corrections.c.fact_id == fact_id).subquery()
    row = connection.execute(select(ranked).where(ranked.c.place == 1)).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"there is no fact {fact_id[:60]!r}", hint="errata facts lists them")
    return dict(row)


def _facts(candidates: Select[Any]) -> Select[Any]:
    """The first of each fact's ranked corrections, with what head's weights hold."""
    ranked = candidates.subquery()
    held = corrections.alias("held")
    return (
        select(
            ranked.c.fact_id.label("fact"), ranked.c.subject, ranked.c.relation, ranked.c.prompt,
            ranked.c.object, ranked.c.state, ranked.c.reason, ranked.c.id.label("correction"),
            ranked.c.source, ranked.c.feed, held.c.object.label("in_weights"),
            tenures.c.since.label("revision"), revisions.c.created_at.label("since"),
            ranked.c.first_seq.label("seq"),
        )
        .outerjoin(tenures, (tenures.c.fact_id == ranked.c.fact_id) & tenures.c.until.is_(None))
        .outerjoin(held, held.c.id == tenures.c.correction_id)
        .outerjoin(
            revisions, (revisions.c.model == tenures.c.model) & (revisions.c.number == tenures.c.since)
        )
        .where(ranked.c.place == 1)
    )  # fmt: skip


def _ranked() -> Select[Any]:
    """Corrections with their place within their fact: what counts first, confirmations last, newest first."""
    rank = case(
        (corrections.c.state.in_(_CURRENT), 0), (corrections.c.state == CorrectionState.CONFIRMED, 2), else_=1
    )
    order = (rank, corrections.c.order_key.desc(), corrections.c.seq.desc())
    place = func.row_number().over(partition_by=corrections.c.fact_id, order_by=order)
    first = func.min(corrections.c.seq).over(partition_by=corrections.c.fact_id)
    return select(corrections, place.label("place"), first.label("first_seq"))


def _candidates(found: dict[str, Any]) -> str:
    lines = [f"{fact} {row.subject}: {row.relation}" for fact, row in list(found.items())[:_SHOWN]]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "use the id: " + "; ".join(lines + more)


def _without(row: Mapping[str, Any], key: str) -> Row:
    return {name: value for name, value in row.items() if name != key}
