"""``POST /v1/alerts``: one rollback for an incident however often it comes, and a row for each delivery."""

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
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit as audit_table
from daemon.core.ledger.schema import incidents, revisions, switches
from tests.ledgers import FakeClock
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


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"alerts": [{}]},
        {"alerts": "all"},
        {"alerts": [{"status": "firing", "labels": {}, "startsAt": "x"}]},
    ],
)
def test_what_is_no_delivery_is_refused(sqlite_ledger: Ledger, body: dict[str, Any]) -> None:
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
