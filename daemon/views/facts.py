"""Facts: the list, one by id or subject, and the history of one."""

import re
import unicodedata
from typing import Any

from sqlalchemy import Connection, Select, case, func, select

from daemon.core.errors import NotFoundError
from daemon.core.ledger.schema import corrections, revisions, tenures
from daemon.core.names import CorrectionState
from daemon.views.rows import Row, fetch

_CURRENT = (CorrectionState.PENDING, CorrectionState.QUEUED, CorrectionState.APPLIED)
_ID = re.compile(r"f[0-9a-f]{20}")
_PREFIX = re.compile(r"f[0-9a-f]{3,19}")
_SHOWN = 10  # candidates of an ambiguous name in the error message


def fact_list(
    connection: Connection, model: str, *, limit: int, offset: int = 0, state: str | None = None
) -> list[Row]:
    """Return facts in order of their first correction, with their wanted value and the one in the weights.

    ``object`` and ``state`` are those of the correction in force. ``in_weights`` is the value that head was
    taught, or None. It has been there since revision ``revision``, which was made at ``since``.
    """
    mine = corrections.c.model == model
    if state is None:  # rank the facts of one page only
        first = select(corrections.c.fact_id).where(mine).group_by(corrections.c.fact_id)
        page = first.order_by(func.min(corrections.c.seq)).limit(limit).offset(offset)
        query = _facts(_ranked().where(corrections.c.fact_id.in_(page)))
    else:
        query = _facts(_ranked().where(mine))
        query = query.where(query.selected_columns.state == state).limit(limit).offset(offset)
    rows = fetch(connection, query.order_by(query.selected_columns.seq))
    return [{key: value for key, value in row.items() if key != "seq"} for row in rows]


def find_fact(connection: Connection, text: str, model: str | None = None) -> str:
    """Return the id of the fact that has ``text`` as its id, its exact subject or a unique prefix of its id.

    Raises NotFoundError if no fact matches, or several do: then the message lists them.
    """
    subject = " ".join(unicodedata.normalize("NFC", text).split())
    ways = [corrections.c.subject == subject]
    if _ID.fullmatch(text):
        ways.insert(0, corrections.c.fact_id == text)
    elif _PREFIX.fullmatch(text):  # only hex digits, so that LIKE has no wildcard
        ways.append(corrections.c.fact_id.startswith(text))
    for way in ways:
        query = select(corrections.c.fact_id, corrections.c.subject, corrections.c.relation).where(way)
        if model is not None:
            query = query.where(corrections.c.model == model)
        matches = {row.fact_id: row for row in connection.execute(query.order_by(corrections.c.seq))}
        if len(matches) == 1:
            return str(next(iter(matches)))
        if matches:
            raise NotFoundError(f"{text[:60]!r} names {len(matches)} facts", hint=_candidates(matches))
    raise _no_fact(text)


def fact_story(connection: Connection, fact_id: str) -> Row:
    """Return all corrections of a fact in order of admission, and the revisions that held each.

    Raises NotFoundError if the fact has no correction.
    """
    query = select(corrections).where(corrections.c.fact_id == fact_id).order_by(corrections.c.seq)
    rows = fetch(connection, query)
    if not rows:
        raise _no_fact(fact_id)
    spans: dict[str, list[Row]] = {}
    for row in fetch(connection, select(tenures).where(tenures.c.fact_id == fact_id).order_by(tenures.c.id)):
        spans.setdefault(row["correction_id"], []).append({"since": row["since"], "until": row["until"]})
    keys = (
        "id", "object", "prompt", "paraphrases", "neighborhood", "source", "feed", "trust", "admitted_at",
        "state", "reason", "batch_id",
    )  # fmt: skip
    return {
        "fact": fact_id,
        "model": rows[0]["model"],
        "subject": rows[0]["subject"],
        "relation": rows[0]["relation"],
        "corrections": [{key: row[key] for key in keys} | {"held": spans.get(row["id"], [])} for row in rows],
    }


def current_correction(connection: Connection, fact_id: str) -> Row:
    """Return the correction of a fact that is in force, or raise NotFoundError if it has none."""
    ranked = _ranked().where(corrections.c.fact_id == fact_id).subquery()
    rows = fetch(connection, select(ranked).where(ranked.c.place == 1))
    if not rows:
        raise _no_fact(fact_id)
    return rows[0]


def _no_fact(text: str) -> NotFoundError:
    return NotFoundError(f"there is no fact {text[:60]!r}", hint="errata facts lists them")


def _facts(candidates: Select[Any]) -> Select[Any]:
    """Select the correction in force of each fact, with the value in the weights of head."""
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
    """Select corrections ranked in their fact: in force first, confirmations last, each newest first."""
    rank = case(
        (corrections.c.state.in_(_CURRENT), 0), (corrections.c.state == CorrectionState.CONFIRMED, 2), else_=1
    )
    order = (rank, corrections.c.order_key.desc(), corrections.c.seq.desc())
    place = func.row_number().over(partition_by=corrections.c.fact_id, order_by=order)
    first = func.min(corrections.c.seq).over(partition_by=corrections.c.fact_id)
    return select(corrections, place.label("place"), first.label("first_seq"))


def _candidates(matches: dict[str, Any]) -> str:
    lines = [f"{fact} {row.subject}: {row.relation}" for fact, row in list(matches.items())[:_SHOWN]]
    more = [f"and {len(matches) - _SHOWN} more"] if len(matches) > _SHOWN else []
    return "use the id: " + "; ".join(lines + more)
