"""Write the promtool tests of every alert: it fires with its summary, stays quiet, and meets no data.

    python monitoring/prometheus/tests/make.py     rewrites errata.yml beside this file

The tests run with: promtool test rules monitoring/prometheus/tests/errata.yml
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROBE = 'model="m",probe="perplexity_ratio"'
_OPEN = 'errata_incidents{model="m",subject="revision",state="open",result="degraded"}'
QUEUE = 'errata_queue_corrections{model="m",state="pending"}'


@dataclass(frozen=True)
class Case:
    """One alert with series that make it fire at a moment, its summary then, and series that do not."""

    alert: str
    labels: Mapping[str, str]
    summary: str
    firing: Mapping[str, str]
    quiet: Mapping[str, str]
    at: str = "5m"


def _model(severity: str, **more: str) -> dict[str, str]:
    return {"severity": severity, "model": "m", **more}


CASES: Sequence[Case] = (
    Case(
        "ErrataProbeOutOfBounds",
        _model("page", action="rollback", probe="perplexity_ratio"),
        "perplexity_ratio of m is 2.5, outside its bound",
        {f"errata_probe_score{{{PROBE}}}": "1+0x4 2.5+0x60", f"errata_probe_ceiling{{{PROBE}}}": "1.1+0x60"},
        {f"errata_probe_score{{{PROBE}}}": "1.09+0x60", f"errata_probe_ceiling{{{PROBE}}}": "1.1+0x60"},
    ),
    Case(
        "ErrataProbeOutOfBounds",
        _model("page", action="rollback", probe="efficacy"),
        "efficacy of m is 0.5, outside its bound",
        {
            'errata_probe_score{model="m",probe="efficacy"}': "0.5+0x60",
            'errata_probe_floor{model="m",probe="efficacy"}': "0.9+0x60",
        },
        {
            'errata_probe_score{model="m",probe="efficacy"}': "0.9+0x60",
            'errata_probe_floor{model="m",probe="efficacy"}': "0.9+0x60",
        },
    ),
    Case(
        "ErrataVerdictDegraded",
        _model("page", action="rollback", probe="quiz", result="degraded"),
        "head of m is worse than the last good revision by quiz",
        {'errata_verdict{model="m",probe="quiz",result="degraded"}': "1+0x60"},
        {
            'errata_verdict{model="m",probe="quiz",result="degraded"}': "0+0x60",
            'errata_verdict{model="m",probe="quiz",result="ok"}': "1+0x60",
        },
    ),
    Case(
        "ErrataProbeUnknown",
        _model("ticket", probe="quiz", result="unknown"),
        "quiz of m has no result, so head is not promoted",
        {'errata_probe_result{model="m",probe="quiz",result="unknown"}': "1+0x60"},
        {'errata_probe_result{model="m",probe="quiz",result="unknown"}': "0+0x60"},
    ),
    Case(
        "ErrataProbeNearBound",
        _model("ticket", probe="perplexity_ratio"),
        "perplexity_ratio of m is within 2% of its bound",
        {f"errata_probe_score{{{PROBE}}}": "1.09+0x60", f"errata_probe_ceiling{{{PROBE}}}": "1.1+0x60"},
        {f"errata_probe_score{{{PROBE}}}": "1.02+0x60", f"errata_probe_ceiling{{{PROBE}}}": "1.1+0x60"},
        at="20m",
    ),
    Case(
        "ErrataDriftRising",
        _model("ticket", probe="quiz"),
        "quiz of m drifts by small losses",
        {'errata_probe_drift{model="m",probe="quiz"}': "3.5+0x60", 'errata_drift_limit{model="m"}': "5+0x60"},
        {'errata_probe_drift{model="m",probe="quiz"}': "1+0x60", 'errata_drift_limit{model="m"}': "5+0x60"},
        at="20m",
    ),
    Case(
        "ErrataFrozen",
        _model("page", state="frozen", result="degraded"),
        "m is frozen after a second incident within the cooldown",
        {'errata_incidents{model="m",state="frozen",result="degraded"}': "0+0x4 1+0x60"},
        {'errata_incidents{model="m",state="closed",result="degraded"}': "3+0x60"},
    ),
    Case(
        "ErrataIncidentOpen",
        _model("page"),
        "an incident of m is open and nothing has reacted to it",
        {_OPEN: "1+0x60"},
        {_OPEN: "0+0x4 1+0x3 0+0x60", _OPEN.replace("revision", "feed"): "1+0x60"},
        at="12m",
    ),
    Case(
        "ErrataRolledBack",
        _model("info"),
        "m was rolled back, and its corrections are now reverted",
        {'errata_rollbacks_total{model="m"}': "2+0x3 3+0x60"},
        {'errata_rollbacks_total{model="m"}': "3+0x60"},
    ),
    Case(
        "ErrataNotPromoted",
        _model("ticket"),
        "a revision of m has waited half an hour to become live",
        {'errata_promotion_lag_seconds{model="m"}': "1801+60x60"},
        {'errata_promotion_lag_seconds{model="m"}': "0+0x60"},
        at="10m",
    ),
    Case(
        "ErrataDown",
        {"severity": "page"},
        "the daemon is unreachable, so nothing is judged or rolled back",
        {'errata_build_info{version="1"}': "1+0x2 stale"},
        {'errata_build_info{version="1"}': "1+0x60"},
        at="15m",
    ),
    Case(
        "ErrataLedgerDown",
        {"severity": "page"},
        "the ledger does not answer",
        {"errata_ledger_up": "1+0x2 0+0x60"},
        {"errata_ledger_up": "1+0x60"},
    ),
    Case(
        "ErrataProcessLost",
        _model("ticket", role="publisher"),
        "the publisher of m fell silent and did not end in order",
        {'errata_process_up{model="m",role="publisher"}': "1+0x2 0+0x60"},
        {
            'errata_process_up{model="m",role="publisher"}': "1+0x2 stale",
            'errata_process_up{model="m",role="worker"}': "0+0x60",
        },
    ),
    Case(
        "ErrataWorkerDown",
        _model("page"),
        "no worker of m sends heartbeats, and corrections wait",
        {'errata_worker_up{model="m"}': "0+0x60", QUEUE: "3+0x60"},
        {'errata_worker_up{model="m"}': "0+0x60", QUEUE: "0+0x60"},
        at="10m",
    ),
    Case(
        "ErrataQueueOld",
        _model("ticket"),
        "a correction of m has waited 1h 0m 0s",
        {'errata_queue_oldest_age_seconds{model="m"}': "3600+0x60", 'errata_paused{model="m"}': "0+0x60"},
        {'errata_queue_oldest_age_seconds{model="m"}': "3600+0x60", 'errata_paused{model="m"}': "1+0x60"},
        at="15m",
    ),
    Case(
        "ErrataPaused",
        _model("ticket"),
        "edits of m have been paused by hand for half a day",
        {'errata_paused{model="m"}': "1+0x800"},
        {
            'errata_paused{model="m"}': "1+0x800",
            'errata_incidents{model="m",state="frozen",result="degraded"}': "1+0x800",
        },
        at="13h",
    ),
    Case(
        "ErrataFeedFailing",
        {"severity": "ticket", "feed": "f"},
        "the feed f cannot be read",
        {'errata_feed_error{feed="f"}': "1+0x60"},
        {'errata_feed_error{feed="f"}': "0+0x5 1+0x5 0+0x60"},
        at="20m",
    ),
    Case(
        "ErrataFeedSilent",
        {"severity": "ticket", "feed": "f"},
        "the feed f has not been pulled for 20m 0s",
        {'errata_feed_pull_age_seconds{feed="f"}': "1200+0x60", 'errata_feed_paused{feed="f"}': "0+0x60"},
        {'errata_feed_pull_age_seconds{feed="f"}': "1200+0x60", 'errata_feed_paused{feed="f"}': "1+0x60"},
        at="10m",
    ),
    Case(
        "ErrataQuarantineGrowing",
        {"severity": "ticket"},
        "60 more items are in quarantine than an hour ago",
        {'errata_quarantine_entries{state="held",reason="schema"}': "0+1x120"},
        {'errata_quarantine_entries{state="held",reason="schema"}': "50+0x120"},
        at="70m",
    ),
)


def tests() -> Iterator[dict[str, Any]]:
    """Yield three tests for each alert.

    Without any data only ErrataDown fires, which is about the absence of data.
    """
    for case in CASES:
        runbook = f"monitoring/runbooks/{case.alert}.md"
        fired = {
            "exp_labels": dict(case.labels),
            "exp_annotations": {"summary": case.summary, "runbook_url": runbook},
        }
        yield _test(f"{case.alert} fires", case, case.firing, [fired])
        yield _test(f"{case.alert} does not fire", case, case.quiet, [])
        silent = [fired] if case.alert == "ErrataDown" else []
        yield _test(f"{case.alert} and no data", case, {}, silent)


def _test(
    name: str, case: Case, series: Mapping[str, str], alerts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": list(alerts)}],
    }


def document() -> str:
    """Return the text of the file, which is JSON and so YAML too."""
    whole = {"rule_files": ["../rules/errata.yml"], "evaluation_interval": "1m", "tests": list(tests())}
    return "# Written by make.py; change that.\n" + json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "errata.yml").write_text(document(), encoding="utf-8")
