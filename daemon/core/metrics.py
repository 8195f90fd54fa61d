"""Every metric, declared once: name, type, help and labels, in Prometheus' conventions.

Metrics are a view of the ledger, read when they are scraped. Labels take values from closed sets, from the
configuration or from code (models, feeds, probes, layers, stages); never from what a feed says.
"""

from dataclasses import dataclass
from enum import StrEnum

OTHER = "other"
"""The label of everything that is outside its closed set."""

CEILING_PROBES = frozenset(
    {
        "perplexity_ratio",
        "perplexity_ratio_long",
        "perplexity_ratio_own",
        "delta_ratio",
        "spectral_ratio",
        "stream_growth",
        "value_norm",
        "capacity_used",
    }
)
"""Probes whose bound is a ceiling; the bound of every other probe is a floor."""


class Kind(StrEnum):
    """Prometheus' type of a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One family of series."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels)


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels)


def _histogram(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, labels)


STAGE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Upper bounds in seconds of the histogram of edit stages."""

_DECLARED = (
    _gauge("errata_ledger_up", "1 when the ledger answered this scrape; all else is absent when it did not."),
    _gauge("errata_build_info", "Always 1; which Errata this is.", "version"),
    # what comes in
    _gauge("errata_corrections", "Corrections in the ledger.", "model", "state", "feed"),
    _counter("errata_feed_items_total", "Items read from a feed, by what became of them.", "feed", "outcome"),
    _gauge("errata_feed_error", "1 when the last pull of the feed failed.", "feed"),
    _gauge("errata_feed_paused", "1 when an operator holds the feed back.", "feed"),
    _gauge("errata_feed_pull_age_seconds", "Time since the last pull of the feed was noted.", "feed"),
    _gauge("errata_quarantine_entries", "Quarantine entries.", "reason", "state"),
    # what waits
    _gauge("errata_queue_corrections", "Corrections that wait to be written.", "model", "state"),
    _gauge("errata_queue_oldest_age_seconds", "Age of the oldest waiting correction; 0: none.", "model"),
    _gauge("errata_batches", "Batches in the ledger.", "model", "state"),
    _gauge("errata_paused", "1 when edits of the model are held back.", "model"),
    # what was written
    _gauge("errata_revision_head", "Number of the newest revision.", "model"),
    _gauge("errata_revision_live", "Number of the newest revision that passed its probes.", "model"),
    _gauge("errata_active_facts", "Facts that head's weights hold.", "model"),
    _counter("errata_edits_total", "Revisions made by edits.", "model"),
    _counter("errata_rollbacks_total", "Revisions made by rollbacks.", "model"),
    _counter("errata_facts_written_total", "Facts written by edits.", "model"),
    _gauge("errata_edit_stage_seconds", "Duration of each stage of the last edit.", "model", "stage"),
    _histogram(
        "errata_edit_stage_duration_seconds", "Durations of the stages of all edits.", "model", "stage"
    ),
    _gauge("errata_head_timestamp_seconds", "When head was made, as Unix time.", "model"),
    _gauge(
        "errata_layer_delta_ratio",
        "Norm of an edited layer's change at head against its original norm.",
        "model",
        "layer",
    ),
    # what it did to the rest
    _gauge("errata_probe_score", "Newest score of a probe on what head holds.", "model", "probe"),
    _gauge("errata_probe_floor", "Lowest good score of a probe.", "model", "probe"),
    _gauge("errata_probe_ceiling", "Highest good score of a probe.", "model", "probe"),
    _gauge("errata_probe_result", "1 for the newest result of a probe, else 0.", "model", "probe", "result"),
    _gauge(
        "errata_probe_age_seconds", "Time since the newest measurement of a probe on head.", "model", "probe"
    ),
    _gauge(
        "errata_verdict", "1 for what the judge says of a probe on head, else 0.", "model", "probe", "result"
    ),
    _gauge("errata_probe_loss", "Mean loss of an item against the last good revision.", "model", "probe"),
    _gauge("errata_probe_p_value", "How likely noise alone loses that much.", "model", "probe"),
    _gauge("errata_probe_drift", "Cumulative sum of a lasting loss, in standard errors.", "model", "probe"),
    _gauge("errata_drift_limit", "Highest good cumulative sum.", "model"),
    _gauge("errata_incidents_open", "Incidents that nobody has settled.", "model"),
    _gauge("errata_incidents", "Incidents in the ledger.", "model", "result", "state"),
    _gauge("errata_promotion_lag_seconds", "Age of the oldest revision that waits to be live.", "model"),
    # who writes
    _gauge("errata_store_free_bytes", "Free space where the store is."),
    _gauge("errata_store_reserve_bytes", "Free space below which no batch is handed out."),
    _gauge("errata_store_unsound_blobs", "Blobs that the last scrub found missing or damaged."),
    _gauge("errata_worker_up", "1 when a worker was heard of within three lease periods.", "model"),
    _gauge("errata_worker_heartbeat_age_seconds", "Time since a worker was heard of.", "model"),
    _gauge("errata_worker_memory_bytes", "Resident memory of the worker that was heard of last.", "model"),
    _gauge("errata_worker_gpu_memory_bytes", "GPU memory that this worker has reserved.", "model"),
)

METRICS = {metric.name: metric for metric in _DECLARED}
