"""Corrections that people and programs submit: all of a submission is checked before any is admitted."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from daemon.admission.admit import admit_arrivals
from daemon.admission.policy import OPEN, Policy
from daemon.admission.record import OPERATOR_TRUST, Decision, arrive
from daemon.core.corrections import Correction, from_mapping
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger import audit
from daemon.core.ledger.deliveries import find_delivery, forget_deliveries, store_delivery
from daemon.core.ledger.ledger import Ledger
from daemon.core.names import OPERATOR, QuarantineReason
from daemon.core.relations.table import complete

MAX_ITEMS = 10_000
_REMEMBERED = timedelta(days=7)  # how long an idempotency key gives the same answer


@dataclass(frozen=True)
class Submission:
    """Who submits corrections, with which feed, trust and idempotency key."""

    who: str
    feed: str = OPERATOR
    trust: int = OPERATOR_TRUST
    key: str = ""
    policy: Policy = OPEN


def submit(
    ledger: Ledger, correction: Mapping[str, Any], who: str, feed: str = OPERATOR, trust: int = OPERATOR_TRUST
) -> Decision:
    """Admit one correction with an audit row, dated now where it bears no time.

    Raises InvalidCorrectionError and stores nothing if it is no correction, or is dated in the future.
    """
    checked = from_mapping(complete(dict(correction)))
    with ledger.write() as connection:
        now, submission = ledger.clock.now(), Submission(who, feed, trust)
        first = ledger.dating.first_of(1)
        (decision,) = _admit(connection, now, first, checked.model, [checked], submission)
    return decision


def submit_all(
    ledger: Ledger, model: str, values: Sequence[Any], submission: Submission
) -> list[dict[str, Any]]:
    """Admit corrections in one transaction, and return the outcome and ids of each in order.

    ``values`` are decoded JSON. Those without times are true from now on, each a microsecond after the one
    before. Submitting the same again does no harm: what the ledger has is a duplicate or a confirmation, and
    a key gives the first answer again.
    Raises InvalidCorrectionError and stores nothing if one is no correction for ``model`` (the message names
    it), or the key was used for something else.
    """
    if len(values) > MAX_ITEMS:
        raise InvalidCorrectionError(QuarantineReason.TOO_LARGE, f"more than {MAX_ITEMS} corrections at once")
    now = ledger.clock.now()
    checked = []
    for index, value in enumerate(values):
        try:
            checked.append(_checked(now, model, value))
        except InvalidCorrectionError as error:
            place = f"item {index + 1}: " if len(values) > 1 else ""
            raise InvalidCorrectionError(error.reason, place + error.message, hint=error.hint) from error
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    with ledger.write() as connection:
        now = ledger.clock.now()
        if (answer := _earlier_answer(connection, now, model, submission, digest)) is not None:
            return answer
        first = ledger.dating.first_of(len(checked))
        rows = [_row(one) for one in _admit(connection, now, first, model, checked, submission)]
        if submission.key:
            store_delivery(connection, now, model, submission.feed, submission.key, digest, rows)
    return rows


def _admit(
    connection: Connection,
    now: datetime,
    first: datetime,
    model: str,
    checked: Sequence[Correction],
    submission: Submission,
) -> list[Decision]:
    """Date those that bear no time from ``first`` on, and store and audit all."""
    who, feed, trust = submission.who, submission.feed, submission.trust
    arrivals = []
    for index, correction in enumerate(checked):
        dated = correction
        if correction.effective_at is None and correction.observed_at is None:
            dated = correction.model_copy(update={"effective_at": first + timedelta(microseconds=index)})
        arrivals.append(arrive(dated, f"by {who}", trust, now, now))
    decisions = admit_arrivals(connection, now, model, feed, trust, arrivals, submission.policy)
    if len(decisions) == 1:
        (one,) = decisions
        details: dict[str, Any] = {"outcome": one.outcome, "fact": one.fact_id, "feed": feed}
        audit.record(connection, now, who, "submit", one.correction_id or "", one.message, details)
    elif decisions:
        outcomes = Counter(str(one.outcome) for one in decisions)
        details = {"outcomes": dict(outcomes), "feed": feed, "first": decisions[0].correction_id}
        audit.record(connection, now, who, "submit", f"{len(decisions)} corrections", "", details)
    return decisions


def _earlier_answer(
    connection: Connection, now: datetime, model: str, submission: Submission, digest: str
) -> list[dict[str, Any]] | None:
    """Return what was answered to the submission's key before, or None."""
    if not submission.key:
        return None
    forget_deliveries(connection, now - _REMEMBERED)
    row = find_delivery(connection, model, submission.feed, submission.key)
    if row is None:
        return None
    if row["digest"] != digest:
        raise InvalidCorrectionError(
            QuarantineReason.SCHEMA,
            "this idempotency key was used for another delivery",
            hint="use a new key",
        )
    return list(row["answer"])


def read_items(text: str) -> list[Any]:
    """Parse a document that is one JSON object, a list of them, or one object per line.

    Raises InvalidCorrectionError, which names the line, if it is none of these.
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
                hint="give one JSON object per line, or one JSON list",
            ) from error
    return items


def _checked(now: datetime, model: str, value: Any) -> Correction:
    """Return an item as a correction of ``model``, or raise InvalidCorrectionError."""
    if not isinstance(value, Mapping):
        raise InvalidCorrectionError(QuarantineReason.SCHEMA, "a correction is a JSON object")
    correction = from_mapping(complete({"model": model, **value}))
    if correction.model != model:
        raise InvalidCorrectionError(
            QuarantineReason.SCHEMA,
            f"there is no model {correction.model!r} here",
            hint=f"this one is {model!r}; leave the key out",
        )
    arrive(correction, "", 0, now, now)  # refuses what is dated in the future
    return correction


def _row(decision: Decision) -> dict[str, Any]:
    """Return a decision as the API answers it."""
    return {
        "outcome": str(decision.outcome),
        "correction": decision.correction_id,
        "fact": decision.fact_id,
        "message": decision.message,
    }
