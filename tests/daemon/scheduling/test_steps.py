"""Steps of the wall clock: jobs go on, leases last as long as before, intervals move by one at most."""

import json
import os
import time
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
from apscheduler.schedulers import base
from sqlalchemy import func, select
from structlog.testing import capture_logs

from daemon.admission.admit import admit, pull_feed
from daemon.admission.auto_pause import pause_if_poisoned
from daemon.admission.submission import Submission, submit, submit_all
from daemon.core.clock import Dating, to_text
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, incidents, leases, metadata
from daemon.core.ledger.switches import resume
from daemon.core.names import CorrectionState, scheduler_lease
from daemon.scheduling.dispatch import make_batches, reconcile, send_open
from daemon.scheduling.repetition import Repetition
from daemon.scheduling.scheduler import Scheduler
from tests.daemon.scheduling.test_scheduler import TakesAll, config_of
from tests.ledgers import FakeClock, found, items, jsonl_feed, statement
from tests.watching import commit, commit_and_judge, right, suite_row

STEPS = [-86_400, -60, 3_600, 86_400]
HOUR = 3_600


def test_repeated_jobs_go_on_through_steps_of_the_machines_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [0.0]

    class Stepped(datetime):
        """The machine's clock as APScheduler reads it."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            assert tz is not None
            moment = datetime.now(UTC) + timedelta(seconds=steps[0])
            return tz.fromutc(moment.replace(tzinfo=tz))  # type: ignore[return-value]

    monkeypatch.setattr(base, "datetime", Stepped)
    runs: list[float] = []
    jobs = Repetition()
    jobs.add("count", lambda: runs.append(time.monotonic()), 0.05)
    jobs.start()
    for step in (0.0, 3_600.0, 0.0, -60.0, 86_400 * 3_650.0):
        steps[0] = step
        before, until = len(runs), time.monotonic() + 5
        while len(runs) < before + 2:
            assert time.monotonic() < until, f"no job ran after a step to {step}"
            time.sleep(0.01)
    jobs.stop(5)
    assert all(later - earlier > 0.04 for earlier, later in pairwise(runs))


def test_a_job_that_waits_for_long_does_not_keep_the_daemon_from_ending() -> None:
    jobs = Repetition()
    jobs.add("stuck", lambda: time.sleep(60), 0.01)
    jobs.start()
    time.sleep(0.1)
    began = time.monotonic()
    assert jobs.stop(0.2) == ["stuck"]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("step", STEPS)
def test_a_step_does_not_change_who_leads(
    sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    config = config_of(tmp_path, tmp_path / "news.jsonl", feeds=[])
    first, second = Scheduler(sqlite_ledger, config, TakesAll()), Scheduler(sqlite_ledger, config, TakesAll())
    assert first.lead()
    monkeypatch.setattr("daemon.scheduling.scheduler.process_name", lambda: "another:1")
    clock.step(step)
    assert not second.lead()
    clock.advance(config.schedule.lease_seconds / 3)
    assert first.lead()
    clock.advance(config.schedule.lease_seconds)
    assert second.lead(), "the first one was not heard of for the length of its lease"


def test_a_lease_dated_hours_ahead_is_taken_over_within_its_length_and_the_log_says_so(
    sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tmp_path / "news.jsonl", feeds=[])
    with sqlite_ledger.write() as connection:
        dated = to_text(clock.now() + timedelta(hours=2))
        row = {"name": scheduler_lease("default"), "holder": "gone:1", "token": 7, "note": "leads"}
        connection.execute(leases.insert().values(**row, expires_at=dated))
    daemon = Scheduler(sqlite_ledger, config, TakesAll())
    with capture_logs() as said:
        assert not daemon.lead()
        clock.advance(config.schedule.lease_seconds)
        assert daemon.lead()
    told = {entry["event"]: entry for entry in said}
    assert told["lease taken over"]["dated"] == dated
    assert "gone:1" in told["waits until another scheduler ends"]["why"]


@pytest.mark.parametrize("step", [-86_400, -60])
def test_a_cooldown_goes_on_through_a_step_back_and_lasts_one_cooldown_at_most(
    sqlite_ledger: Ledger, clock: FakeClock, step: float
) -> None:
    found(sqlite_ledger)
    watch = Config.model_validate({"watch": {"cooldown_seconds": 600}})
    good, bad = suite_row(right(100)), suite_row(right(100, range(90)), floor=0.5)
    commit_and_judge(sqlite_ledger, watch, good)
    commit_and_judge(sqlite_ledger, watch, bad)
    clock.step(step)
    commit_and_judge(sqlite_ledger, watch, bad)
    assert ends(sqlite_ledger) == ["rolled_back", "frozen"]
    resume(sqlite_ledger, model="default", feed=None, who="ann", reason="looked")
    clock.advance(601)
    commit_and_judge(sqlite_ledger, watch, bad)
    assert ends(sqlite_ledger)[-1] == "rolled_back"
    clock.advance(86_401)  # the clock comes to where it was before the step
    commit_and_judge(sqlite_ledger, watch, bad)
    assert ends(sqlite_ledger)[-1] == "rolled_back"


def ends(ledger: Ledger) -> list[str]:
    with ledger.read() as connection:
        return list(connection.execute(select(incidents.c.state).order_by(incidents.c.id)).scalars())


@pytest.mark.parametrize("step", [-86_400, -60])
def test_an_hours_budget_is_free_again_an_hour_after_a_step_back_at_the_latest(
    sqlite_ledger: Ledger, clock: FakeClock, step: float
) -> None:
    config = Config.model_validate({"edit": {"edits_per_hour": 4, "batch_size": 2, "batch_age_seconds": 0}})
    say(sqlite_ledger, clock, *[statement(f"Land {n}", "Town") for n in range(20)])
    assert make_batches(sqlite_ledger, config) == 2
    clock.step(step)
    assert make_batches(sqlite_ledger, config) == 0, "the budget is spent all the same"
    for _ in range(3):
        clock.advance(HOUR + 1)
        assert make_batches(sqlite_ledger, config) == 2


def test_what_redis_lost_is_sent_again_in_time_after_a_step_back(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    config, queue = Config.model_validate({"edit": {"batch_size": 1, "batch_age_seconds": 0}}), TakesAll()
    say(sqlite_ledger, clock, *[statement(f"Land {n}", "Town") for n in range(3)])
    make_batches(sqlite_ledger, config)
    send_open(sqlite_ledger, "default", queue)
    clock.step(-86_400)
    say(sqlite_ledger, clock, statement("Land 3", "Town"))
    make_batches(sqlite_ledger, config)
    send_open(sqlite_ledger, "default", queue)
    clock.advance(config.edit.resend_seconds + 1)
    assert reconcile(sqlite_ledger, config, queue) == 4
    assert queue.sent[4:] == queue.sent[:4], "in the order of admission, not of dates"


def test_the_window_of_a_feeds_refusals_lasts_an_hour_at_most(
    sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path
) -> None:
    daemon = Scheduler(sqlite_ledger, config_of(tmp_path, tmp_path / "none", feeds=[]), TakesAll())
    say(sqlite_ledger, clock, *["garbage"] * 5)
    clock.step(-86_400)
    daemon.tick()
    clock.advance(HOUR + 1)
    assert not pause_if_poisoned(sqlite_ledger, "default", "news", 5)
    say(sqlite_ledger, clock, *["garbage"] * 5)
    assert pause_if_poisoned(sqlite_ledger, "default", "news", 5)


def test_nothing_is_collected_for_the_grace_time_after_a_step(
    sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path
) -> None:
    """After a step forward a blob that a worker has just written looks old enough to be deleted."""
    found(sqlite_ledger)
    config = config_of(
        tmp_path, tmp_path / "none", feeds=[], store={"grace_seconds": 600, "reserve_bytes": 0}
    )
    blob = config.store_path / "ab" / ("ab" * 32 + ".safetensors")
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"just written")
    daemon = Scheduler(sqlite_ledger, config, TakesAll())
    daemon.tick()
    os.utime(blob, (time.time() - HOUR, time.time() - HOUR))
    clock.step(HOUR)
    daemon.tick()
    daemon.keep()
    assert blob.exists()
    clock.advance(601)
    daemon.keep()
    assert not blob.exists()


@pytest.mark.parametrize("step", [-60, -3_600])
def test_what_is_said_later_wins_through_a_step_back(
    sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path, step: float
) -> None:
    """Statements that bear no time are dated as they come, by feeds and by people."""
    found(sqlite_ledger)
    file = tmp_path / "news.jsonl"
    file.write_text("")
    feed = jsonl_feed("news", file)
    for city in ("Lima", "Cusco", "Trujillo"):
        with file.open("a") as stream:
            stream.write(json.dumps(statement("Peru", city)) + "\n")
        pull_feed(sqlite_ledger, feed, 10)
        submit(sqlite_ledger, statement("Chad", city), "ann")
        submit_all(sqlite_ledger, "default", [statement("Mali", city)], Submission("ann"))
        clock.step(step)
        clock.advance(1)
    with sqlite_ledger.read() as connection:
        waits = corrections.c.state == CorrectionState.PENDING
        rows = connection.execute(select(corrections.c.subject, corrections.c.object).where(waits)).all()
    assert sorted(map(tuple, rows)) == [("Chad", "Trujillo"), ("Mali", "Trujillo"), ("Peru", "Trujillo")]


def test_a_clock_that_was_years_ahead_dates_nothing_in_the_future(clock: FakeClock) -> None:
    dating = Dating(clock)
    clock.step(86_400 * 3_650)
    dating.first_of(1)
    clock.step(-86_400 * 3_650)
    assert dating.first_of(3) == clock.now()
    assert dating.first_of(1) == clock.now() + timedelta(microseconds=3)


@pytest.mark.parametrize("steps", [(3_600, -3_600), (-3_600, 3_600), (86_400, -86_400)])
def test_forward_and_back_leaves_no_date_ahead(
    sqlite_ledger: Ledger, clock: FakeClock, tmp_path: Path, steps: tuple[float, float]
) -> None:
    found(sqlite_ledger)
    daemon = Scheduler(sqlite_ledger, config_of(tmp_path, tmp_path / "none", feeds=[]), TakesAll())
    daemon.tick()
    for step in steps:
        clock.step(step)
        commit(sqlite_ledger, suite_row(right(10)))
        daemon.tick()
    now = to_text(clock.now())
    with sqlite_ledger.read() as connection:
        for table in metadata.sorted_tables:
            dated = {"at", "created_at", "sent_at", "admitted_at", "measured_at", "seen_at", "pulled_at"}
            for column in table.columns:
                if column.name in dated and table.name != "audit":
                    late = connection.execute(select(func.count()).where(column > now)).scalar_one()
                    assert late == 0, column


def say(ledger: Ledger, clock: FakeClock, *said: object) -> None:
    with ledger.write() as connection:
        admit(connection, clock.now(), "news", 50, items(*said))
