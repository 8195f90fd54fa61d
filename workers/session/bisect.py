"""Find which of the corrections that a rollback reverted did the damage, by halves on a copy of head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from daemon.core.errors import NotFoundError, ProbeError
from daemon.core.ledger import audit
from daemon.core.ledger.chain import get_revision
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow, Refusal
from daemon.core.ledger.schema import incidents, revisions
from daemon.core.ledger.settlement import quarantine_refused, reverted_by, wait_again
from daemon.core.log import get_logger
from daemon.core.names import ProbeResult, QuarantineReason, RevisionKind
from daemon.core.paired_tests import compare
from workers.probes import fast, full
from workers.session.rehearsal import Rehearsal

log = get_logger("errata.bisect")
Report = Callable[[int, int], None]
"""Called with the number of corrections judged so far and the number of all."""


@dataclass(frozen=True)
class Bisection:
    """What became of the corrections that the rollback ``revision`` reverted."""

    revision: int
    culprits: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    trials: int = 0


def bisect(rehearsal: Rehearsal, number: int | None, who: str, report: Report = lambda *_: None) -> Bisection:
    """Try the corrections that rollback ``number`` (None: the newest) reverted, in halves, to find culprits.

    A half that leaves all probes good stays in the copy, and the next one is tried on top of it. Corrections
    that do harm only together are found too: the culprit is the one with which the damage appears. At the end
    one transaction quarantines the culprits and lets the rest wait for a batch. Head does not move.

    Raises:
        NotFoundError: there is no such rollback, or it reverted nothing.
        ProbeError: a probe could not be measured; nothing has changed.
    """
    ledger, model = rehearsal.copy.ledger, rehearsal.copy.model
    with ledger.read() as connection:
        number = _rollback(connection, model, number)
        reverted = reverted_by(connection, model, number)
        names = broken_probes(connection, model, number)
    if not reverted:
        raise NotFoundError(
            f"rollback {number} has no reverted correction left", hint="errata revisions lists the rollbacks"
        )
    trial = Trial(rehearsal, names, len(reverted), report)
    trial.admit(reverted)
    return _conclude(ledger, model, number, who, trial)


class Trial:
    """The corrections that are judged so far: the good ones are in the copy, the culprits are not."""

    def __init__(self, rehearsal: Rehearsal, broken: set[str], total: int, report: Report) -> None:
        self._rehearsal, self._watch = rehearsal, rehearsal.copy.config.watch
        self._total, self._report = total, report
        always = {probe.name for probe in fast(self._watch)}
        self._probes = [probe for probe in full(self._watch) if probe.name in always | broken]
        self.culprits: list[Refusal] = []
        self.good: list[str] = []
        self.trials = 0
        rehearsal.begin()
        self._before = {row.probe: row for row in rehearsal.measure(self._probes)}
        for row in self._before.values():
            _require_known(row)

    def admit(self, ids: Sequence[str]) -> None:
        """Write corrections into the copy, and each half of them separately where that does harm."""
        harms: list[str] = []

        def is_harmless(rows: Sequence[ProbeRow]) -> bool:
            harms.extend(self._harms(rows))
            return not harms

        self.trials += 1
        if self._rehearsal.attempt(ids, self._probes, is_harmless):
            self.good += ids
        elif len(ids) == 1:
            self.culprits.append(Refusal(ids[0], QuarantineReason.DAMAGE, f"with it {'; '.join(harms)}"))
        else:
            middle = len(ids) // 2
            self.admit(ids[:middle])
            self.admit(ids[middle:])
        self._report(len(self.good) + len(self.culprits), self._total)

    def _harms(self, rows: Sequence[ProbeRow]) -> list[str]:
        """The probes that are beyond their bound or significantly worse than before the first attempt."""
        tests = sum(1 for row in rows if row.outcomes)
        harms = []
        for row in rows:
            _require_known(row)
            before = self._before[row.probe]
            if before.result != ProbeResult.OK:
                continue  # head was beyond the bound before, so no correction is the cause
            if row.result == ProbeResult.DEGRADED:
                harms.append(f"{row.probe} is {_shown(row.score)}, the bound is {_shown(row.bound)}")
                continue
            paired = compare(row.outcomes, before.outcomes, self._watch, self.trials)
            if paired is not None and paired.is_step(self._watch.significance / max(tests, 1)):
                harms.append(f"{row.probe} loses {paired.loss:.3g} an item (p {paired.p_value:.1e})")
        return harms


def _conclude(ledger: Ledger, model: str, number: int, who: str, trial: Trial) -> Bisection:
    """Quarantine the culprits and let the rest wait for a batch.

    Corrections that were released or superseded meanwhile stay as they are.
    """
    with ledger.write() as connection:
        now = ledger.clock.now()
        still = set(reverted_by(connection, model, number))
        refusals = [refusal for refusal in trial.culprits if refusal.correction_id in still]
        quarantine_refused(connection, now, refusals)
        why = f"did no harm when what revision {number} took back was tried again"
        waiting = wait_again(connection, trial.good, why)
        culprits = [refusal.correction_id for refusal in refusals]
        details = {"guilty": culprits, "waiting": waiting, "trials": trial.trials}
        reason = "; ".join(refusal.message for refusal in refusals)[:500] or "nothing of it did harm"
        audit.record(connection, now, who, "bisect", f"{model}@{number}", reason, details)
    log.info("bisected", model=model, revision=number, culprits=len(culprits), waiting=len(waiting))
    return Bisection(number, culprits, waiting, trial.trials)


def _rollback(connection: Connection, model: str, number: int | None) -> int:
    """The number of the named rollback, or of the newest one."""
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


def broken_probes(connection: Connection, model: str, number: int) -> set[str]:
    """The probes whose incidents the rollback closed, which are run even where they are slow."""
    query = select(incidents.c.probe).where(
        incidents.c.model == model, incidents.c.rollback_revision == number
    )
    return set(connection.execute(query).scalars())


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"


def _require_known(row: ProbeRow) -> None:
    if row.result == ProbeResult.UNKNOWN:
        why = row.details.get("error", "no reason given")
        raise ProbeError(
            f"{row.probe} could not be measured ({why}), so no correction can be judged",
            hint="errata probe runs it again",
        )
