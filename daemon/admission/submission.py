"""Corrections that people and programs hand in: all of a delivery is checked before any of it is admitted."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from daemon.admission.admit import OPERATOR_TRUST, admit_arrivals
from daemon.admission.policy import OPEN, Policy
from daemon.admission.record import Decision, arrive
from daemon.core.clock import to_text
from daemon.core.corrections import Correction, from_mapping
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import deliveries
from daemon.core.names import OPERATOR, QuarantineReason
from daemon.core.relations.table import complete

MAX_ITEMS = 10_000
_REMEMBERED = timedelta(days=7)  # how long a delivery's key answers for it


@dataclass(frozen=True)
class Delivery:
    """Who hands corrections in, under which feed and trust; ``key`` makes handing in again harmless."""

    who: str
    feed: str = OPERATOR
    trust: int = OPERATOR_TRUST
    key: str = ""
    policy: Policy = OPEN


def submit_all(ledger: Ledger, model: str, values: Sequence[Any], delivery: Delivery) -> list[dict[str, Any]]:
    """Admit corrections given as decoded JSON in one transaction; returns outcome and ids of each, in order.

    Without times they are true from now on, the later ones of a delivery a moment later. The same ones again
    do no harm: what the ledger has is a duplicate or a confirmation, and a key gives the first answer again.

    Raises:
        InvalidCorrectionError: one is no correction for ``model``; its message says which; or the key was
        used for something else. None was stored.
    """
    if len(values) > MAX_ITEMS:
        raise InvalidCorrectionError(QuarantineReason.TOO_LARGE, f"more than {MAX_ITEMS} corrections at once")
    checked = []
    for index, value in enumerate(values):
        try:
            checked.append(_checked(ledger, model, value))
        except InvalidCorrectionError as error:
            place = f"item {index + 1}: " if len(values) > 1 else ""
            raise InvalidCorrectionError(error.reason, place + error.message, hint=error.hint) from error
    with ledger.write() as connection:
        if (answer := _remembered(connection, ledger, delivery, values)) is not None:
            return answer
        rows = [_row(decision) for decision in _admit(connection, ledger, checked, delivery)]
        _remember(connection, ledger, delivery, values, rows)
    return rows


def _admit(
    connection: Connection, ledger: Ledger, checked: Sequence[Correction], delivery: Delivery
) -> list[Decision]:
    now = ledger.clock.now()
    arrivals = []
    for index, said in enumerate(checked):
        if said.effective_at is None and said.observed_at is None:
            said = said.model_copy(update={"effective_at": now + timedelta(microseconds=index)})  # noqa: PLW2901
        arrivals.append(arrive(said, f"by {delivery.who}", delivery.trust, now, now))
    decisions = admit_arrivals(connection, now, delivery.feed, delivery.trust, arrivals, delivery.policy)
    counts: dict[str, Any] = {
        str(outcome): n for outcome, n in Counter(one.outcome for one in decisions).items()
    }
    if len(decisions) == 1:
        (one,) = decisions
        details: dict[str, Any] = {"outcome": one.outcome, "fact": one.fact_id, "feed": delivery.feed}
        audit.record(connection, now, delivery.who, "submit", one.correction_id or "", one.message, details)
    elif decisions:
        target = f"{len(decisions)} corrections"
        details = {"outcomes": dict(counts), "feed": delivery.feed, "first": decisions[0].correction_id}
        audit.record(connection, now, delivery.who, "submit", target, "", details)
    return decisions


def _remembered(
    connection: Connection, ledger: Ledger, delivery: Delivery, values: Sequence[Any]
) -> list[dict[str, Any]] | None:
    """What was answered to this key before; None: it is new."""
    if not delivery.key:
        return None
    old = to_text(ledger.clock.now() - _REMEMBERED)
    connection.execute(delete(deliveries).where(deliveries.c.at < old))
    mine = (deliveries.c.feed == delivery.feed) & (deliveries.c.key == delivery.key)
    row = connection.execute(select(deliveries).where(mine)).mappings().one_or_none()
    if row is None:
        return None
    if row["digest"] != _digest(values):
        raise InvalidCorrectionError(
            QuarantineReason.SCHEMA,
            "this idempotency key was used for another delivery",
            hint="use a new key",
        )
    return list(row["answer"])


def _remember(
    connection: Connection,
    ledger: Ledger,
    delivery: Delivery,
    values: Sequence[Any],
    rows: list[dict[str, Any]],
) -> None:
    if delivery.key:
        known = {"feed": delivery.feed, "key": delivery.key, "digest": _digest(values), "answer": rows}
        connection.execute(insert(deliveries).values(**known, at=to_text(ledger.clock.now())))


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_items(text: str) -> list[Any]:
    """The items of a document: one JSON object, a list of them, or one object a line.

    Raises:
        InvalidCorrectionError: it is none of these; the message names the line.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _read_lines(text)
    return value if isinstance(value, list) else [value]


def _read_lines(text: str) -> list[Any]:
    items = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            items.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InvalidCorrectionError(
                QuarantineReason.NOT_JSON,
                f"line {number} is not JSON: {error}",
                hint="one JSON object a line, or one JSON list",
            ) from error
    return items


def _checked(ledger: Ledger, model: str, value: Any) -> Correction:
    """The item as a correction; one that names no model is meant for ``model``."""
    if not isinstance(value, Mapping):
        raise InvalidCorrectionError(QuarantineReason.SCHEMA, "a correction is a JSON object")
    named = {"model": model, **value}
    named = complete(named)
    correction = from_mapping(named)
    if correction.model != model:
        raise InvalidCorrectionError(
            QuarantineReason.SCHEMA,
            f"there is no model {correction.model!r} here",
            hint=f"this one is {model!r}; leave the key out",
        )
    now = ledger.clock.now()
    arrive(correction, "", 0, now, now)  # refuses what is dated in the future
    return correction


def _row(decision: Decision) -> dict[str, Any]:
    return {
        "outcome": str(decision.outcome),
        "correction": decision.correction_id,
        "fact": decision.fact_id,
        "message": decision.message,
    }
