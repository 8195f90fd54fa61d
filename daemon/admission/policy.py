"""Decide what may be admitted without a human, and quarantine the rest.

Lists and trust judge one correction by itself. Quorum and contradiction judge all that was stated about a
fact, so that the order of arrival does not matter; they are applied after every chunk, to the facts in it.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from sqlalchemy import Connection, RowMapping, select

from daemon.admission.quarantine import place_again
from daemon.admission.record import Decision, quarantine
from daemon.core.config.feeds import AdmissionConfig
from daemon.core.corrections import Correction, effective_time, parse_item
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger.corrections import set_state, supersede
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.quarantine import close_entry
from daemon.core.ledger.schema import corrections
from daemon.core.ledger.schema import quarantine as entries
from daemon.core.names import AdmissionOutcome, CorrectionState, QuarantineReason, QuarantineState
from daemon.core.relations.table import complete, find
from daemon.feeds.base import RawItem


@dataclass(frozen=True)
class Policy:
    """The rules of ``[admission]``, with relations by their names and all names case-folded."""

    allow_relations: frozenset[str] = frozenset()
    deny_relations: frozenset[str] = frozenset()
    deny_subjects: frozenset[str] = frozenset()
    protected_subjects: frozenset[str] = frozenset()
    high_impact: frozenset[str] = frozenset()
    quorum: int = 2
    approve_below_trust: int = 0
    contradiction_seconds: float = 0.0

    @classmethod
    def of(cls, config: AdmissionConfig) -> Self:
        """Return the rules of a configuration."""
        return cls(
            allow_relations=_named(config.allow_relations),
            deny_relations=_named(config.deny_relations),
            deny_subjects=_folded(config.deny_subjects),
            protected_subjects=_folded(config.protected_subjects),
            high_impact=_named(config.high_impact),
            quorum=config.quorum,
            approve_below_trust=config.approve_below_trust,
            contradiction_seconds=config.contradiction_seconds,
        )

    def objection(self, correction: Correction, trust: int) -> tuple[QuarantineReason, str] | None:
        """Return why a correction may not be admitted by itself, or None."""
        subject, relation = correction.subject.casefold(), correction.relation.casefold()
        not_allowed = bool(self.allow_relations) and relation not in self.allow_relations
        low = f"trust {trust} is below {self.approve_below_trust}; a human decides"
        agree = f"waits for {self.quorum} sources that agree"
        rules = (
            (subject in self.deny_subjects, QuarantineReason.DENIED, "the subject is on the deny list"),
            (relation in self.deny_relations, QuarantineReason.DENIED, "the relation is on the deny list"),
            (not_allowed, QuarantineReason.DENIED, "the relation is not on the allow list"),
            (subject in self.protected_subjects, QuarantineReason.PROTECTED, "protected; a human decides"),
            (trust < self.approve_below_trust, QuarantineReason.LOW_TRUST, low),
            (relation in self.high_impact, QuarantineReason.QUORUM, agree),
        )
        return next(((reason, message) for holds, reason, message in rules if holds), None)


OPEN = Policy()  # admits every well-formed correction


def verdict(item: RawItem, trust: int, model: str, policy: Policy) -> dict[str, Any]:
    """Return what an item states and whether it would be admitted by itself, without storing it."""
    row: dict[str, Any] = {"position": item.position}
    try:
        correction = parse_item(item.raw, model, complete)
    except InvalidCorrectionError as error:
        return row | {"verdict": f"{error.reason}: {error.message}"}
    refusal = policy.objection(correction, trust)
    row["verdict"] = "ok" if refusal is None else f"{refusal[0]}: {refusal[1]}"
    return row | {name: getattr(correction, name) for name in ("subject", "relation", "object", "prompt")}


def apply_fact_rules(
    connection: Connection, now: datetime, policy: Policy, decisions: Iterable[Decision]
) -> dict[str, Decision]:
    """Apply quorum and contradiction to a chunk's facts, and return the changed decisions by id."""
    if not policy.high_impact and not policy.contradiction_seconds:
        return {}
    facts = {one.fact_id for one in decisions if one.fact_id is not None}
    changed: dict[str, Decision] = {}
    for rows in _statements(connection, facts).values():
        if rows[0]["relation"].casefold() in policy.high_impact:
            changed |= _release_agreed(connection, policy, rows)
    if policy.contradiction_seconds:
        for rows in _statements(connection, facts).values():
            changed |= _quarantine_contradicted(connection, now, policy, rows)
    return changed


def _release_agreed(connection: Connection, policy: Policy, rows: list[RowMapping]) -> dict[str, Decision]:
    """Release the corrections on which enough different sources agree that came by different feeds."""
    backers: defaultdict[str | None, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        backers[_value(row)].add((row["feed"], row["source"]))
    released = {}
    for row in rows:
        agreeing = backers[_value(row)]
        count = min(len({feed for feed, _ in agreeing}), len({source for _, source in agreeing}))
        if count < policy.quorum or row["state"] != CorrectionState.QUARANTINED:
            continue
        entry = _open_entry(connection, row["id"], QuarantineReason.QUORUM)
        if entry is not None:
            released[row["id"]] = place_again(connection, entry, f"{count} sources agree")
            close_entry(connection, entry["id"], QuarantineState.RELEASED)
    return released


def _quarantine_contradicted(
    connection: Connection, now: datetime, policy: Policy, rows: list[RowMapping]
) -> dict[str, Decision]:
    """Quarantine a fact's newest statement where another source contradicts it.

    That source is trusted no less, and its statement became true at about the same time. What is older than
    a disputed statement has lost, whether it came before it or after.
    """
    reason = QuarantineReason.CONTRADICTION
    rows = [
        row
        for row in rows
        if row["state"] != CorrectionState.QUARANTINED or _open_entry(connection, row["id"], reason)
    ]
    newest = max(rows, key=lambda row: row["order_key"], default=None)
    window = timedelta(seconds=policy.contradiction_seconds)
    against = next((row for row in rows if newest and _contradicts(row, newest, window)), None)
    if newest is None or against is None:
        return {}
    undecided = (CorrectionState.PENDING, CorrectionState.CONFIRMED)
    lost = {row["id"]: newest["id"] for row in rows if row is not newest and row["state"] in undecided}
    supersede(connection, lost)
    if newest["state"] not in undecided:
        return {}
    message = f"{against['id']} of another source contradicts it within {window}"
    outcome = AdmissionOutcome.QUARANTINED
    decision = Decision("", outcome, newest["id"], newest["fact_id"], reason, message)
    set_state(connection, [newest["id"]], CorrectionState.QUARANTINED, message)
    quarantine(connection, now, newest["model"], newest["feed"], [(b"", decision)])
    return {newest["id"]: decision}


def _contradicts(row: RowMapping, newest: RowMapping, window: timedelta) -> bool:
    apart = effective_time(row["order_key"]) - effective_time(newest["order_key"])
    return (
        _value(row) != _value(newest)
        and row["source"] != newest["source"]
        and row["trust"] >= newest["trust"]
        and abs(apart) <= window
    )


def _statements(connection: Connection, facts: Iterable[str]) -> dict[str, list[RowMapping]]:
    """Return by fact all its corrections but those that a rollback took back, oldest first."""
    statements: defaultdict[str, list[RowMapping]] = defaultdict(list)
    for some in in_chunks(sorted(facts)):
        mine = corrections.c.fact_id.in_(some) & (corrections.c.state != CorrectionState.REVERTED)
        query = select(corrections).where(mine).order_by(corrections.c.order_key)
        for row in connection.execute(query).mappings():
            statements[row["fact_id"]].append(row)
    return statements


def _open_entry(connection: Connection, correction_id: str, reason: QuarantineReason) -> RowMapping | None:
    """Return the entry in which a correction waits for ``reason``, or None."""
    mine = (entries.c.correction_id == correction_id) & (entries.c.reason == reason)
    query = select(entries).where(mine, entries.c.state == QuarantineState.HELD).limit(1)
    return connection.execute(query).mappings().one_or_none()


def _value(row: RowMapping) -> str | None:
    return None if row["object"] is None else str(row["object"]).casefold()


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(" ".join(name.split()).casefold() for name in names)


def _named(names: Iterable[str]) -> frozenset[str]:
    """Return the names of relations, which the configuration may give by their property."""
    known = {name: find(name) for name in names}
    return _folded(row.name if row is not None else name for name, row in known.items())
