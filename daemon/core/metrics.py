"""Every metric with its name, type, help text and labels, by the conventions of Prometheus.

Metrics are read from the ledger at each scrape. Values of labels come from closed sets, the configuration or
the code (models, feeds, probes, layers, stages), and never from the content of a feed.
"""

from dataclasses import dataclass
from enum import StrEnum

OTHER = "other"
"""The label value for everything outside its closed set."""

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
"""Probes whose bound is a ceiling. The bound of every other probe is a floor."""


class Kind(StrEnum):
    """The type of a metric in Prometheus."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """A family of series."""

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
"""Upper bounds in seconds of the histogram of edit stages: 10 ms to 17 minutes, about three per decade."""

_DECLARED = (
    _gauge(
        "errata_ledger_up", "1 when the ledger answered this scrape. Otherwise all other metrics are absent."
    ),
    _gauge("errata_build_info", "Always 1, with the version of Errata as label.", "version"),
    # incoming items
    _gauge("errata_corrections", "Corrections in the ledger.", "model", "state", "feed"),
    _counter("errata_feed_items_total", "Items read from a feed, by outcome.", "model", "feed", "outcome"),
    _gauge("errata_feed_error", "1 when the last pull of the feed failed.", "model", "feed"),
    _gauge("errata_feed_paused", "1 when the feed is paused.", "model", "feed"),
    _gauge("errata_feed_pull_age_seconds", "Time since the last pull of the feed.", "model", "feed"),
    _gauge("errata_quarantine_entries", "Quarantine entries.", "model", "reason", "state"),
    # waiting
    _gauge(
        "errata_queue_corrections", "Corrections that wait to be written into the weights.", "model", "state"
    ),
    _gauge(
        "errata_queue_oldest_age_seconds", "Age of the oldest waiting correction, 0 without one.", "model"
    ),
    _gauge("errata_batches", "Batches in the ledger.", "model", "state"),
    _gauge("errata_paused", "1 when edits of the model are paused.", "model"),
    # written
    _gauge("errata_revision_head", "Number of the newest revision.", "model"),
    _gauge("errata_revision_live", "Number of the newest revision that passed its probes.", "model"),
    _gauge("errata_active_facts", "Facts in the weights of head.", "model"),
    _counter("errata_edits_total", "Revisions made by edits.", "model"),
    _counter("errata_rollbacks_total", "Revisions made by rollbacks.", "model"),
    _counter("errata_facts_written_total", "Facts written by edits.", "model"),
    _gauge("errata_edit_stage_seconds", "Duration of each stage of the last edit.", "model", "stage"),
    _histogram(
        "errata_edit_stage_duration_seconds", "Durations of the stages of all edits.", "model", "stage"
    ),
    _gauge("errata_head_timestamp_seconds", "Unix time at which head was made.", "model"),
    _gauge(
        "errata_layer_delta_ratio",
        "Norm of an edited layer's change at head relative to its original norm.",
        "model",
        "layer",
    ),
    # the state of the model
    _gauge("errata_probe_score", "Newest score of a probe on the content of head.", "model", "probe"),
    _gauge("errata_probe_floor", "Lowest good score of a probe.", "model", "probe"),
    _gauge("errata_probe_ceiling", "Highest good score of a probe.", "model", "probe"),
    _gauge("errata_probe_result", "1 for the newest result of a probe, else 0.", "model", "probe", "result"),
    _gauge(
        "errata_probe_age_seconds", "Time since the newest measurement of a probe on head.", "model", "probe"
    ),
    _gauge(
        "errata_verdict", "1 for the judge's verdict on a probe of head, else 0.", "model", "probe", "result"
    ),
    _gauge("errata_probe_loss", "Mean loss of an item relative to the last good revision.", "model", "probe"),
    _gauge("errata_probe_p_value", "Probability of such a loss by noise alone.", "model", "probe"),
    _gauge("errata_probe_drift", "Cumulative sum of lasting losses, in standard errors.", "model", "probe"),
    _gauge("errata_drift_limit", "Highest good cumulative sum.", "model"),
    _gauge("errata_incidents_open", "Incidents that are not settled.", "model"),
    _gauge("errata_incidents", "Incidents by what they accuse.", "model", "subject", "result", "state"),
    _gauge("errata_promotion_lag_seconds", "Age of the oldest revision that waits to become live.", "model"),
    # store and worker
    _gauge("errata_store_free_bytes", "Free space on the file system of the store."),
    _gauge(
        "errata_store_reserve_bytes",
        "Free space below which no batch is sent: store.reserve_bytes and the next publication.",
    ),
    _gauge("errata_store_unsound_blobs", "Blobs that the last scrub found missing or damaged."),
    _gauge(
        "errata_process_up",
        "1 when a process of the role sends heartbeats, 0 when it was lost. Absent after an orderly end.",
        "model",
        "role",
    ),
    _gauge(
        "errata_process_heartbeat_age_seconds",
        "Time since the last heartbeat of a process of the role.",
        "model",
        "role",
    ),
    _gauge("errata_worker_up", "1 when a worker sends heartbeats.", "model"),
    _gauge("errata_worker_heartbeat_age_seconds", "Time since the last heartbeat of a worker.", "model"),
    _gauge("errata_worker_memory_bytes", "Resident memory of the worker with the last heartbeat.", "model"),
    _gauge("errata_worker_gpu_memory_bytes", "GPU memory reserved by that worker.", "model"),
)

METRICS = {metric.name: metric for metric in _DECLARED}
