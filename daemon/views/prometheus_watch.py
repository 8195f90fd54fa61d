"""The metrics about the state of a model: probes with their bounds, verdicts and incidents."""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime

from sqlalchemy import Connection, select

from daemon.core.clock import from_text
from daemon.core.config.settings import Config
from daemon.core.ledger.schema import revisions
from daemon.core.metrics import CEILING_PROBES, STAGE_BUCKETS
from daemon.core.names import ProbeResult, RevisionKind
from daemon.views import chain, figures

Add = Callable[..., None]
_NUMBERS = {"loss": "errata_probe_loss", "p_value": "errata_probe_p_value", "drift": "errata_probe_drift"}


def add_watch(add: Add, connection: Connection, now: datetime, config: Config, model: str) -> None:
    """Add the series of the probes, verdicts and incidents of a model."""
    _probes(add, connection, now, model)
    for verdict in chain.verdicts_in_force(connection, model):
        probe = verdict["probe"]
        for result in ProbeResult:
            add("errata_verdict", verdict["result"] == result, model=model, probe=probe, result=result)
        for column, name in _NUMBERS.items():
            if verdict[column] is not None:
                add(name, verdict[column], model=model, probe=probe)
    add("errata_drift_limit", config.watch.drift_limit, model=model)
    add("errata_promotion_lag_seconds", figures.promotion_lag_seconds(connection, now, model), model=model)
    add("errata_incidents_open", figures.incidents_open(connection, model), model=model)


def _probes(add: Add, connection: Connection, now: datetime, model: str) -> None:
    for probe in chain.probes_in_force(connection, model):
        name = probe["probe"]
        if probe["score"] is not None:
            add("errata_probe_score", probe["score"], model=model, probe=name)
        if probe["bound"] is not None:
            bound = "errata_probe_ceiling" if name in CEILING_PROBES else "errata_probe_floor"
            add(bound, probe["bound"], model=model, probe=name)
        for result in ProbeResult:
            add("errata_probe_result", probe["result"] == result, model=model, probe=name, result=result)
        age = (now - from_text(probe["measured_at"])).total_seconds()
        add("errata_probe_age_seconds", max(0.0, age), model=model, probe=name)


class StageHistory:
    """Histograms of the stages of all edits, which read each revision once, because it never changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        self._buckets: dict[str, dict[str, list[int]]] = defaultdict(dict)
        self._sums: dict[str, Counter[str]] = defaultdict(Counter)

    def of(self, connection: Connection, model: str) -> Mapping[str, tuple[list[int], float]]:
        """Return for each stage the counts by bucket of ``STAGE_BUCKETS`` and the sum of seconds."""
        with self._lock:
            edits = (revisions.c.model == model) & (revisions.c.kind == RevisionKind.EDIT)
            unseen = revisions.c.number > self._seen.get(model, 0)
            query = select(revisions.c.number, revisions.c.stages).where(edits, unseen)
            for row in connection.execute(query.order_by(revisions.c.number)):
                self._seen[model] = row.number
                for stage, seconds in row.stages.items():
                    empty = [0] * (len(STAGE_BUCKETS) + 1)
                    self._buckets[model].setdefault(stage, empty)[bisect_left(STAGE_BUCKETS, seconds)] += 1
                    self._sums[model][stage] += seconds
            sums = self._sums[model]
            return {stage: (list(b), float(sums[stage])) for stage, b in sorted(self._buckets[model].items())}
