"""Corrections that people and programs hand in: all of a delivery is checked before any of it is admitted."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from daemon.admission import OPERATOR, submit
from daemon.core.corrections import from_mapping
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger import Ledger
from daemon.core.names import QuarantineReason
from daemon.register import Decision, arrive
from daemon.relations.table import complete

MAX_ITEMS = 10_000


def submit_all(
    ledger: Ledger, model: str, values: Sequence[Any], who: str, feed: str = OPERATOR
) -> list[dict[str, Any]]:
    """Admit corrections given as decoded JSON; returns outcome and ids of each, in their order.

    Handing the same ones in again does no harm: what the ledger has is a duplicate or a confirmation.

    Raises:
        InvalidCorrectionError: one is no correction for ``model``; its message says which. None was stored.
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
    return [_row(submit(ledger, value, who, feed)) for value in checked]


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


def _checked(ledger: Ledger, model: str, value: Any) -> Mapping[str, Any]:
    """The item as admission will take it; one that names no model is meant for ``model``."""
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
    return named


def _row(decision: Decision) -> dict[str, Any]:
    return {
        "outcome": str(decision.outcome),
        "correction": decision.correction_id,
        "fact": decision.fact_id,
        "message": decision.message,
    }
