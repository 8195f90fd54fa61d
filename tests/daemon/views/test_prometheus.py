"""The metrics are valid Prometheus text with closed labels and the figures of the ledger."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import insert, update

from daemon.admission.submission import submit
from daemon.core.clock import to_text
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import feeds, quarantine, workers
from daemon.core.ledger.switches import pause
from daemon.core.metrics import METRICS, OTHER
from daemon.views.prometheus import Samples, render
from daemon.views.prometheus_watch import StageHistory
from daemon.watch.judge import judge
from tests.conftest import absent
from tests.installation import Installation, edit, probes
from tests.ledgers import FakeClock, found, make_batch, roll_back, statement
from tests.watching import commit_and_judge, right, suite_row, unknown_row

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def config(installation: Installation) -> Config:
    return installation.config


@pytest.fixture
def story(installation: Installation) -> Iterator[Ledger]:
    ledger = installation.tell_story()
    yield ledger
    ledger.close()


def scrape(ledger: Ledger, config: Config, history: StageHistory | None = None) -> Series:
    text = render(ledger, config, history).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((name, frozenset(labels.items())))


def test_promtool_accepts_it(story: Ledger, config: Config) -> None:
    promtool = which("promtool")
    if promtool is None:
        absent("no promtool here: apt-get install prometheus")
    done = subprocess.run(
        [str(promtool), "check", "metrics"], input=render(story, config), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_declared_family_is_there_and_no_other(story: Ledger, config: Config) -> None:
    text = render(story, config).decode()
    shown = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert shown == set(METRICS)
    with_series = {line.split("{")[0].split()[0] for line in text.splitlines() if not line.startswith("#")}
    histogram = "errata_edit_stage_duration_seconds"
    with_series = {histogram if name.startswith(histogram) else name for name in with_series}
    only_later = {
        "errata_feed_pull_age_seconds",
        "errata_process_up",
        "errata_process_heartbeat_age_seconds",
        "errata_worker_heartbeat_age_seconds",
        "errata_worker_memory_bytes",
        "errata_worker_gpu_memory_bytes",
        "errata_probe_loss",
        "errata_probe_p_value",
        "errata_probe_drift",
    }
    assert with_series == set(METRICS) - only_later


def test_what_is_not_declared_cannot_be_exported() -> None:
    samples = Samples()
    with pytest.raises(KeyError):
        samples.add("errata_surprise", 1)
    with pytest.raises(KeyError):
        samples.add("errata_paused", 1)
    with pytest.raises(ValueError, match="has the labels"):
        samples.add("errata_paused", 1, model="m", subject="Peru")


def test_the_numbers_are_those_of_the_ledger(story: Ledger, config: Config) -> None:
    series = scrape(story, config)
    assert value(series, "errata_ledger_up") == 1
    assert value(series, "errata_revision_head", model="default") == 4
    assert value(series, "errata_revision_live", model="default") == 4
    assert value(series, "errata_edits_total", model="default") == 3
    assert value(series, "errata_rollbacks_total", model="default") == 1
    assert value(series, "errata_active_facts", model="default") == 2
    assert value(series, "errata_queue_corrections", model="default", state="pending") == 1
    assert value(series, "errata_corrections", model="default", state="applied", feed="operator") == 2
    assert value(series, "errata_corrections", model="default", state="reverted", feed="operator") == 1
    assert value(series, "errata_corrections", model="default", state="queued", feed="sample") == 0
    assert (
        value(series, "errata_feed_items_total", model="default", feed="sample", outcome="quarantined") == 2
    )
    assert value(series, "errata_quarantine_entries", model="default", reason="schema", state="held") == 2
    assert value(series, "errata_incidents_open", model="default") == 0
    assert value(series, "errata_paused", model="default") == 0
    assert value(series, "errata_edit_stage_seconds", model="default", stage="write") == 2.25
    assert value(series, "errata_layer_delta_ratio", model="default", layer="8") == 0.04


def test_scores_stand_beside_their_bounds(story: Ledger, config: Config) -> None:
    series = scrape(story, config)
    labels = {"model": "default", "probe": "perplexity_ratio"}
    assert value(series, "errata_probe_score", **labels) == 1.01
    assert value(series, "errata_probe_ceiling", **labels) == 1.1
    assert value(series, "errata_probe_floor", **labels) is None
    assert value(series, "errata_probe_floor", model="default", probe="efficacy") == 0.9
    results = {
        r: value(series, "errata_probe_result", result=r, **labels) for r in ("ok", "degraded", "unknown")
    }
    assert results == {"ok": 1, "degraded": 0, "unknown": 0}


def test_a_degraded_head_shows(installation: Installation) -> None:
    installation.write("[watch]\nauto_rollback = false")
    ledger = installation.open()
    edit(ledger, statement("Peru", "Lima"), measured=probes(efficacy=0.3))
    judge(ledger, installation.config)
    series = scrape(ledger, installation.config)
    labels = {"model": "default", "probe": "efficacy"}
    assert value(series, "errata_probe_result", result="degraded", **labels) == 1
    assert value(series, "errata_probe_result", result="ok", **labels) == 0
    assert value(series, "errata_incidents_open", model="default") == 1
    assert (value(series, "errata_revision_live", model="default")) == 0
    ledger.close()


def test_no_label_comes_from_what_a_feed_says(sqlite_ledger: Ledger, config: Config) -> None:
    """Unknown models, reasons and feeds become ``other``."""
    submit(sqlite_ledger, statement("Peru", "Lima", model="attacker-1"), "tester")
    submit(sqlite_ledger, statement("Chad", "X", model="attacker-2"), "tester")
    make_batch(sqlite_ledger, "attacker-2")
    row = {
        "position": "1",
        "message": "m",
        "raw": "",
        "state": "held",
        "at": to_text(sqlite_ledger.clock.now()),
    }
    with sqlite_ledger.write() as connection:
        connection.execute(
            insert(quarantine).values(model="default", feed="sample", reason="brand new reason", **row)
        )
    text = render(sqlite_ledger, config).decode()
    for word in ("attacker", "brand new", "Peru", "Lima"):
        assert word not in text
    series = scrape(sqlite_ledger, config)
    assert value(series, "errata_corrections", model=OTHER, state="pending", feed="operator") == 1
    assert value(series, "errata_quarantine_entries", model="default", reason=OTHER, state="held") == 1
    assert value(series, "errata_batches", model=OTHER, state="open") == 1


def test_a_worker_is_up_while_it_is_heard_of(sqlite_ledger: Ledger, config: Config, clock: FakeClock) -> None:
    assert value(scrape(sqlite_ledger, config), "errata_worker_up", model="default") == 0
    beat = {"state": "busy", "device": "cpu", "memory_bytes": 1, "model": "default"}
    with sqlite_ledger.write() as connection:
        connection.execute(insert(workers).values(name="h:1", seen_at=to_text(clock.now()), **beat))
    clock.advance(60)  # three heartbeats of an older worker
    series = scrape(sqlite_ledger, config)
    assert value(series, "errata_worker_up", model="default") == 1
    assert value(series, "errata_worker_heartbeat_age_seconds", model="default") == 60
    clock.advance(1)
    assert value(scrape(sqlite_ledger, config), "errata_worker_up", model="default") == 0


def test_a_role_is_up_down_or_absent(sqlite_ledger: Ledger, config: Config, clock: FakeClock) -> None:
    row = {"model": "default", "state": "follows", "device": "", "memory_bytes": 1, "role": "publisher"}
    with sqlite_ledger.write() as connection:
        connection.execute(insert(workers).values(name="h:1", seen_at=to_text(clock.now()), **row))
    mine = {"model": "default", "role": "publisher"}
    assert value(scrape(sqlite_ledger, config), "errata_process_up", **mine) == 1
    clock.advance(61)
    series = scrape(sqlite_ledger, config)
    assert value(series, "errata_process_up", **mine) == 0
    assert value(series, "errata_process_heartbeat_age_seconds", **mine) == 61
    with sqlite_ledger.write() as connection:
        connection.execute(update(workers).values(state="ended"))
    assert b"errata_process_up{" not in render(sqlite_ledger, config)


def test_feeds_show_their_lag_error_and_pause(
    sqlite_ledger: Ledger, config: Config, clock: FakeClock
) -> None:
    row = {"model": "default", "name": "sample", "cursor": {}, "items": 3, "error": ""}
    row |= {"pulled_at": to_text(clock.now())}
    with sqlite_ledger.write() as connection:
        connection.execute(insert(feeds).values(**row))
    clock.advance(90)
    series = scrape(sqlite_ledger, config)
    assert value(series, "errata_feed_pull_age_seconds", model="default", feed="sample") == 90
    assert value(series, "errata_feed_error", model="default", feed="sample") == 0
    pause(sqlite_ledger, model="default", feed="sample", who="t", reason="r")
    pause(sqlite_ledger, model="default", feed=None, who="t", reason="r")
    with sqlite_ledger.write() as connection:
        connection.execute(update(feeds).values(error="gone"))
    series = scrape(sqlite_ledger, config)
    assert value(series, "errata_feed_error", model="default", feed="sample") == 1
    assert value(series, "errata_feed_paused", model="default", feed="sample") == 1
    assert value(series, "errata_paused", model="default") == 1


def test_a_ledger_that_does_not_answer_is_a_metric(tmp_path: Path, config: Config) -> None:
    file = tmp_path / "broken.sqlite"
    ledger = Ledger.open(f"sqlite:///{file}")
    found(ledger)
    ledger.close()
    for part in tmp_path.glob("broken.sqlite*"):
        part.unlink()
    file.write_bytes(b"no database at all" * 500)
    series = scrape(ledger, config)
    assert value(series, "errata_ledger_up") == 0
    assert {name for name, _ in series} == {"errata_ledger_up", "errata_build_info"}


def test_counters_only_grow_over_rollbacks(story: Ledger, config: Config) -> None:
    before = scrape(story, config)
    roll_back(story, 0, "tester", "demo")
    after = scrape(story, config)
    for name in ("errata_edits_total", "errata_rollbacks_total"):
        assert value(after, name, model="default") >= value(before, name, model="default")  # type: ignore[operator]


def test_stages_are_histograms_over_all_edits(story: Ledger, config: Config) -> None:
    history = StageHistory()
    render(story, config, history)
    series = scrape(story, config, history)  # a second look at the same edits counts none twice
    name, labels = "errata_edit_stage_duration_seconds", {"model": "default", "stage": "write"}
    assert value(series, f"{name}_count", **labels) == 3
    assert value(series, f"{name}_sum", **labels) == 3 * 2.25
    assert value(series, f"{name}_bucket", le="1.0", **labels) == 0
    assert value(series, f"{name}_bucket", le="3.0", **labels) == 3


def test_the_judge_is_heard(sqlite_ledger: Ledger) -> None:
    """Verdicts, losses and drift are those of the content of head, also after a rollback."""
    config = Config()
    for _ in range(9):
        commit_and_judge(sqlite_ledger, config, suite_row(right(100)))
    commit_and_judge(sqlite_ledger, config, suite_row(right(100, range(30))))
    series = scrape(sqlite_ledger, config)
    labels = {"model": "default", "probe": "quiz"}
    assert value(series, "errata_revision_head", model="default") == 11
    assert value(series, "errata_verdict", result="ok", **labels) == 1
    assert value(series, "errata_verdict", result="degraded", **labels) == 0
    assert value(series, "errata_probe_loss", **labels) == 0
    assert value(series, "errata_probe_p_value", **labels) == 1
    assert value(series, "errata_probe_drift", **labels) == 0
    assert value(series, "errata_drift_limit", model="default") == config.watch.drift_limit
    labels = {"model": "default", "subject": "revision", "result": "degraded", "state": "rolled_back"}
    assert value(series, "errata_incidents", **labels) == 1


def test_what_waits_to_be_live_has_an_age(sqlite_ledger: Ledger, config: Config, clock: FakeClock) -> None:
    commit_and_judge(sqlite_ledger, config, unknown_row())
    clock.advance(90)
    series = scrape(sqlite_ledger, config)
    assert value(series, "errata_promotion_lag_seconds", model="default") == 90
    assert value(series, "errata_probe_age_seconds", model="default", probe="quiz") == 90
    assert value(series, "errata_probe_result", model="default", probe="quiz", result="unknown") == 1
