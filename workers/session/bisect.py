"""Which of the corrections that a rollback took back did the damage? Found by halves, on a copy of head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from daemon.core.errors import NotFoundError, ProbeError
from daemon.core.ledger import audit
from daemon.core.ledger.chain import get_revision
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow, Refusal
from daemon.core.ledger.schema import incidents, revisions
from daemon.core.ledger.settlement import reverted_by, settle_refused, wait_again
from daemon.core.log import get_logger
from daemon.core.names import ProbeResult, QuarantineReason, RevisionKind
from daemon.core.paired_tests import compare
from workers.probes import fast, full
from workers.session.rehearsal import Rehearsal

log = get_logger("errata.bisect")
Report = Callable[[int, int], None]
"""Called with how many corrections are judged, and how many there are."""


def unreported(_done: int, _total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Bisection:
    """What became of the corrections that the rollback ``revision`` held."""

    revision: int
    guilty: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    trials: int = 0


def bisect(rehearsal: Rehearsal, number: int | None, who: str, report: Report = unreported) -> Bisection:
    """Re-admit what the rollback ``number`` (none: the newest) holds, in halves, until the guilty are found.

    A half that leaves all probes good stays in the copy and the next one is tried on top of it, so what
    does harm only together is found as well: the one that tips the balance is the guilty one. Then the
    guilty go into quarantine and the rest waits for a batch, in one transaction. Head does not move here.

    Raises:
        NotFoundError: no such rollback, or it holds nothing. ProbeError: a probe is unknown, so nothing can
        be said; nothing has changed.
    """
    ledger, model = rehearsal.ledger, rehearsal.model
    with ledger.read() as connection:
        number = _rollback(connection, model, number)
        held = reverted_by(connection, model, number)
        names = _broken(connection, model, number)
    if not held:
        raise NotFoundError(f"revision {number} holds no reverted correction", hint="errata revisions")
    trial = _Trial(rehearsal, names, len(held), report)
    trial.admit(held)
    return _settle(ledger, model, number, who, trial)


class _Trial:
    """The copy so far, and what was found."""

    def __init__(self, rehearsal: Rehearsal, broken: set[str], total: int, report: Report) -> None:
        self._rehearsal, self._watch = rehearsal, rehearsal.config.watch
        self._total, self._report = total, report
        always = {probe.name for probe in fast(self._watch)}
        self._probes = [probe for probe in full(self._watch) if probe.name in always | broken]
        self.guilty: list[Refusal] = []
        self.good: list[str] = []
        self.trials = 0
        rehearsal.begin()
        self._before = {row.probe: row for row in rehearsal.measure(self._probes)}
        for row in self._before.values():
            _require_known(row)

    def admit(self, ids: Sequence[str]) -> None:
        """Take corrections into the copy; where that does harm, each half of them by itself."""
        found: list[str] = []

        def is_harmless(rows: Sequence[ProbeRow]) -> bool:
            found.extend(self._harm(rows))
            return not found

        self.trials += 1
        if self._rehearsal.attempt(ids, self._probes, is_harmless):
            self.good += ids
        elif len(ids) == 1:
            self.guilty.append(Refusal(ids[0], QuarantineReason.DAMAGE, f"with it {'; '.join(found)}"))
        else:
            middle = len(ids) // 2
            self.admit(ids[:middle])
            self.admit(ids[middle:])
        self._report(len(self.good) + len(self.guilty), self._total)

    def _harm(self, rows: Sequence[ProbeRow]) -> list[str]:
        """What is worse than it may be, by a bound or against the copy before any of it."""
        tests = sum(1 for row in rows if row.outcomes)
        found = []
        for row in rows:
            _require_known(row)
            before = self._before[row.probe]
            if before.result != ProbeResult.OK:
                continue  # head is beyond its bound already: no correction's fault
            if row.result == ProbeResult.DEGRADED:
                found.append(f"{row.probe} is {_shown(row.score)}, the bound is {_shown(row.bound)}")
                continue
            paired = compare(row.outcomes, before.outcomes, self._watch, self.trials)
            if paired is not None and paired.is_step(self._watch.significance / max(tests, 1)):
                found.append(f"{row.probe} loses {paired.loss:.3g} an item (p {paired.p_value:.1e})")
        return found


def _settle(ledger: Ledger, model: str, number: int, who: str, trial: _Trial) -> Bisection:
    """Quarantine the guilty and let the rest wait; what was released or beaten meanwhile stays as it is."""
    with ledger.write() as connection:
        now = ledger.clock.now()
        still = set(reverted_by(connection, model, number))
        guilty = [refusal for refusal in trial.guilty if refusal.correction_id in still]
        settle_refused(connection, now, guilty)
        why = f"did no harm when what revision {number} took back was tried again"
        waiting = wait_again(connection, trial.good, why)
        found = Bisection(number, [refusal.correction_id for refusal in guilty], waiting, trial.trials)
        details = {"guilty": found.guilty, "waiting": waiting, "trials": found.trials}
        reason = "; ".join(refusal.message for refusal in guilty)[:500] or "nothing of it did harm"
        audit.record(connection, now, who, "bisect", f"{model}@{number}", reason, details)
    log.info("bisected", model=model, revision=number, guilty=len(guilty), waiting=len(waiting))
    return found


def _rollback(connection: Connection, model: str, number: int | None) -> int:
    """The number of a rollback: the one that was named, or the newest."""
    if number is not None:
        if get_revision(connection, model, number)["kind"] != RevisionKind.ROLLBACK:
            raise NotFoundError(f"revision {number} is no rollback", hint="errata revisions lists them")
        return number
    query = select(revisions.c.number).where(
        revisions.c.model == model, revisions.c.kind == RevisionKind.ROLLBACK
    )
    newest = connection.execute(query.order_by(revisions.c.number.desc()).limit(1)).scalar()
    if newest is None:
        raise NotFoundError(f"nothing of {model!r} was rolled back yet", hint="errata revisions")
    return int(newest)


def _broken(connection: Connection, model: str, number: int) -> set[str]:
    """The probes whose incidents the rollback settled; a slow one of them is run as well."""
    query = select(incidents.c.probe).where(
        incidents.c.model == model, incidents.c.rollback_revision == number
    )
    return set(connection.execute(query).scalars())


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"


def _require_known(row: ProbeRow) -> None:
    if row.result == ProbeResult.UNKNOWN:
        why = row.details.get("error", "no reason given")
        raise ProbeError(f"{row.probe} is not known ({why}), so nothing can be said", hint="errata probe")
