"""What is let in without a human: lists, tiers of trust, quorum and contradiction; the rest is held.

Lists and tiers look at one correction alone. Quorum and contradiction look at all that was said about a
fact, so that the order of arrival does not matter: they are settled after every chunk, for the facts that
it touched.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self

from sqlalchemy import Connection, RowMapping, select, update

from daemon.admission.quarantine import place_again
from daemon.admission.record import Decision, hold, supersede
from daemon.core.clock import from_text
from daemon.core.config.feeds import AdmissionConfig
from daemon.core.corrections import Correction, parse_item
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.schema import corrections, quarantine
from daemon.core.names import AdmissionOutcome, CorrectionState, QuarantineReason, QuarantineState
from daemon.core.relations.table import complete, find
from daemon.feeds.base import RawItem


@dataclass(frozen=True)
class Policy:
    """The rules of ``[admission]``, with relations by their names and everything in one case."""

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
        """The rules of a configuration."""
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

    def objection(self, said: Correction, trust: int) -> tuple[QuarantineReason, str] | None:
        """Why a correction may not go on by itself; None: it may."""
        subject, relation = said.subject.casefold(), said.relation.casefold()
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


def verdict(item: RawItem, trust: int, model: str, policy: Policy) -> dict[str, Any]:
    """What admission would say to an item by itself, and what the item says, without storing anything."""
    row: dict[str, Any] = {"position": item.position}
    try:
        said = parse_item(item.raw, model, complete)
    except InvalidCorrectionError as error:
        return row | {"verdict": f"{error.reason}: {error.message}"}
    against = policy.objection(said, trust)
    row["verdict"] = "ok" if against is None else f"{against[0]}: {against[1]}"
    return row | {name: getattr(said, name) for name in ("subject", "relation", "object", "prompt")}


OPEN = Policy()
"""Everything that is well formed may go on."""


def settle(
    connection: Connection, now: datetime, policy: Policy, decisions: Iterable[Decision]
) -> dict[str, Decision]:
    """Apply quorum and contradiction to the facts of a chunk; returns the decisions that changed, by id."""
    if not policy.high_impact and not policy.contradiction_seconds:
        return {}
    facts = {one.fact_id for one in decisions if one.fact_id is not None}
    changed: dict[str, Decision] = {}
    for rows in _said(connection, facts).values():
        if rows[0]["relation"].casefold() in policy.high_impact:
            changed |= _release_agreed(connection, policy, rows)
    if policy.contradiction_seconds:
        for rows in _said(connection, facts).values():
            changed |= _hold_contradicted(connection, now, policy, rows)
    return changed


def _release_agreed(connection: Connection, policy: Policy, rows: list[RowMapping]) -> dict[str, Decision]:
    """Let those in on which enough sources agree: different ones, that came by different feeds."""
    voices: defaultdict[str | None, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        voices[_value(row)].add((row["feed"], row["source"]))
    released = {}
    for row in rows:
        heard = voices[_value(row)]
        count = min(len({feed for feed, _ in heard}), len({source for _, source in heard}))
        if count < policy.quorum or row["state"] != CorrectionState.QUARANTINED:
            continue
        entry = _held(connection, row["id"], QuarantineReason.QUORUM)
        if entry is not None:
            released[row["id"]] = place_again(connection, entry, f"{count} sources agree")
            mine = quarantine.c.id == entry["id"]
            connection.execute(update(quarantine).where(mine).values(state=QuarantineState.RELEASED))
    return released


def _hold_contradicted(
    connection: Connection, now: datetime, policy: Policy, rows: list[RowMapping]
) -> dict[str, Decision]:
    """Hold a fact's newest statement that another source, trusted no less, contradicts at about its time.

    What is older than a disputed statement has lost, whether it came before it or after.
    """
    reason = QuarantineReason.CONTRADICTION
    rows = [
        row
        for row in rows
        if row["state"] != CorrectionState.QUARANTINED or _held(connection, row["id"], reason) is not None
    ]
    if not rows:
        return {}
    newest = max(rows, key=lambda row: row["order_key"])
    window = timedelta(seconds=policy.contradiction_seconds)
    against = [
        row
        for row in rows
        if _value(row) != _value(newest)
        and row["source"] != newest["source"]
        and row["trust"] >= newest["trust"]
        and abs(_effective(row) - _effective(newest)) <= window
    ]
    if not against:
        return {}
    undecided = (CorrectionState.PENDING, CorrectionState.CONFIRMED)
    lost = {row["id"]: newest["id"] for row in rows if row is not newest and row["state"] in undecided}
    supersede(connection, lost)
    if newest["state"] not in undecided:
        return {}
    message = f"{against[0]['id']} of another source contradicts it within {window}"
    outcome = AdmissionOutcome.QUARANTINED
    decision = Decision("", outcome, newest["id"], newest["fact_id"], reason, message)
    values = {"state": CorrectionState.QUARANTINED, "reason": message}
    connection.execute(update(corrections).where(corrections.c.id == newest["id"]).values(**values))
    hold(connection, now, newest["feed"], [(b"", decision)])
    return {newest["id"]: decision}


def _said(connection: Connection, facts: Iterable[str]) -> Mapping[str, list[RowMapping]]:
    """Everything that was ever said about facts, but for what an operator's rollback took back."""
    found: defaultdict[str, list[RowMapping]] = defaultdict(list)
    for some in in_chunks(sorted(facts)):
        query = select(corrections).where(
            corrections.c.fact_id.in_(some),
            corrections.c.state != CorrectionState.REVERTED,
        )
        for row in connection.execute(query.order_by(corrections.c.order_key)).mappings():
            found[row["fact_id"]].append(row)
    return found


def _held(connection: Connection, correction_id: str, reason: QuarantineReason) -> RowMapping | None:
    query = select(quarantine).where(
        quarantine.c.correction_id == correction_id,
        quarantine.c.reason == reason,
        quarantine.c.state == QuarantineState.HELD,
    )
    return connection.execute(query.limit(1)).mappings().one_or_none()


def _value(row: RowMapping) -> str | None:
    return None if row["object"] is None else str(row["object"]).casefold()


def _effective(row: RowMapping) -> datetime:
    return from_text(row["order_key"].split("|", 1)[0])


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(" ".join(name.split()).casefold() for name in names)


def _named(names: Iterable[str]) -> frozenset[str]:
    """Relations by name, however the configuration calls them."""
    known = {name: find(name) for name in names}
    return _folded(row.name if row is not None else name for name, row in known.items())
