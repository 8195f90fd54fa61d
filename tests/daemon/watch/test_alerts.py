"""``POST /v1/alerts``: one rollback for an incident however often it comes, and a row for each delivery."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from daemon.api.app import make_app
from daemon.core.config.settings import Config
from daemon.core.ledger import audit
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit as audit_table
from daemon.core.ledger.schema import incidents, revisions, switches
from daemon.core.names import RollbackCause
from tests.ledgers import FakeClock, held, roll_back
from tests.watching import commit_and_judge, right, suite_row

QUIET = Config(watch={"auto_rollback": False})  # type: ignore[arg-type]
BAD = suite_row(right(100, range(90)), floor=0.5)


def client(ledger: Ledger, config: Config = QUIET) -> TestClient:
    app = make_app(ledger, config)
    return TestClient(app, base_url="http://127.0.0.1:8765", client=("127.0.0.1", 5))


def delivery(began: datetime, **labels: str) -> dict[str, Any]:
    """What Alertmanager posts: one firing alert that asks for a rollback."""
    shown = {"alertname": "ErrataProbeDegraded", "action": "rollback", "model": "default", **labels}
    alert = {
        "status": "firing", "labels": shown, "annotations": {}, "startsAt": began.isoformat(),
        "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": "0123456789abcdef",
    }  # fmt: skip
    return {"version": "4", "groupKey": "{}", "status": "firing", "receiver": "errata", "alerts": [alert]}


def post(http: TestClient, body: dict[str, Any]) -> str:
    answer = http.post("/v1/alerts", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["reaction"])


def chain(ledger: Ledger) -> list[str]:
    with ledger.read() as connection:
        return list(connection.execute(select(revisions.c.kind).order_by(revisions.c.number)).scalars())


def last(ledger: Ledger) -> Any:
    with ledger.read() as connection:
        return head(connection, "default")


def deliveries(ledger: Ledger) -> int:
    with ledger.read() as connection:
        assert audit.first_broken_row(connection) is None
        rows = connection.execute(select(audit_table).where(audit_table.c.action == "alert"))
        return len(rows.all())


def test_an_alert_about_our_probe_takes_the_degraded_head_back(ledger: Ledger, clock: FakeClock) -> None:
    commit_and_judge(ledger, QUIET, suite_row(right(100)))
    commit_and_judge(ledger, QUIET, BAD)
    assert chain(ledger) == ["base", "edit", "edit"], "the judge itself was told not to"
    http = client(ledger)
    began = clock.now() + timedelta(seconds=5)
    clock.advance(10)
    assert post(http, delivery(began, probe="quiz")) == "rolled_back"
    assert post(http, delivery(began, probe="quiz")) == "nothing"
    assert chain(ledger) == ["base", "edit", "edit", "rollback"]
    assert deliveries(ledger) == 2


def test_500_deliveries_at_once_are_one_rollback(sqlite_ledger: Ledger) -> None:
    commit_and_judge(sqlite_ledger, QUIET, suite_row(right(100)))
    commit_and_judge(sqlite_ledger, QUIET, BAD)
    http, body = client(sqlite_ledger), delivery(sqlite_ledger.clock.now(), probe="quiz")
    began = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        reactions = list(pool.map(lambda _: post(http, body), range(500)))
    print(f"500 deliveries in {time.monotonic() - began:.1f} s")
    assert sorted(set(reactions)) == ["nothing", "rolled_back"]
    assert reactions.count("rolled_back") == 1
    assert chain(sqlite_ledger) == ["base", "edit", "edit", "rollback"]
    assert deliveries(sqlite_ledger) == 500
    with sqlite_ledger.read() as connection:
        assert connection.execute(select(switches)).all() == [], "nothing is frozen"


def test_500_deliveries_of_a_foreign_alert_are_one_rollback(sqlite_ledger: Ledger, clock: FakeClock) -> None:
    """Also when this clock is behind Prometheus', so that the alert seems to be newer than the rollback."""
    commit_and_judge(sqlite_ledger, QUIET, suite_row(right(100)))
    http, body = client(sqlite_ledger), delivery(clock.now() + timedelta(hours=1), alertname="AnswersWrong")
    with ThreadPoolExecutor(32) as pool:
        reactions = list(pool.map(lambda _: post(http, body), range(100)))
    assert reactions.count("rolled_back") == 1
    assert "frozen" not in reactions
    with sqlite_ledger.read() as connection:
        (incident,) = connection.execute(select(incidents)).mappings()
    assert (incident["probe"], incident["state"]) == ("alert:AnswersWrong", "rolled_back")


def test_an_alert_that_began_before_head_was_made_is_about_something_else(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    commit_and_judge(sqlite_ledger, QUIET, suite_row(right(100)))
    early = clock.now() - timedelta(seconds=1)
    assert post(client(sqlite_ledger), delivery(early, alertname="AnswersWrong")) == "nothing"
    assert chain(sqlite_ledger) == ["base", "edit"]


@pytest.mark.parametrize(
    "change",
    [{"action": "page"}, {"model": "another"}, {"probe": "quiz"}],
    ids=["asks for something else", "about another model", "the ledger knows that the probe is fine"],
)
def test_what_calls_for_nothing_is_only_noted(
    sqlite_ledger: Ledger, clock: FakeClock, change: dict[str, str]
) -> None:
    commit_and_judge(sqlite_ledger, QUIET, suite_row(right(100)))
    clock.advance(5)
    assert post(client(sqlite_ledger), delivery(clock.now(), **change)) == "nothing"
    assert chain(sqlite_ledger) == ["base", "edit"]
    assert deliveries(sqlite_ledger) == 1


def test_resolved_is_only_noted(sqlite_ledger: Ledger, clock: FakeClock) -> None:
    commit_and_judge(sqlite_ledger, QUIET, suite_row(right(100)))
    commit_and_judge(sqlite_ledger, QUIET, BAD)
    body = delivery(clock.now(), probe="quiz")
    body["alerts"][0]["status"] = "resolved"
    assert post(client(sqlite_ledger), body) == "nothing"


def test_the_next_incident_within_the_cooldown_freezes(sqlite_ledger: Ledger, clock: FakeClock) -> None:
    http = client(sqlite_ledger)
    reactions = []
    for _ in range(2):
        commit_and_judge(sqlite_ledger, QUIET, suite_row(right(100)))
        commit_and_judge(sqlite_ledger, QUIET, BAD)
        clock.advance(5)
        reactions.append(post(http, delivery(clock.now(), probe="quiz")))
    assert reactions == ["rolled_back", "frozen"]


@pytest.mark.parametrize("body", [{}, [], 5, {"alerts": "all"}, {"alerts": None}, {"alerts": {}}])
def test_what_is_no_delivery_is_refused(sqlite_ledger: Ledger, body: Any) -> None:
    assert client(sqlite_ledger).post("/v1/alerts", json=body).status_code == 422
    assert deliveries(sqlite_ledger) == 0


def test_a_token_guards_it(sqlite_ledger: Ledger, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret-of-the-test\n")
    guarded = Config(api={"token_file": token})  # type: ignore[arg-type]
    http, body = client(sqlite_ledger, guarded), delivery(sqlite_ledger.clock.now())
    assert http.post("/v1/alerts", json=body).status_code == 401
    bearer = {"Authorization": "Bearer s3cret-of-the-test"}
    assert http.post("/v1/alerts", json=body, headers=bearer).status_code == 200


# -- which revision an alert accuses ---------------------------------------------------------------------


def teach(ledger: Ledger, clock: FakeClock, *wrong: range) -> None:
    """Commit one revision for each range of wrong items, a minute apart."""
    for items in wrong:
        clock.advance(60)
        commit_and_judge(ledger, QUIET, suite_row(right(100, items)))
    clock.advance(60)


def held_facts(ledger: Ledger) -> int:
    return len(held(ledger))


GOOD = range(0)


def test_an_alert_takes_back_the_revision_that_it_names_and_no_other(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    teach(sqlite_ledger, clock, GOOD, GOOD, GOOD)
    http = client(sqlite_ledger)
    for number in ("17", "0", "4"):
        body = delivery(clock.now(), alertname=f"Wrong{number}", revision=number)
        assert post(http, body) == "nothing", "head does not hold it, or it is the base"
    assert post(http, delivery(clock.now(), alertname="Wrong", revision="r2")) == "rolled_back"
    assert last(sqlite_ledger)["content_of"] == 1
    assert post(http, delivery(clock.now(), alertname="Wrong", revision="3")) == "nothing", (
        "taken back already"
    )


def test_an_alert_that_fires_again_leaves_alone_what_it_did_not_accuse(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    """What it accused is gone, and nothing new came since: the good revision below stays."""
    teach(sqlite_ledger, clock, GOOD, GOOD)
    http = client(sqlite_ledger)
    assert post(http, delivery(clock.now(), alertname="Wrong")) == "rolled_back"
    for _ in range(3):
        clock.advance(QUIET.watch.cooldown_seconds + 1)
        assert post(http, delivery(clock.now(), alertname="Wrong")) == "nothing"
        assert post(http, delivery(clock.now(), alertname="Wrong", fingerprint="another")) == "nothing"
    assert held_facts(sqlite_ledger) == 1
    teach(sqlite_ledger, clock, GOOD)
    assert post(http, delivery(clock.now(), alertname="Wrong")) == "rolled_back", (
        "a new edit may be the cause"
    )
    assert held_facts(sqlite_ledger) == 1


def test_one_firing_is_answered_once_whatever_is_committed_meanwhile(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    """Also when Prometheus' clock is ahead, so that the alert seems to be newer than every revision."""
    teach(sqlite_ledger, clock, GOOD, GOOD)
    http, body = client(sqlite_ledger), delivery(clock.now() + timedelta(days=1), alertname="Wrong")
    assert post(http, body) == "rolled_back"
    clock.advance(QUIET.watch.cooldown_seconds + 1)
    teach(sqlite_ledger, clock, GOOD)
    assert post(http, body) == "nothing"
    assert held_facts(sqlite_ledger) == 2


def test_an_alert_after_a_rollback_by_somebody_else_takes_nothing_more_back(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    """Recovery left the degraded revision behind, and its incident with it."""
    teach(sqlite_ledger, clock, GOOD, range(90))
    roll_back(sqlite_ledger, 1, "store", cause=RollbackCause.RECOVERY)
    clock.advance(60)
    assert post(client(sqlite_ledger), delivery(clock.now(), probe="quiz")) == "nothing"
    assert held_facts(sqlite_ledger) == 1


def test_what_the_operator_brought_back_is_taken_back_only_by_a_new_firing(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    teach(sqlite_ledger, clock, GOOD, GOOD)
    http, body = client(sqlite_ledger), delivery(clock.now(), alertname="Wrong", revision="2")
    assert post(http, body) == "rolled_back"
    roll_back(sqlite_ledger, 2, "ann", "the alert was wrong")
    clock.advance(QUIET.watch.cooldown_seconds + 1)
    assert post(http, body) == "nothing"
    assert post(http, delivery(clock.now(), alertname="Wrong", revision="2")) == "rolled_back"
    assert held_facts(sqlite_ledger) == 1


def test_an_alert_about_the_base_freezes_nothing(sqlite_ledger: Ledger, clock: FakeClock) -> None:
    teach(sqlite_ledger, clock, GOOD)
    roll_back(sqlite_ledger, 0)
    clock.advance(60)
    assert post(client(sqlite_ledger), delivery(clock.now(), alertname="Wrong")) == "nothing"
    with sqlite_ledger.read() as connection:
        assert connection.execute(select(switches)).all() == []


# -- what says nothing about the model -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "annotations"),
    [
        ({"alertname": "DatasourceNoData"}, {}),
        ({"alertname": "DatasourceError"}, {}),
        ({"alertname": "datasourcenodata"}, None),
        ({"alertname": "AnswersWrong", "rulename": "AnswersWrong", "datasource_uid": "x", "ref_id": "A"}, {}),
        ({"alertname": "AnswersWrong"}, {"grafana_state_reason": "NoData"}),
        ({"alertname": "AnswersWrong"}, {"grafana_state_reason": "Error, KeepLast"}),
        ({"alertname": "DatasourceNoData", "revision": "2"}, {}),
        ({"alertname": "DatasourceError", "probe": "quiz"}, {}),
    ],
)
def test_missing_data_never_lead_back(
    sqlite_ledger: Ledger, clock: FakeClock, labels: dict[str, str], annotations: Any
) -> None:
    teach(sqlite_ledger, clock, GOOD, range(90))
    body = delivery(clock.now(), **labels)
    body["alerts"][0]["annotations"] = annotations
    assert post(client(sqlite_ledger), body) == "nothing"
    assert chain(sqlite_ledger) == ["base", "edit", "edit"]


# -- odd alerts ----------------------------------------------------------------------------------------


def odd(began: datetime) -> list[Any]:
    """Alerts that are none, each in its own way."""
    good = delivery(began, alertname="Odd")["alerts"][0]
    without = [
        {key: value for key, value in good.items() if key != name}
        for name in ("status", "labels", "startsAt")
    ]
    wrong = [
        {**good, "labels": None}, {**good, "labels": []}, {**good, "labels": {"action": 5}},
        {**good, "startsAt": "yesterday"}, {**good, "startsAt": "2026-06-01T00:00:00"},
        {**good, "startsAt": []}, {**good, "status": 1}, {**good, "status": "x" * 100},
    ]  # fmt: skip
    named = [{**good, "labels": {**good["labels"], "revision": text}} for text in ("two", "-1", "1.0")]
    return [None, 5, "alert", [], {}, [good], True, 1e999, *without, *wrong, *named]


def test_an_odd_alert_costs_no_other(sqlite_ledger: Ledger, clock: FakeClock) -> None:
    teach(sqlite_ledger, clock, GOOD, GOOD)
    strange = odd(clock.now())
    body = delivery(clock.now(), alertname="Wrong")
    body["alerts"] = [*strange, *body["alerts"], *strange]
    answer = client(sqlite_ledger).post(
        "/v1/alerts", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    expected = {"model": "default", "reaction": "rolled_back", "alerts": 1, "unreadable": 2 * len(strange)}
    assert answer.json() == expected
    with sqlite_ledger.read() as connection:
        details = connection.execute(
            select(audit_table.c.details).where(audit_table.c.action == "alert")
        ).scalar_one()
    assert (details["unreadable"], details["asking"]) == (2 * len(strange), 1)


@pytest.mark.parametrize(
    "change", [{"fingerprint": None}, {"fingerprint": 7}, {"annotations": None}, {"x": "\0"}]
)
def test_what_is_odd_where_nobody_looks_costs_nothing(
    sqlite_ledger: Ledger, clock: FakeClock, change: dict[str, Any]
) -> None:
    teach(sqlite_ledger, clock, GOOD, GOOD)
    body = delivery(clock.now(), alertname="Wrong\0\x1b")
    body["alerts"][0] |= change
    assert post(client(sqlite_ledger), body) == "rolled_back"


@pytest.mark.parametrize("size", [1001, 10_000])
def test_a_group_of_any_size_is_answered(sqlite_ledger: Ledger, clock: FakeClock, size: int) -> None:
    teach(sqlite_ledger, clock, GOOD, GOOD)
    quiet = delivery(clock.now(), action="page", description="x" * 500)["alerts"]
    body = delivery(clock.now(), alertname="Wrong")
    body["alerts"] = [*(quiet * (size - 1)), *body["alerts"]]
    began = time.monotonic()
    assert post(client(sqlite_ledger), body) == "rolled_back"
    print(f"{size} alerts in {time.monotonic() - began:.1f} s")
    assert deliveries(sqlite_ledger) == 1


def test_ten_thousand_that_all_ask_are_one_rollback(sqlite_ledger: Ledger, clock: FakeClock) -> None:
    teach(sqlite_ledger, clock, GOOD, GOOD)
    alerts = [
        delivery(clock.now(), alertname="Wrong", pod=str(number))["alerts"][0] for number in range(10_000)
    ]
    assert post(client(sqlite_ledger), {"alerts": alerts}) == "rolled_back"
    assert chain(sqlite_ledger) == ["base", "edit", "edit", "rollback"]
    with sqlite_ledger.read() as connection:
        assert len(connection.execute(select(incidents)).all()) == 1
