"""Write parsed corrections into the ledger, in bulk and without those that it has."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from sqlalchemy import Connection, Row, select

from daemon.admission.newest_wins import CONSIDERED, Contender, Contenders, Placement, to_quarantine
from daemon.core.clock import to_text
from daemon.core.corrections import MAX_ITEM_BYTES, Correction, identify
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger.corrections import store_corrections, supersede
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.quarantine import QuarantineEntry, add_to_quarantine
from daemon.core.ledger.schema import corrections
from daemon.core.ledger.schema import quarantine as quarantine_table
from daemon.core.names import AdmissionOutcome, CorrectionState, QuarantineReason
from daemon.core.text import printable
from daemon.feeds.base import RawItem

OPERATOR_TRUST = 100  # the highest: who submits or releases by hand vouches for the statement
_FUTURE = timedelta(days=1)  # clocks differ; a later date would win over every statement until then
_RAW_CHARACTERS = 2_000  # of a refused item: enough for an operator to see what is wrong
_WHOLE_CHARACTERS = 6 * MAX_ITEM_BYTES  # the longest item with every character escaped
_POSITION_CHARACTERS = 128  # the width of the column

Objection = Callable[[Correction, int], tuple[QuarantineReason, str] | None]
"""A rule that returns why a correction of a feed's trust may not be admitted, or None."""


@dataclass(frozen=True)
class Decision:
    """What became of one item, with a ``reason`` where it was quarantined and a message for people."""

    position: str
    outcome: AdmissionOutcome
    correction_id: str | None = None
    fact_id: str | None = None
    reason: QuarantineReason | None = None
    message: str = ""

    @classmethod
    def refusal(cls, item: RawItem, error: InvalidCorrectionError) -> Self:
        """Return the decision on an item that is no valid correction."""
        reason = QuarantineReason(error.reason)
        return cls(item.position, AdmissionOutcome.QUARANTINED, reason=reason, message=error.message)


@dataclass(frozen=True)
class Arrival:
    """A valid correction that is being admitted, with its identity computed once."""

    correction: Correction
    position: str
    id: str
    fact_id: str
    order_key: str


def arrive(
    correction: Correction, position: str, trust: int, clock_now: datetime, moment: datetime
) -> Arrival:
    """Give a correction its identity and order, with ``moment`` for one without times.

    Raises InvalidCorrectionError for one that is dated more than a day after ``clock_now``.
    """
    for name, at in (("effective_at", correction.effective_at), ("observed_at", correction.observed_at)):
        if at is not None and at > clock_now + _FUTURE:
            raise InvalidCorrectionError(
                QuarantineReason.FUTURE, f"{name} is {to_text(at)}, more than a day from now"
            )
    known_by = identify(correction, trust, moment)
    return Arrival(correction, position, known_by.correction_id, known_by.fact_id, known_by.order_key)


def store_arrivals(
    connection: Connection,
    now: datetime,
    model: str,
    feed: str,
    trust: int,
    arrivals: Sequence[Arrival],
    objection: Objection = lambda _correction, _trust: None,
) -> list[Decision]:
    """Store the corrections that the ledger does not have, each in its state by newest-wins.

    One that ``objection`` refuses is stored too, in quarantine.
    """
    known = _known(connection, (arrival.id for arrival in arrivals))
    facts = load_contenders(connection, [one.fact_id for one in arrivals if one.id not in known])
    rows: dict[str, dict[str, Any]] = {}
    winners: dict[str, str] = {}
    decisions: list[Decision] = []
    for arrival in arrivals:
        if arrival.id in known:
            duplicate = AdmissionOutcome.DUPLICATE
            decisions.append(Decision(arrival.position, duplicate, arrival.id, arrival.fact_id))
            continue
        known.add(arrival.id)
        refusal = objection(arrival.correction, trust)
        placement = to_quarantine(*refusal) if refusal else facts[arrival.fact_id].place(_contender(arrival))
        rows[arrival.id] = _row(arrival, now, feed, trust, placement)
        winners |= dict.fromkeys(placement.beaten, arrival.id)
        outcome, reason, message = placement.outcome, placement.quarantine_reason, placement.message
        decisions.append(Decision(arrival.position, outcome, arrival.id, arrival.fact_id, reason, message))
    for loser in winners.keys() & rows.keys():
        rows[loser] |= {"state": CorrectionState.SUPERSEDED, "reason": f"by {winners[loser]}"}
    store_corrections(connection, list(rows.values()))
    supersede(connection, {loser: winner for loser, winner in winners.items() if loser not in rows})
    quarantine(connection, now, model, feed, [(b"", one) for one in decisions if one.reason is not None])
    return decisions


def load_contenders(connection: Connection, fact_ids: Sequence[str]) -> defaultdict[str, Contenders]:
    """Return by fact the corrections that a new one is compared with."""
    facts: defaultdict[str, Contenders] = defaultdict(Contenders)
    names = ("id", "fact_id", "order_key", "object", "prompt", "state")
    considered = corrections.c.state.in_(sorted(CONSIDERED))
    for ids in in_chunks(fact_ids):
        query = select(*(corrections.c[name] for name in names))
        for row in connection.execute(query.where(corrections.c.fact_id.in_(ids), considered)):
            state = CorrectionState(row.state)
            facts[row.fact_id].rows.append(Contender(row.id, row.order_key, row.object, row.prompt, state))
    for row in _culprits(connection, fact_ids):
        state = CorrectionState.QUARANTINED
        facts[row.fact_id].rows.append(Contender(row.id, row.order_key, row.object, row.prompt, state))
    return facts


def _culprits(connection: Connection, fact_ids: Sequence[str]) -> list[Row[Any]]:
    """The corrections of facts that bisect quarantined for the harm that they did."""
    names = ("id", "fact_id", "order_key", "object", "prompt")
    harmful = (corrections.c.state == CorrectionState.QUARANTINED) & (
        quarantine_table.c.reason == QuarantineReason.DAMAGE
    )
    rows: list[Row[Any]] = []
    for ids in in_chunks(fact_ids):
        query = select(*(corrections.c[name] for name in names)).distinct()
        joined = query.join(quarantine_table, quarantine_table.c.correction_id == corrections.c.id)
        rows += connection.execute(joined.where(corrections.c.fact_id.in_(ids), harmful))
    return rows


def quarantine(
    connection: Connection, now: datetime, model: str, feed: str, refused: Iterable[tuple[bytes, Decision]]
) -> None:
    """Put refused items of a model's feed into quarantine, each as its raw bytes and the decision on it."""
    add_to_quarantine(connection, now, [_entry(model, feed, raw, decision) for raw, decision in refused])


def _entry(model: str, feed: str, raw: bytes, decision: Decision) -> QuarantineEntry:
    # an item that is only dated too early for now is kept whole, so that it can be released later
    limit = _WHOLE_CHARACTERS if decision.reason is QuarantineReason.FUTURE else _RAW_CHARACTERS
    return QuarantineEntry(
        model=model,
        feed=feed,
        position=printable(decision.position, _POSITION_CHARACTERS),
        reason=str(decision.reason),
        message=decision.message,
        raw=printable(raw, limit),
        correction_id=decision.correction_id,
    )


def _known(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Return those of the ids that the ledger has."""
    queries = (select(corrections.c.id).where(corrections.c.id.in_(some)) for some in in_chunks(ids))
    return {known for query in queries for known in connection.execute(query).scalars()}


def _contender(arrival: Arrival) -> Contender:
    stated = arrival.correction
    return Contender(arrival.id, arrival.order_key, stated.object, stated.prompt, CorrectionState.PENDING)


def _row(arrival: Arrival, now: datetime, feed: str, trust: int, placement: Placement) -> dict[str, Any]:
    """Return a row of ``corrections``, whose columns have the names of a correction's fields."""
    return arrival.correction.model_dump(exclude={"effective_at", "observed_at"}) | {
        "id": arrival.id,
        "fact_id": arrival.fact_id,
        "feed": feed,
        "trust": trust,
        "order_key": arrival.order_key,
        "admitted_at": to_text(now),
        "state": placement.state,
        "reason": placement.message,
    }
