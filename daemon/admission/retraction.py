"""«No longer true», said by an operator: a correction without object that wins over what was said before."""

from datetime import timedelta
from typing import Any

from daemon.admission.admit import submit
from daemon.core.clock import from_text, to_text
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.views.facts import current_correction, find_fact

_LONGEST_RELATION = 200  # characters that a feed may give


def retract(ledger: Ledger, model: str, name: str, who: str, reason: str) -> dict[str, Any]:
    """Take one fact out of the weights, effective now; ``name`` is its id, a prefix of it, or its subject.

    Where the fact's value is dated later than now, the retraction is dated just after it.

    Raises:
        NotFoundError: no such fact, or several.
    """
    with ledger.read() as connection:
        fact_id = find_fact(connection, name, model)
        current = current_correction(connection, fact_id)
    said_for = from_text(current["order_key"].split("|", 1)[0])
    effective = max(ledger.clock.now(), said_for + timedelta(microseconds=1))
    wanted = {
        "subject": current["subject"],
        **_slot(current),
        "object": None,
        "source": "operator",
        "effective_at": to_text(effective),
        "model": model,
    }
    decision = submit(ledger, wanted, who)
    details = {"correction": decision.correction_id, "outcome": str(decision.outcome)}
    with ledger.write() as connection:
        audit.record(connection, ledger.clock.now(), who, "retract", fact_id, reason, details)
    return {
        "fact": fact_id,
        "subject": current["subject"],
        "outcome": str(decision.outcome),
        "correction": decision.correction_id,
        "message": decision.message,
    }


def _slot(current: dict[str, Any]) -> dict[str, str]:
    """What names the fact beside its subject; a long relation came from a prompt."""
    if len(current["relation"]) <= _LONGEST_RELATION:
        return {"relation": current["relation"]}
    return {"prompt": current["prompt"]}
