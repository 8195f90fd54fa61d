"""Write the dashboards to ``dashboards/*.json`` beside this file.

python monitoring/grafana/make.py     run this after a change of this file
"""

import json
from pathlib import Path

from panels import MODEL, Dashboard, Panel, Query, bars, lines, number

HERE = Path(__file__).parent
RED_ABOVE_0 = ((None, "green"), (1.0, "red"))
AMBER_ABOVE_0 = ((None, "green"), (1.0, "orange"))
RED_BELOW_1 = ((None, "red"), (1.0, "green"))

HEAD = number("head", Query(f"errata_revision_head{MODEL}"), help="newest revision")
LIVE = number("live", Query(f"errata_revision_live{MODEL}"), help="newest revision that passed its probes")
MARGINS = lines(
    "distance of each probe from its bound",
    Query(f"errata:probe_margin{MODEL}", "{{probe}}"),
    help="Distance as a share of the bound. Below 0 the bound is broken.",
    unit="percentunit",
    width=24,
)

OVERVIEW = Dashboard(
    "errata-overview",
    "Errata: overview",
    "For the person on call: the state of the model, and the flow of corrections.",
    (
        number("up", Query("errata_ledger_up"), thresholds=RED_BELOW_1),
        number("worker up", Query(f"errata_worker_up{MODEL}"), thresholds=RED_BELOW_1),
        number("incidents open", Query(f"errata_incidents_open{MODEL}"), thresholds=RED_ABOVE_0),
        number("paused or frozen", Query(f"errata_paused{MODEL}"), thresholds=AMBER_ABOVE_0),
        HEAD,
        LIVE,
        MARGINS,
        lines(
            "waiting corrections", Query(f"errata_queue_corrections{MODEL}", "{{state}}"),
            help="Corrections that are accepted and not yet in the weights.",
        ),
        lines(
            "facts written", Query(f"rate(errata_facts_written_total{MODEL}[$__rate_interval])", "facts/s"),
            help="Counted in the ledger, so a restart of the daemon does not reset it.",
        ),
        lines(
            "revisions and rollbacks",
            Query(f"errata_revision_head{MODEL}", "head"),
            Query(f"errata_revision_live{MODEL}", "live"),
            Query(f"errata_rollbacks_total{MODEL}", "rollbacks"),
        ),
        lines(
            "age of the oldest waiting correction",
            Query(f"errata_queue_oldest_age_seconds{MODEL}", "age"), unit="s",
        ),
    ),
)  # fmt: skip

MODEL_HEALTH = Dashboard(
    "errata-model",
    "Errata: model health",
    "Every probe with its bound and verdict, and the change of the weights.",
    (
        MARGINS,
        lines(
            "scores with a floor",
            Query(f"errata_probe_score{MODEL} and on (model, probe) errata_probe_floor", "{{probe}}"),
            Query(f"errata_probe_floor{MODEL}", "{{probe}} floor"),
            height=10,
        ),
        lines(
            "scores with a ceiling",
            Query(f"errata_probe_score{MODEL} and on (model, probe) errata_probe_ceiling", "{{probe}}"),
            Query(f"errata_probe_ceiling{MODEL}", "{{probe}} ceiling"),
            height=10,
        ),
        lines(
            "loss against the last good revision", Query(f"errata_probe_loss{MODEL}", "{{probe}}"),
            help="Mean over the items that both revisions answered, as a share or in nats.",
        ),
        lines(
            "significance of the loss", Query(f"errata_probe_p_value{MODEL}", "{{probe}}"),
            help="Probability of such a loss by noise alone.",
        ),
        lines(
            "slow drift",
            Query(f"errata_probe_drift{MODEL}", "{{probe}}"),
            Query(f"errata_drift_limit{MODEL}", "limit"),
            help="Cumulative sum of the losses of each revision against the first ones, in standard errors.",
        ),
        lines(
            "change of the edited layers", Query(f"errata_layer_delta_ratio{MODEL}", "layer {{layer}}"),
            help="Norm of W - W0 as a share of the norm of W0.", unit="percentunit",
        ),
        lines("facts held", Query(f"errata_active_facts{MODEL}", "facts")),
        lines("incidents", Query(f"errata_incidents{MODEL}", "{{result}}, {{state}}")),
    ),
)  # fmt: skip

FLOW = Dashboard(
    "errata-flow",
    "Errata: feeds and queue",
    "Incoming and refused items, the queue, and the duration of the stages of an edit.",
    (
        lines(
            "items read",
            Query(
                "sum by (feed, outcome) (rate(errata_feed_items_total[$__rate_interval]))",
                "{{feed}} {{outcome}}",
            ),
        ),
        lines("time since the last pull", Query("errata_feed_pull_age_seconds", "{{feed}}"), unit="s"),
        bars("feeds in error", Query("errata_feed_error", "{{feed}}"), width=6, thresholds=RED_ABOVE_0),
        bars("feeds paused", Query("errata_feed_paused", "{{feed}}"), width=6, thresholds=AMBER_ABOVE_0),
        bars(
            "in quarantine", Query('sum by (reason) (errata_quarantine_entries{state="held"})', "{{reason}}"),
        ),
        lines("waiting corrections", Query(f"errata:queue_corrections:sum{MODEL}", "corrections")),
        lines(
            "age of the oldest waiting correction",
            Query(f"errata_queue_oldest_age_seconds{MODEL}", "age"), unit="s",
        ),
        bars("batches", Query(f"errata_batches{MODEL}", "{{state}}")),
        bars("corrections", Query(f"sum by (state) (errata_corrections{MODEL})", "{{state}}")),
        lines(
            "stages of an edit, 95th percentile",
            Query(f"errata:edit_stage_duration_seconds:p95_30m{MODEL}", "{{stage}}"), unit="s",
        ),
        lines(
            "share of the worker's time by stage",
            Query(
                f"rate(errata_edit_stage_duration_seconds_sum{MODEL}[$__rate_interval])", "{{stage}}"
            ),
            unit="percentunit",
        ),
        lines(
            "heartbeats of the processes",
            Query(f"errata_process_heartbeat_age_seconds{MODEL}", "{{role}}"), unit="s",
        ),
        lines(
            "worker's memory",
            Query(f"errata_worker_memory_bytes{MODEL}", "resident"),
            Query(f"errata_worker_gpu_memory_bytes{MODEL}", "GPU"),
            unit="bytes",
        ),
    ),
)  # fmt: skip

REVISION = Dashboard(
    "errata-revision",
    "Errata: one revision",
    "Head at the end of the chosen time range. Move the range to see an earlier head.",
    (
        HEAD,
        number("made", Query(f"errata_head_timestamp_seconds{MODEL} * 1000"), unit="dateTimeAsIso", width=8),
        number("facts held", Query(f"errata_active_facts{MODEL}")),
        number("waiting to become live", Query(f"errata_promotion_lag_seconds{MODEL}"), unit="s", width=8),
        bars("scores", Query(f"errata_probe_score{MODEL}", "{{probe}}"), height=12, decimals=3),
        bars("margins", Query(f"errata:probe_margin{MODEL}", "{{probe}}"), height=12, unit="percentunit"),
        bars("verdicts", Query(f"errata_verdict{MODEL} == 1", "{{probe}}: {{result}}"), height=10),
        bars(
            "loss against the last good revision", Query(f"errata_probe_loss{MODEL}", "{{probe}}"), height=10
        ),
        bars("stages of the last edit", Query(f"errata_edit_stage_seconds{MODEL}", "{{stage}}"), unit="s"),
        bars("change of its layers", Query(f"errata_layer_delta_ratio{MODEL}", "layer {{layer}}")),
        bars("age of the measurements", Query(f"errata_probe_age_seconds{MODEL}", "{{probe}}"), unit="s"),
        Panel("results", "table", [Query(f"errata_probe_result{MODEL} == 1", "{{probe}}")]),
    ),
)

DASHBOARDS = (OVERVIEW, MODEL_HEALTH, FLOW, REVISION)


def text(dashboard: Dashboard) -> str:
    """Return the text of a dashboard's file."""
    return json.dumps(dashboard.to_json(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for dashboard in DASHBOARDS:
        (HERE / "dashboards" / f"{dashboard.uid}.json").write_text(text(dashboard), encoding="utf-8")
