"""Retract a fact: submit a correction without object that is newer than the fact's value."""

from datetime import timedelta
from typing import Any

from daemon.admission.submission import submit
from daemon.core.clock import to_text
from daemon.core.corrections import effective_time
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.views.facts import current_correction, find_fact

_LONGEST_RELATION = 200  # characters, the limit of ``Correction.relation``


def retract(ledger: Ledger, model: str, name: str, who: str, reason: str) -> dict[str, Any]:
    """Take one fact out of the weights, effective now.

    ``name`` is the fact's id, a prefix of it, or its subject. Where the fact's value is dated later than now,
    the retraction is dated just after it. No such fact, or several, raise NotFoundError.
    """
    with ledger.read() as connection:
        fact_id = find_fact(connection, name, model)
        current = current_correction(connection, fact_id)
    just_after = effective_time(current["order_key"]) + timedelta(microseconds=1)
    # a relation that is longer was derived from a prompt, and is derived from it again
    slot = "relation" if len(current["relation"]) <= _LONGEST_RELATION else "prompt"
    wanted = {
        "subject": current["subject"],
        slot: current[slot],
        "object": None,
        "source": "operator",
        "effective_at": to_text(max(ledger.clock.now(), just_after)),
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
