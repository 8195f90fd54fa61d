"""Newest wins: where a correction goes among those that the ledger has about the same fact.

Pure decisions over a few rows; admission and release read them and write what was decided. Whatever the
order of arrival, the greatest order key holds the fact at the end.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from daemon.core.names import AdmissionOutcome, CorrectionState

CARRYING = frozenset({CorrectionState.PENDING, CorrectionState.QUEUED, CorrectionState.APPLIED})
WAITING = frozenset({CorrectionState.PENDING, CorrectionState.QUEUED})
CONSIDERED = CARRYING | {CorrectionState.CONFIRMED, CorrectionState.REVERTED}
"""The states that matter to a newcomer; all others have lost already."""


@dataclass
class Standing:
    """What newest-wins needs to know of one correction; an ``object`` of None is a retraction."""

    id: str
    order_key: str
    object: str | None
    prompt: str
    state: CorrectionState

    def says_as(self, other: "Standing") -> bool:
        """Whether both ask the same of the weights."""
        if self.object is None or other.object is None:
            return self.object is other.object
        return self.object.casefold() == other.object.casefold() and self.prompt == other.prompt


@dataclass(frozen=True)
class Placing:
    """Where a correction goes, why, and which waiting ones it beats."""

    outcome: AdmissionOutcome
    state: CorrectionState
    reason: str = ""
    beaten: tuple[str, ...] = ()


@dataclass
class Fact:
    """The corrections of one fact that are in a state of ``CONSIDERED``."""

    rows: list[Standing] = field(default_factory=list)

    def place(self, new: Standing, *, may_return: bool = False) -> Placing:
        """Decide about ``new`` and remember the decision for the next one.

        ``may_return`` lets a value back in that a rollback took out: an operator said so.
        """
        placing = self._decide(new, may_return=may_return)
        new.state = placing.state
        if placing.state in CONSIDERED:
            self.rows.append(new)
        if placing.beaten:
            self.rows = [row for row in self.rows if row.id not in placing.beaten]
        return placing

    def _decide(self, new: Standing, *, may_return: bool) -> Placing:
        if not self.rows and new.object is not None:  # most are about a fact of which nothing was heard yet
            return Placing(AdmissionOutcome.ACCEPTED, CorrectionState.PENDING)
        carrier = _newest(row for row in self.rows if row.state in CARRYING)
        confirmed = _newest(row for row in self.rows if _still_confirms(row, carrier))
        current = _newest(row for row in (carrier, confirmed) if row is not None)
        if current is not None and new.order_key < current.order_key:
            return Placing(AdmissionOutcome.STALE, CorrectionState.SUPERSEDED, f"older than {current.id}")
        if new.object is None if current is None else new.says_as(current):
            reason = f"as {current.id}" if current is not None else "the fact is not held"
            beaten = [row for row in self._older(new) if row.state is CorrectionState.CONFIRMED]
            return Placing(AdmissionOutcome.CONFIRMED, CorrectionState.CONFIRMED, reason, _ids(beaten))
        reverted = _newest(row for row in self.rows if row.state is CorrectionState.REVERTED)
        if reverted is not None and not may_return and new.says_as(reverted):
            reason = f"a rollback took {reverted.id} back, which says the same"
            return Placing(AdmissionOutcome.QUARANTINED, CorrectionState.QUARANTINED, reason)
        waiting = [row for row in self._older(new) if row.state in WAITING]
        theirs = [
            row
            for row in self._older(new)
            if row.state is CorrectionState.CONFIRMED and any(row.says_as(beaten) for beaten in waiting)
        ]
        reason = f"over {carrier.id}" if carrier is not None else ""
        return Placing(
            AdmissionOutcome.ACCEPTED, CorrectionState.PENDING, reason, _ids(waiting) + _ids(theirs)
        )

    def _older(self, new: Standing) -> list[Standing]:
        return [row for row in self.rows if row.order_key < new.order_key]


def _ids(rows: Iterable[Standing]) -> tuple[str, ...]:
    return tuple(row.id for row in rows)


def _newest(rows: Iterable[Standing]) -> Standing | None:
    return max(rows, key=lambda row: row.order_key, default=None)


def _still_confirms(row: Standing, carrier: Standing | None) -> bool:
    """Whether what a CONFIRMED correction confirmed still stands; a rollback or a guard may have taken it."""
    if row.state is not CorrectionState.CONFIRMED:
        return False
    return row.object is None if carrier is None else row.says_as(carrier)
