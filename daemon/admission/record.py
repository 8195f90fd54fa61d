"""Writing parsed corrections into the ledger: known ones dropped, the rest placed and stored in bulk."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from sqlalchemy import Connection, bindparam, insert, select, update

from daemon.admission.newest_wins import CONSIDERED, Fact, Placing, Standing
from daemon.core.clock import to_text
from daemon.core.corrections import MAX_ITEM_BYTES, Correction, identify
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections, quarantine
from daemon.core.names import AdmissionOutcome, CorrectionState, QuarantineReason, QuarantineState
from daemon.core.text import printable
from daemon.feeds.base import RawItem

Objection = Callable[[Correction, int], tuple[QuarantineReason, str] | None]
"""What speaks against letting a correction of a feed's trust in; None: nothing."""
_FUTURE = timedelta(days=1)  # clocks differ; a statement of a later date would win over all until then
_RAW_CHARACTERS = 2_000
_WHOLE_CHARACTERS = 6 * MAX_ITEM_BYTES  # every character an escape
_POSITION_CHARACTERS = 128


@dataclass(frozen=True)
class Decision:
    """What became of one item; ``reason`` is the word of its quarantine, ``message`` is for people."""

    position: str
    outcome: AdmissionOutcome
    correction_id: str | None = None
    fact_id: str | None = None
    reason: QuarantineReason | None = None
    message: str = ""

    @classmethod
    def refusal(cls, item: RawItem, error: InvalidCorrectionError) -> Self:
        """The decision on an item that cannot be admitted."""
        reason = QuarantineReason(error.reason)
        return cls(item.position, AdmissionOutcome.QUARANTINED, reason=reason, message=error.message)


@dataclass(frozen=True)
class Arrival:
    """A valid correction on its way in, with its identity computed once."""

    correction: Correction
    position: str
    id: str
    fact_id: str
    order_key: str


def arrive(
    correction: Correction, position: str, trust: int, clock_now: datetime, moment: datetime
) -> Arrival:
    """Give a correction its identity and order; one without times counts as said at ``moment``.

    Raises:
        InvalidCorrectionError: dated more than a day after ``clock_now``.
    """
    for name, at in (("effective_at", correction.effective_at), ("observed_at", correction.observed_at)):
        if at is not None and at > clock_now + _FUTURE:
            raise InvalidCorrectionError(
                QuarantineReason.FUTURE, f"{name} is {to_text(at)}, more than a day from now"
            )
    known_by = identify(correction, trust, moment)
    return Arrival(correction, position, known_by.correction_id, known_by.fact_id, known_by.order_key)


def register(
    connection: Connection,
    now: datetime,
    feed: str,
    trust: int,
    arrivals: Sequence[Arrival],
    objection: Objection = lambda _said, _trust: None,
) -> list[Decision]:
    """Store what the ledger does not have yet, each in the state that newest-wins gives it.

    What ``objection`` has something against is stored too, and waits in quarantine.
    """
    known = _known(connection, (arrival.id for arrival in arrivals))
    facts = load_facts(connection, (a.fact_id for a in arrivals if a.id not in known))
    rows: dict[str, dict[str, Any]] = {}
    beaten: dict[str, str] = {}
    decisions: list[Decision] = []
    for arrival in arrivals:
        if arrival.id in known:
            outcome = AdmissionOutcome.DUPLICATE
            decisions.append(Decision(arrival.position, outcome, arrival.id, arrival.fact_id))
            continue
        known.add(arrival.id)
        against = objection(arrival.correction, trust)
        if against is not None:
            reason, message = against
            state = CorrectionState.QUARANTINED
            rows[arrival.id] = _row(arrival, now, feed, trust, state, message)
            outcome = AdmissionOutcome.QUARANTINED
            decisions.append(
                Decision(arrival.position, outcome, arrival.id, arrival.fact_id, reason, message)
            )
            continue
        placing = facts[arrival.fact_id].place(_standing(arrival))
        rows[arrival.id] = _row(arrival, now, feed, trust, placing.state, placing.reason)
        beaten |= dict.fromkeys(placing.beaten, arrival.id)
        decisions.append(_placed(arrival, placing))
    for loser in beaten.keys() & rows.keys():
        rows[loser] |= {"state": CorrectionState.SUPERSEDED, "reason": f"by {beaten[loser]}"}
    if rows:
        connection.execute(insert(corrections), list(rows.values()))
    supersede(connection, {loser: winner for loser, winner in beaten.items() if loser not in rows})
    hold(connection, now, feed, [(b"", decision) for decision in decisions if decision.reason is not None])
    return decisions


def _placed(arrival: Arrival, placing: Placing) -> Decision:
    reason = QuarantineReason.REVERTED_BEFORE if placing.state is CorrectionState.QUARANTINED else None
    return Decision(arrival.position, placing.outcome, arrival.id, arrival.fact_id, reason, placing.reason)


def load_facts(connection: Connection, fact_ids: Iterable[str]) -> defaultdict[str, Fact]:
    """What newest-wins needs to know about facts; one that the ledger has not heard of is empty."""
    facts: defaultdict[str, Fact] = defaultdict(Fact)
    columns = (
        corrections.c.id,
        corrections.c.fact_id,
        corrections.c.order_key,
        corrections.c.object,
        corrections.c.prompt,
        corrections.c.state,
    )
    for ids in in_chunks(fact_ids):
        query = select(*columns).where(
            corrections.c.fact_id.in_(ids), corrections.c.state.in_(sorted(CONSIDERED))
        )
        for row in connection.execute(query):
            standing = Standing(row.id, row.order_key, row.object, row.prompt, CorrectionState(row.state))
            facts[row.fact_id].rows.append(standing)
    return facts


def supersede(connection: Connection, winners: dict[str, str]) -> None:
    """Mark stored corrections (keys) as beaten by newer ones (values)."""
    if not winners:
        return
    change = (
        update(corrections)
        .where(corrections.c.id == bindparam("loser"))
        .values(state=CorrectionState.SUPERSEDED, reason=bindparam("why"))
    )
    connection.execute(change, [{"loser": loser, "why": f"by {by}"} for loser, by in winners.items()])


def hold(connection: Connection, now: datetime, feed: str, refused: Sequence[tuple[bytes, Decision]]) -> None:
    """Put refused items into quarantine, each with what it was made of."""
    rows = [
        {
            "feed": feed,
            "position": printable(decision.position, _POSITION_CHARACTERS),
            "reason": decision.reason,
            "message": decision.message,
            "raw": printable(raw, _raw_limit(decision)),
            "correction_id": decision.correction_id,
            "state": QuarantineState.HELD,
            "at": to_text(now),
        }
        for raw, decision in refused
    ]
    if rows:
        connection.execute(insert(quarantine), rows)


def _raw_limit(decision: Decision) -> int:
    """A valid item that only came too early is kept whole, to be let in later."""
    return _WHOLE_CHARACTERS if decision.reason is QuarantineReason.FUTURE else _RAW_CHARACTERS


def _known(connection: Connection, ids: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for chunk in in_chunks(ids):
        found.update(
            connection.execute(select(corrections.c.id).where(corrections.c.id.in_(chunk))).scalars()
        )
    return found


def _standing(arrival: Arrival) -> Standing:
    said = arrival.correction
    return Standing(arrival.id, arrival.order_key, said.object, said.prompt, CorrectionState.PENDING)


def _row(
    arrival: Arrival, now: datetime, feed: str, trust: int, state: CorrectionState, reason: str
) -> dict[str, Any]:
    said = arrival.correction
    return {
        "id": arrival.id,
        "fact_id": arrival.fact_id,
        "model": said.model,
        "subject": said.subject,
        "relation": said.relation,
        "prompt": said.prompt,
        "object": said.object,
        "paraphrases": list(said.paraphrases),
        "neighborhood": list(said.neighborhood),
        "source": said.source,
        "feed": feed,
        "trust": trust,
        "order_key": arrival.order_key,
        "admitted_at": to_text(now),
        "state": state,
        "reason": reason,
    }
