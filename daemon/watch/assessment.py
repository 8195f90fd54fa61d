"""Verdicts on one revision, by the ledger and the configuration alone, without writing anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from statistics import fmean

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select

from daemon.core.clock import to_text
from daemon.core.config.watch import WatchConfig
from daemon.core.ledger.chain import lineage
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.incidents import was_rolled_back
from daemon.core.ledger.outcomes import Outcomes, Scale
from daemon.core.ledger.schema import incidents, judgements, probe_results, revisions
from daemon.core.metrics import CEILING_PROBES
from daemon.core.names import IncidentState, ProbeResult, RevisionState
from daemon.core.paired_tests import Drift, Paired, compare, mean_of, standardised

_BASELINE = 8  # revisions; a drift is measured from the mean of the first ones, and fewer are too noisy
_ALLOWANCE = 0.5  # CUSUM slack of every revision, in standard errors


@dataclass(frozen=True)
class Verdict:
    """What the judge concludes from one probe of one revision.

    ``since`` is the last revision that was good, as far as this probe can tell; ``loss`` is a mean over the
    items that were compared with ``reference``; ``drift`` is the cumulative sum in standard errors.
    """

    probe: str
    result: ProbeResult
    message: str
    measurement: int
    since: int
    reference: int | None = None
    loss: float | None = None
    p_value: float | None = None
    drift: Drift | None = None


def assess(connection: Connection, watch: WatchConfig, row: RowMapping, now: datetime) -> list[Verdict]:
    """The verdicts on the probes that were measured on a revision, in order of the probes' names."""
    measured = _newest(connection, row["model"], row["number"])
    patience = timedelta(seconds=2 * watch.probe_seconds)
    begun, latest = to_text(now - patience), to_text(now + patience)  # the worker's clock may be ahead
    if any(m["details"].get("running") and begun < m["measured_at"] < latest for m in measured):
        return []  # the probe may still end
    if not measured:
        return []
    look = _Look(connection, watch, row, to_text(now - timedelta(seconds=watch.cooldown_seconds)))
    verdicts = [look.by_bound(m) for m in measured]
    compared = [look.with_reference(v, m) for v, m in zip(verdicts, measured, strict=True)]
    tests = sum(1 for verdict in compared if verdict.p_value is not None)
    return [
        look.by_drift(look.by_step(verdict, m, watch.significance / max(tests, 1)), m)
        for verdict, m in zip(compared, measured, strict=True)
    ]


def _newest(connection: Connection, model: str, number: int) -> Sequence[RowMapping]:
    """The newest measurement of each probe of a revision."""
    mine = (probe_results.c.model == model) & (probe_results.c.revision == number)
    ids = select(func.max(probe_results.c.id)).where(mine).group_by(probe_results.c.probe)
    query = select(probe_results).where(probe_results.c.id.in_(ids)).order_by(probe_results.c.probe)
    return connection.execute(query).mappings().all()


class _Look:
    """One revision, the revisions that led to it, and the configuration."""

    def __init__(self, connection: Connection, watch: WatchConfig, row: RowMapping, lately: str) -> None:
        self._connection, self._watch, self._lately = connection, watch, lately
        self._model, self._number = str(row["model"]), int(row["number"])
        self._before = lineage(connection, self._model, self._number)

    def by_bound(self, measured: RowMapping) -> Verdict:
        """The verdict by the floor or ceiling of the configuration, which the worker has applied."""
        result, score, bound = ProbeResult(measured["result"]), measured["score"], measured["bound"]
        message = ""
        if result is ProbeResult.UNKNOWN:
            why = measured["details"].get("error", "no reason given")
            message = f"{measured['probe']} is not known: {why}"
        elif result is ProbeResult.DEGRADED:
            shown = "not a number" if score is None else f"{score:.4g}"
            message = f"{measured['probe']} is {shown}, the bound is {bound:.4g}"
        return Verdict(measured["probe"], result, message, measured["id"], self._number - 1)

    def with_reference(self, verdict: Verdict, measured: RowMapping) -> Verdict:
        """Add the paired test against the last good revision, where the probe passed its bound."""
        if verdict.result is not ProbeResult.OK:
            return verdict
        before = self._reference(verdict.probe)
        if before is None:
            return verdict
        verdict = self._after_incident(verdict, measured, before)
        now, then = Outcomes.from_json(measured["outcomes"]), Outcomes.from_json(before["outcomes"])
        paired = compare(now, then, self._watch, self._number)
        verdict = replace(verdict, reference=before["revision"])
        return verdict if paired is None else replace(verdict, loss=paired.loss, p_value=paired.p_value)

    def by_step(self, verdict: Verdict, measured: RowMapping, level: float) -> Verdict:
        """Degraded where the loss against the reference exceeds the budget and is not noise."""
        if verdict.result is not ProbeResult.OK or verdict.p_value is None or verdict.loss is None:
            return verdict
        now = Outcomes.from_json(measured["outcomes"])
        hits = now is not None and now.scale is Scale.HITS
        budget = self._watch.step_budget if hits else self._watch.step_budget_nats
        if not Paired(verdict.loss, verdict.p_value, budget).is_step(level):
            return verdict
        message = (
            f"{verdict.probe} lost {verdict.loss:.3g}{'' if hits else ' nats'} an item against revision "
            f"{verdict.reference} (p {verdict.p_value:.1e})"
        )
        since = self._number - 1 if verdict.reference is None else verdict.reference
        return replace(verdict, result=ProbeResult.DEGRADED, message=message, since=since)

    def by_drift(self, verdict: Verdict, measured: RowMapping) -> Verdict:
        """Degraded where small losses have added up since the cumulative sum began to rise."""
        now = Outcomes.from_json(measured["outcomes"])
        if now is None or now.ids is not None:
            return verdict
        reset = self._reset(verdict.probe)
        baseline = self._baseline(verdict.probe, reset, now)
        if len(baseline) < _BASELINE:  # every later revision would inherit the noise of their mean
            return replace(verdict, drift=Drift(0.0, self._number))
        sign = -1.0 if now.scale is Scale.HITS else 1.0
        losses = [sign * (new - old) for new, old in zip(now.values, mean_of(baseline), strict=True)]
        hits = now.scale is Scale.HITS
        slack = self._watch.drift_budget if hits else self._watch.drift_budget_nats
        score = standardised(losses, slack, hits=hits)
        drift = self._drift_before(verdict.probe, reset).after(self._number, score, _ALLOWANCE)
        verdict = replace(verdict, drift=drift)
        if verdict.result is not ProbeResult.OK or drift.total <= self._watch.drift_limit:
            return verdict
        message = (
            f"{verdict.probe} has drifted since revision {drift.since}: {fmean(losses):.3g} an item below "
            f"its beginning (sum {drift.total:.1f}, limit {self._watch.drift_limit:g})"
        )
        return replace(verdict, result=ProbeResult.DEGRADED, message=message, since=drift.since)

    def _after_incident(self, verdict: Verdict, measured: RowMapping, before: RowMapping) -> Verdict:
        """Soon after a rollback, degraded where the score is near its bound and worse than before."""
        score, bound = measured["score"], measured["bound"]
        if (
            score is None
            or bound is None
            or not was_rolled_back(self._connection, self._model, self._lately, verdict.probe)
        ):
            return verdict
        sign = -1.0 if verdict.probe in CEILING_PROBES else 1.0
        wanted = sign * bound + self._watch.hysteresis
        if before["score"] is not None:
            wanted = min(wanted, sign * before["score"])
        if sign * score >= wanted:
            return verdict
        message = f"{verdict.probe} is {score:.4g}: too near its bound {bound:.4g} so soon after an incident"
        return replace(verdict, result=ProbeResult.DEGRADED, message=message)

    def _reference(self, probe: str) -> RowMapping | None:
        """The newest good measurement among the live revisions that led to this one."""
        same = (revisions.c.model == probe_results.c.model) & (revisions.c.number == probe_results.c.revision)
        good = (probe_results.c.result == ProbeResult.OK) & (revisions.c.state == RevisionState.LIVE)
        query = select(probe_results).select_from(probe_results.join(revisions, same))
        query = query.where(self._measured(probe), good)
        query = query.order_by(probe_results.c.revision.desc(), probe_results.c.id.desc()).limit(1)
        for numbers in in_chunks(self._before):
            chosen = query.where(probe_results.c.revision.in_(numbers))
            row = self._connection.execute(chosen).mappings().first()
            if row is not None:
                return row
        return None

    def _baseline(self, probe: str, reset: int, now: Outcomes) -> list[tuple[float, ...]]:
        """The outcomes of the first revisions from ``reset`` on that have the same items."""
        values: dict[int, tuple[float, ...]] = {}
        forward = [number for number in reversed(self._before) if number >= reset]
        items = (now.suite, now.scale, len(now.values))
        query = select(probe_results.c.revision, probe_results.c.outcomes)
        query = query.where(self._measured(probe), probe_results.c.outcomes.is_not(None))
        query = query.order_by(probe_results.c.revision).limit(4 * _BASELINE)
        for numbers in in_chunks(forward):
            for row in self._connection.execute(query.where(probe_results.c.revision.in_(numbers))):
                then = Outcomes.from_json(row.outcomes)
                if then and (then.suite, then.scale, len(then.values)) == items:
                    values[row.revision] = then.values
                if len(values) == _BASELINE:
                    return list(values.values())
        return list(values.values())

    def _measured(self, probe: str) -> ColumnElement[bool]:
        return (probe_results.c.model == self._model) & (probe_results.c.probe == probe)

    def _drift_before(self, probe: str, reset: int) -> Drift:
        query = (
            select(judgements.c.revision, judgements.c.drift, judgements.c.since)
            .where(
                judgements.c.model == self._model, judgements.c.probe == probe,
                judgements.c.revision < self._number, judgements.c.drift.is_not(None),
            )
            .order_by(judgements.c.revision.desc())
        )  # fmt: skip
        forebears = {number for number in self._before if number > reset}
        for row in self._connection.execute(query):
            if row.revision in forebears:
                return Drift(row.drift, reset if row.since is None else row.since)
        return Drift(0.0, reset)

    def _reset(self, probe: str) -> int:
        """The revision from which drift is counted, the last whose incident an operator closed by hand."""
        degraded = incidents.c.result == ProbeResult.DEGRADED
        mine = (incidents.c.model == self._model) & (incidents.c.probe == probe) & degraded
        by_hand = (incidents.c.state == IncidentState.CLOSED) & incidents.c.rollback_revision.is_(None)
        query = select(func.max(incidents.c.revision)).where(mine, by_hand)
        return int(self._connection.execute(query).scalar() or 0)


def verdict_row(verdict: Verdict) -> Mapping[str, object]:
    """A verdict as columns of the table of judgements."""
    drift = verdict.drift
    return {
        "probe": verdict.probe,
        "result": verdict.result,
        "reference": verdict.reference,
        "loss": verdict.loss,
        "p_value": verdict.p_value,
        "drift": None if drift is None else drift.total,
        "since": None if drift is None else drift.since,
        "measurement": verdict.measurement,
        "message": verdict.message,
    }
