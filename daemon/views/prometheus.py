"""The metrics of the ledger in Prometheus' text format, read in one transaction per scrape."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, product

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Connection, select

from daemon.core.clock import Clock, from_text
from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError
from daemon.core.ledger.chain import find_revision
from daemon.core.ledger.heartbeats import Life
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.core.ledger.switches import is_feed_paused, is_paused
from daemon.core.log import get_logger
from daemon.core.metrics import METRICS, OTHER, STAGE_BUCKETS, Kind
from daemon.core.names import (
    API_FEED,
    OPERATOR,
    AdmissionOutcome,
    BatchState,
    CorrectionState,
    IncidentState,
    ProbeResult,
    ProcessRole,
    QuarantineReason,
    QuarantineState,
    RevisionKind,
    Subject,
)
from daemon.core.space import required_bytes
from daemon.core.version import version
from daemon.views import figures, lists
from daemon.views.processes import first_of_role, process_list
from daemon.views.prometheus_watch import StageHistory, add_watch
from daemon.views.rows import Row

log = get_logger("errata.exporter")
Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


def render(ledger: Ledger, config: Config, history: StageHistory | None = None) -> bytes:
    """Return all metrics in Prometheus' text format, reading only new revisions with a kept ``history``."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(ledger, config, history or StageHistory()))
    return generate_latest(registry)


class Samples:
    """The series of one scrape, of families that ``daemon.core.metrics`` declares."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {name: _family(name) for name in METRICS}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add one series, or raise KeyError, ValueError or TypeError if it is not so declared."""
        family = self._families[name]
        if isinstance(family, HistogramMetricFamily):
            raise TypeError(f"{name} is a histogram")
        family.add_metric(_values(name, labels), value)

    def add_histogram(self, name: str, buckets: Sequence[float], total: float, **labels: str) -> None:
        """Add one histogram, with the counts of each of ``STAGE_BUCKETS`` and above, and the sum of values.

        Raises KeyError and ValueError as ``add``, and TypeError if the metric is not a histogram.
        """
        family = self._families[name]
        if not isinstance(family, HistogramMetricFamily):
            raise TypeError(f"{name} is not a histogram")
        bounds = [*(str(bound) for bound in STAGE_BUCKETS), "+Inf"]
        cumulative = list(zip(bounds, accumulate(buckets), strict=True))
        family.add_metric(_values(name, labels), cumulative, total)

    def families(self) -> Iterable[Family]:
        """Return every declared family, in order of declaration."""
        return self._families.values()


class LedgerCollector(Collector):
    """Reads the ledger at every scrape, and exports a failure to do so as a metric."""

    def __init__(self, ledger: Ledger, config: Config, history: StageHistory) -> None:
        self._ledger, self._config, self._history = ledger, config, history

    def collect(self) -> Iterator[Family]:
        """Yield all families, of which two have series when the ledger does not answer."""
        samples = Samples()
        try:
            with self._ledger.read() as connection:
                _Scrape(connection, self._ledger.clock, self._config, samples, self._history).fill()
            up = 1
        except ErrataError as error:
            log.warning("the metrics could not be read from the ledger", code=error.code, error=str(error))
            samples, up = Samples(), 0
        samples.add("errata_ledger_up", up)
        samples.add("errata_build_info", 1, version=version())
        yield from samples.families()


class _Scrape:
    """One scrape within a read transaction."""

    def __init__(
        self, connection: Connection, clock: Clock, config: Config, samples: Samples, history: StageHistory
    ) -> None:
        self._connection, self._clock, self._config, self._history = connection, clock, config, history
        self._now = clock.now()
        self._add, self._add_histogram = samples.add, samples.add_histogram
        self._models = sorted({*figures.models(connection), config.model.name})

    def fill(self) -> None:
        """Add every series that the ledger has."""
        pulled = {model: self._pulled(model) for model in self._models}
        configured = {feed.name for feed in self._config.feeds}
        self._counts({OPERATOR, API_FEED, *configured, *(name for rows in pulled.values() for name in rows)})
        self._store()
        for model in self._models:
            of_config = configured if model == self._config.model.name else set()
            self._feeds(model, of_config | pulled[model].keys(), pulled[model])
            self._queue(model)
            self._chain(model)
            add_watch(self._add, self._connection, self._now, self._config, model)
            self._stages(model)
            self._processes(model)

    def _pulled(self, model: str) -> dict[str, Row]:
        return {row["name"]: row for row in lists.feed_list(self._connection, self._now, model)}

    def _counts(self, feeds: set[str]) -> None:
        connection, models, add = self._connection, self._models, self._add_counts
        add("errata_corrections", figures.corrections_by_state(connection), models, CorrectionState, feeds)
        add("errata_feed_items_total", figures.feed_items(connection), models, feeds, AdmissionOutcome)
        quarantined = figures.quarantine_by_reason(connection)
        add("errata_quarantine_entries", quarantined, models, QuarantineReason, QuarantineState)
        add("errata_batches", figures.batches_by_state(connection), models, BatchState)
        results = (ProbeResult.DEGRADED, ProbeResult.UNKNOWN)
        add(
            "errata_incidents",
            figures.incidents_by_state(connection),
            models,
            Subject,
            results,
            IncidentState,
        )

    def _add_counts(self, name: str, counts: figures.Counts, *closed: Iterable[str]) -> None:
        """Add a series for every combination of the closed sets, with values outside them as ``other``."""
        sets = [frozenset(map(str, values)) for values in closed]
        folded: Counter[tuple[str, ...]] = Counter(dict.fromkeys(product(*sets), 0))
        for values, count in counts.items():
            pairs = zip(values, sets, strict=True)
            folded[tuple(value if value in known else OTHER for value, known in pairs)] += count
        for values, count in sorted(folded.items()):
            self._add(name, count, **dict(zip(METRICS[name].labels, values, strict=True)))

    def _store(self) -> None:
        """Add the free space for the next revision and the result of the last scrub."""
        self._add("errata_store_free_bytes", figures.free_bytes(self._config))
        self._add("errata_store_reserve_bytes", required_bytes(self._connection, self._config))
        unsound = figures.unsound_blobs(self._connection, self._config.model.name)
        self._add("errata_store_unsound_blobs", unsound)

    def _feeds(self, model: str, names: set[str], pulled: Mapping[str, Row]) -> None:
        for name in sorted(names):
            row = pulled.get(name)
            self._add("errata_feed_error", bool(row and row["error"]), model=model, feed=name)
            is_paused_now = is_feed_paused(self._connection, model, name)
            self._add("errata_feed_paused", is_paused_now, model=model, feed=name)
            if row and row["lag_seconds"] is not None:
                self._add("errata_feed_pull_age_seconds", row["lag_seconds"], model=model, feed=name)

    def _queue(self, model: str) -> None:
        waiting = figures.queue(self._connection, self._now, model)
        for state, count in (("pending", waiting.pending), ("queued", waiting.queued)):
            self._add("errata_queue_corrections", count, model=model, state=state)
        self._add("errata_queue_oldest_age_seconds", waiting.oldest_age_seconds, model=model)
        self._add("errata_paused", is_paused(self._connection, model), model=model)

    def _chain(self, model: str) -> None:
        counted = {"errata_edits_total": RevisionKind.EDIT, "errata_rollbacks_total": RevisionKind.ROLLBACK}
        for name, kind in counted.items():
            self._add(name, figures.revisions_of_kind(self._connection, model, kind), model=model)
        number = figures.head_number(self._connection, model)
        head = None if number is None else find_revision(self._connection, model, number)
        if head is None:
            return
        live = figures.live_number(self._connection, model)
        self._add("errata_revision_head", head["number"], model=model)
        if live is not None:
            self._add("errata_revision_live", live, model=model)
        self._add("errata_active_facts", head["active_facts"], model=model)
        self._add("errata_facts_written_total", figures.facts_written(self._connection, model), model=model)
        self._add("errata_head_timestamp_seconds", from_text(head["created_at"]).timestamp(), model=model)
        for layer, norm in head["norms"].items():
            self._add("errata_layer_delta_ratio", norm, model=model, layer=layer)
        for stage, seconds in self._last_stages(model).items():
            self._add("errata_edit_stage_seconds", seconds, model=model, stage=stage)

    def _last_stages(self, model: str) -> dict[str, float]:
        mine = (revisions.c.model == model) & (revisions.c.kind == RevisionKind.EDIT)
        query = select(revisions.c.stages).where(mine).order_by(revisions.c.number.desc()).limit(1)
        return dict(self._connection.execute(query).scalar() or {})

    def _stages(self, model: str) -> None:
        name = "errata_edit_stage_duration_seconds"
        for stage, (buckets, total) in self._history.of(self._connection, model).items():
            self._add_histogram(name, buckets, total, model=model, stage=stage)

    def _processes(self, model: str) -> None:
        found = process_list(self._connection, self._clock, model)
        for role in ProcessRole:
            row = first_of_role(found, role)
            if row is None or row["life"] == Life.ENDED:
                continue  # it was never there, or it was stopped on purpose
            labels = {"model": model, "role": role.value}
            self._add("errata_process_up", row["life"] == Life.ALIVE, **labels)
            self._add("errata_process_heartbeat_age_seconds", row["heartbeat_age_seconds"], **labels)
        self._worker(model, found)

    def _worker(self, model: str, found: list[Row]) -> None:
        worker = first_of_role(found, ProcessRole.WORKER)
        alive = worker is not None and worker["life"] == Life.ALIVE
        self._add("errata_worker_up", alive, model=model)
        if worker is not None:
            self._add("errata_worker_heartbeat_age_seconds", worker["heartbeat_age_seconds"], model=model)
            self._add("errata_worker_memory_bytes", worker["memory_bytes"], model=model)
            self._add("errata_worker_gpu_memory_bytes", worker["gpu_memory_bytes"], model=model)


def _values(name: str, labels: Mapping[str, str]) -> list[str]:
    declared = METRICS[name].labels
    values = [labels[label] for label in declared]
    if len(values) != len(labels):
        raise ValueError(f"{name} has the labels {declared}, not {tuple(labels)}")
    return values


def _family(name: str) -> Family:
    metric = METRICS[name]
    if metric.kind is Kind.HISTOGRAM:
        return HistogramMetricFamily(name, metric.help, labels=metric.labels)
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(name.removesuffix("_total"), metric.help, labels=metric.labels)
    return GaugeMetricFamily(name, metric.help, labels=metric.labels)
