"""Tests of the commands for feeds, of approve and of why."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from daemon.admission.admit import admit, pull_feed
from daemon.admission.policy import Policy
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit, feeds
from daemon.feeds.base import make_feed
from tests.installation import Installation
from tests.ledgers import items, statement, states


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("ERRATA_WHO", "ann")
    made = Installation(tmp_path)
    lines = [statement("Cuba", "Havana", 1), {"subject": "Cuba"}, statement("Oman", "Muscat", 1)]
    (tmp_path / "news.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    made.write(f"""
[admission]
protected_subjects = ["Oman"]
[[feeds]]
kind = "jsonl"
name = "news"
path = "{tmp_path}/news.jsonl"
[[feeds]]
kind = "wikidata"
name = "wikidata"
[[feeds]]
kind = "redis_stream"
name = "stream"
url = "redis://127.0.0.1:1"
stream = "facts"
""")
    return made


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    opened = installation.tell_story()
    yield opened
    opened.close()


def run(installation: Installation, *arguments: str, status: int = 0) -> Any:
    result = installation.errata(*arguments, "--json")
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if status == 0 else result.output


def read_news(installation: Installation, ledger: Ledger) -> None:
    config = installation.config
    pull_feed(ledger, make_feed(config.feeds[0]), 10, policy=Policy.of(config.admission))


def test_the_list_says_what_came_and_what_holds_a_feed_back(
    installation: Installation, ledger: Ledger
) -> None:
    read_news(installation, ledger)
    run(installation, "feeds", "pause", "news", "--reason", "odd")
    page = {row["name"]: row for row in run(installation, "feeds", "list")["feeds"]}
    assert page["news"]["outcomes"] == {"accepted": 1, "quarantined": 2}
    assert (page["news"]["paused"], page["news"]["pause_reason"]) == (True, "odd")
    assert (page["wikidata"]["kind"], page["wikidata"]["items"], page["wikidata"]["paused"]) == (
        "wikidata",
        0,
        False,
    )
    assert run(installation, "feeds", "resume", "news")["changed"]
    assert "news" in installation.errata("feeds", "list").stdout


def test_a_look_admits_nothing(installation: Installation, ledger: Ledger) -> None:
    before = states(ledger)
    rows = run(installation, "feeds", "test", "news")["items"]
    assert [row["verdict"].split(":")[0] for row in rows] == ["ok", "schema", "protected"]
    assert rows[0]["object"] == "Havana"
    assert states(ledger) == before
    with ledger.read() as connection:
        assert "news" not in connection.execute(select(feeds.c.name)).scalars().all()
    run(installation, "feeds", "test", "nobody", status=5)
    assert "not a public address" in run(installation, "feeds", "test", "https://127.0.0.1/x", status=1)


def test_a_replay_begins_again_and_admits_nothing_twice(installation: Installation, ledger: Ledger) -> None:
    read_news(installation, ledger)
    before = states(ledger)
    told = run(installation, "feeds", "replay", "news", "--from", "start", "--reason", "new rules")
    assert told["before"]["line"] == 3
    read_news(installation, ledger)
    assert states(ledger) == before
    with ledger.read() as connection:
        assert (
            connection.execute(select(audit.c.action).order_by(audit.c.id.desc())).scalars().first()
            == "replay"
        )


def test_a_replay_from_a_moment_is_for_streams_that_know_moments(
    installation: Installation, ledger: Ledger
) -> None:
    at, why = "2026-06-01T00:00:00+00:00", ("--reason", "gap")
    run(installation, "feeds", "replay", "wikidata", "--from", at, *why)
    with ledger.read() as connection:
        cursor = connection.execute(select(feeds.c.cursor).where(feeds.c.name == "wikidata")).scalar_one()
    assert json.loads(cursor["last_event_id"])[0]["timestamp"] == 1_780_272_000_000
    for feed, since in (("news", at), ("wikidata", "2026-06-01"), ("news", "{"), ("stream", "start")):
        run(installation, "feeds", "replay", feed, "--from", since, *why, status=2)


def test_what_waits_for_a_human_is_listed_and_let_in(installation: Installation, ledger: Ledger) -> None:
    read_news(installation, ledger)
    (entry,) = [row for row in run(installation, "approve")["waiting"] if row["subject"] == "Oman"]
    assert entry["reason"] == "protected"
    assert run(installation, "approve", str(entry["id"]), "--reason", "gazette")["outcome"] == "accepted"
    assert all(row["subject"] != "Oman" for row in run(installation, "approve")["waiting"])
    run(installation, "approve", str(entry["id"]), "--reason", "again", status=5)
    assert states(ledger)[entry["correction_id"]] == "pending"


def test_what_is_wrong_in_itself_is_not_approved(installation: Installation, ledger: Ledger) -> None:
    with ledger.write() as connection:
        admit(connection, ledger.clock.now(), "news", 50, items({"subject": "x"}))
    held = run(installation, "quarantine", "list")["quarantine"][0]["id"]
    run(installation, "approve", str(held), "--reason", "please", status=5)


def test_why_tells_the_story_from_feed_to_rollback(installation: Installation, ledger: Ledger) -> None:
    story = run(installation, "why", "Peru")
    kinds = [event["kind"] for event in story["events"]]
    assert kinds[0] == "said"
    assert {"said", "batch", "written", "probe", "ended"} <= set(kinds)
    assert [event["at"] for event in story["events"]] == sorted(event["at"] for event in story["events"])
    assert story["in_weights"] == "Cusco"
    fiji = run(installation, "why", "Fiji")
    assert fiji["in_weights"] is None
    assert any("rollback to 2" in event["text"] for event in fiji["events"])
    assert "incident" in {event["kind"] for event in fiji["events"]}
    assert "Cusco" in installation.errata("why", "Peru").stdout
    run(installation, "why", "Atlantis", status=5)
