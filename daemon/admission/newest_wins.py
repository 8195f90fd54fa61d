"""Newest wins: decide where a correction goes among those that the ledger has about the same fact.

Pure decisions over a few rows. Admission and release read the rows and write what was decided. Whatever the
order of arrival, the correction with the greatest order key holds the fact at the end.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from daemon.core.names import AdmissionOutcome, CorrectionState, QuarantineReason

WAITING = frozenset({CorrectionState.PENDING, CorrectionState.QUEUED})
CARRYING = WAITING | {CorrectionState.APPLIED}
CONSIDERED = CARRYING | {CorrectionState.CONFIRMED, CorrectionState.REVERTED}
"""States of the corrections that a new one is compared with; those in other states have lost already."""
TAKEN_BACK = frozenset({CorrectionState.REVERTED, CorrectionState.QUARANTINED})
"""States in which a contender was taken out of the weights: what says the same needs an operator."""


@dataclass
class Contender:
    """One correction as newest-wins sees it, where an ``object`` of None is a retraction."""

    id: str
    order_key: str
    object: str | None
    prompt: str
    state: CorrectionState

    def agrees_with(self, other: "Contender") -> bool:
        """Whether both would make the same edit."""
        if self.object is None or other.object is None:
            return self.object is other.object
        return self.object.casefold() == other.object.casefold() and self.prompt == other.prompt


@dataclass(frozen=True)
class Placement:
    """Where a correction goes, why, a message for people, and which waiting ones it beats."""

    outcome: AdmissionOutcome
    state: CorrectionState
    message: str = ""
    beaten: tuple[str, ...] = ()
    quarantine_reason: QuarantineReason | None = None


def to_quarantine(reason: QuarantineReason, message: str) -> Placement:
    """Return the placement of a correction that is stored and waits for an operator."""
    state = CorrectionState.QUARANTINED
    return Placement(AdmissionOutcome.QUARANTINED, state, message, quarantine_reason=reason)


@dataclass
class Contenders:
    """The corrections of one fact whose state is in ``CONSIDERED``, and those that bisect quarantined."""

    rows: list[Contender] = field(default_factory=list)

    def place(self, new: Contender, *, may_return: bool = False) -> Placement:
        """Decide where ``new`` goes, and keep it among the contenders of the next one.

        ``may_return`` admits a value that a rollback took out, because an operator released it.
        """
        placement = self._decide(new, may_return=may_return)
        new.state = placement.state
        if placement.state in CONSIDERED:
            self.rows.append(new)
        if placement.beaten:
            self.rows = [row for row in self.rows if row.id not in placement.beaten]
        return placement

    def _decide(self, new: Contender, *, may_return: bool) -> Placement:
        if not self.rows and new.object is not None:  # the common case: the first statement about a fact
            return Placement(AdmissionOutcome.ACCEPTED, CorrectionState.PENDING)
        carrier = _newest(row for row in self.rows if row.state in CARRYING)
        confirmed = _newest(row for row in self.rows if _still_confirms(row, carrier))
        current = _newest(row for row in (carrier, confirmed) if row is not None)
        if current is not None and new.order_key < current.order_key:
            return Placement(AdmissionOutcome.STALE, CorrectionState.SUPERSEDED, f"older than {current.id}")
        older = [row for row in self.rows if row.order_key < new.order_key]
        older_confirmed = [row for row in older if row.state is CorrectionState.CONFIRMED]
        if new.object is None if current is None else new.agrees_with(current):
            message = f"as {current.id}" if current is not None else "the fact is not held"
            state = CorrectionState.CONFIRMED
            return Placement(AdmissionOutcome.CONFIRMED, state, message, _ids(older_confirmed))
        taken_back = _newest(row for row in self.rows if row.state in TAKEN_BACK)
        if taken_back is not None and not may_return and new.agrees_with(taken_back):
            message = f"a rollback took {taken_back.id} back, which says the same"
            return to_quarantine(QuarantineReason.REVERTED_BEFORE, message)
        waiting = [row for row in older if row.state in WAITING]
        followers = [row for row in older_confirmed if any(row.agrees_with(one) for one in waiting)]
        message = f"over {carrier.id}" if carrier is not None else ""
        beaten = _ids(waiting) + _ids(followers)
        return Placement(AdmissionOutcome.ACCEPTED, CorrectionState.PENDING, message, beaten)


def _ids(rows: Iterable[Contender]) -> tuple[str, ...]:
    return tuple(row.id for row in rows)


def _newest(rows: Iterable[Contender]) -> Contender | None:
    return max(rows, key=lambda row: row.order_key, default=None)


def _still_confirms(row: Contender, carrier: Contender | None) -> bool:
    """Whether a confirmed value is still held: a rollback or a guard may have taken it out of the weights."""
    if row.state is not CorrectionState.CONFIRMED:
        return False
    return row.object is None if carrier is None else row.agrees_with(carrier)
