"""Commands that only read print tables or JSON, in which text from feeds cannot steer a terminal."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text, update

from daemon.cli.common import age
from daemon.core.clock import to_text
from daemon.core.ledger.schema import audit, corrections, incidents, workers
from tests.installation import Installation
from tests.ledgers import states


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setenv("ERRATA_WHO", "ann")
    installation = Installation(tmp_path)
    installation.tell_story().close()
    return installation


def subjects(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["subject"]: row for row in document["facts"]}


def test_status(installation: Installation) -> None:
    page = installation.errata_json("status")
    assert (page["head"], page["live"], page["active_facts"], page["paused"]) == (4, 4, 2, False)
    assert page["queue"]["pending"] == 1
    assert page["quarantine_held"] == 2
    shown = installation.errata("status").stdout
    assert "head         4, live 4, 2 active facts" in shown
    assert "1 pending, 0 queued" in shown
    assert "perplexity_ratio" in shown


def test_facts(installation: Installation) -> None:
    facts = subjects(installation.errata_json("facts"))
    assert list(facts) == ["Peru", "Chad", "Fiji", "Mali"]
    assert (facts["Peru"]["in_weights"], facts["Peru"]["revision"]) == ("Cusco", 2)
    assert (facts["Fiji"]["state"], facts["Fiji"]["in_weights"]) == ("reverted", None)
    assert list(subjects(installation.errata_json("facts", "--state", "pending"))) == ["Mali"]
    result = installation.errata("facts", "--state", "forgotten")
    assert result.exit_code == 2
    assert "applied" in result.stderr


def test_a_pipe_gets_whole_ids_and_no_colours(installation: Installation) -> None:
    shown = installation.errata("facts").stdout
    for row in installation.errata_json("facts")["facts"]:
        assert row["fact"] in shown
    assert "\x1b" not in shown
    assert "…" not in shown


def test_the_story_of_one_fact_by_subject_or_prefix(installation: Installation) -> None:
    story = installation.errata_json("facts", "Peru")
    assert [said["object"] for said in story["corrections"]] == ["Lima", "Cusco"]
    assert installation.errata_json("facts", story["fact"][:9]) == story
    shown = installation.errata("facts", "Peru").stdout
    assert "1..1" in shown, "Lima held at revision 1 only"
    assert "2.." in shown


def test_an_unknown_fact(installation: Installation) -> None:
    result = installation.errata("facts", "Atlantis")
    assert result.exit_code == 5
    assert result.stderr == "error: there is no fact 'Atlantis'\n  errata facts lists them\n"


def test_revisions_and_one_of_them(installation: Installation) -> None:
    rows = installation.errata_json("revisions")["revisions"]
    assert [(row["number"], row["kind"], row["state"]) for row in rows] == [
        (4, "rollback", "live"),
        (3, "edit", "rejected"),
        (2, "edit", "live"),
        (1, "edit", "live"),
        (0, "base", "live"),
    ]
    assert "rollback to 2" in installation.errata("revisions").stdout
    detail = installation.errata_json("show", "r2")
    assert [row["object"] for row in detail["written"]] == ["Cusco"]
    assert detail["tensors"] == {"down_proj": detail["tensors"]["down_proj"]}
    shown = installation.errata("show", "4").stdout
    assert "revision 4 head live" in shown
    assert "revision 3 is degraded" in shown


@pytest.mark.parametrize("text", ["99", "../../etc/passwd", "-1", "1;2", "", "1e3", "9" * 40])
def test_an_unknown_revision(installation: Installation, text: str) -> None:
    for command in (["show", "--", text], ["rollback", "--reason", "x", f"--to={text}"]):
        result = installation.errata(*command)
        assert result.exit_code == 5, result.output
        assert result.stderr.startswith("error: ")
        assert "errata revisions lists them" in result.stderr


def test_incidents_and_closing_one(installation: Installation) -> None:
    (row,) = installation.errata_json("incidents")["incidents"]
    assert (row["revision"], row["probe"], row["state"]) == (3, "perplexity_ratio", "rolled_back")
    assert installation.errata_json("incidents", "--open")["incidents"] == []
    ledger = installation.open()
    with ledger.write() as connection:
        connection.execute(update(incidents).values(state="open"))
    ledger.close()
    assert len(installation.errata_json("incidents", "--open")["incidents"]) == 1
    assert installation.errata("incidents", "--close", str(row["id"])).exit_code == 2
    rows = installation.errata_json("incidents", "--open", "--close", str(row["id"]), "--reason", "seen")
    assert rows["incidents"] == []
    assert installation.errata_json("audit", "list", "--limit", "1")["audit"][0]["who"] == "ann"
    assert installation.errata("incidents", "--close", "99", "--reason", "x").exit_code == 5


def test_metrics_are_text_for_prometheus(installation: Installation) -> None:
    shown = installation.errata("metrics").stdout
    assert shown.startswith("# HELP errata_ledger_up ")
    assert 'errata_revision_head{model="default"} 4.0\n' in shown


def test_audit_list_and_verify(installation: Installation) -> None:
    rows = installation.errata_json("audit", "list", "--limit", "2")["audit"]
    assert len(rows) == 2
    assert rows[0]["id"] > rows[1]["id"]
    assert installation.errata_json("audit", "verify") == {"ok": True, "first_broken_row": None}
    ledger = installation.open()
    with ledger.write() as connection:
        connection.execute(update(audit).where(audit.c.id == 2).values(who="nobody"))
    ledger.close()
    result = installation.errata("audit", "verify")
    assert result.exit_code == 1
    assert "row 2 of the audit" in result.stdout
    result = installation.errata("audit", "verify", "--json")
    assert (result.exit_code, json.loads(result.stdout)["first_broken_row"]) == (1, 2)


def test_what_a_feed_says_cannot_steer_the_terminal(installation: Installation) -> None:
    ledger = installation.open()
    with ledger.write() as connection:
        connection.execute(
            update(corrections)
            .where(corrections.c.subject == "Peru")
            .values(subject="\x1b]0;owned\x07[red]Peru[/red]\r\n", reason="\x1b[2J[/nonsense]")
        )
        fact = connection.execute(text("select fact_id from corrections order by seq limit 1")).scalar_one()
    assert set(states(ledger).values()) >= {"applied"}
    ledger.close()
    for command in (["facts"], ["facts", fact], ["show", "1"]):
        result = installation.errata(*command)
        assert result.exit_code == 0
        assert not {"\x1b", "\x07", "\r"} & set(result.stdout)
        assert "[red]Peru[/red]" in result.stdout, "shown as it is, not read as markup"


def test_lists_of_nothing(tmp_path: Path) -> None:
    empty = Installation(tmp_path)
    empty.open().close()
    for command in (["facts"], ["incidents"], ["quarantine", "list"], ["audit", "list"]):
        result = empty.errata(*command)
        assert (result.exit_code, result.stdout[:3]) == (0, "no "), command
        (rows,) = (value for value in empty.errata_json(*command).values() if isinstance(value, list))
        assert rows == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0.25, "0.2s"), (42, "42s"), (310, "5m10s"), (10_920, "3h02m"), (367_200, "4d06h")],
)
def test_durations_for_people(seconds: float | None, shown: str) -> None:
    assert age(seconds) == shown


def test_status_says_plainly_which_process_was_lost(installation: Installation) -> None:
    """The daemon was killed -9 35 seconds ago, and a worker lives."""
    ledger = installation.open()
    now = ledger.clock.now()
    for role, name, silent in (("daemon", "h:1", 35), ("worker", "h:2", 5), ("worker", "h:3", 300)):
        row = {"name": name, "role": role, "state": "busy", "seconds": 10, "memory_bytes": 1800 << 20}
        at = to_text(now - timedelta(seconds=silent))
        with ledger.write() as connection:
            connection.execute(insert(workers).values(**row, model="default", device="", seen_at=at))
    ledger.close()
    result = installation.errata("status")
    assert result.exit_code == 0
    assert re.search(r"LOST +daemon h:1 was last heard of 3\ds ago and did not end in order", result.stdout)
    assert "LOST         worker" not in result.stdout, "one of them lives"
    page = installation.errata_json("status")
    assert page["lost"] == ["daemon"]
    assert [row["life"] for row in page["processes"]] == ["lost", "alive", "lost"]
    assert "LOST: daemon" in installation.errata("top", "--once").stdout
    report = json.loads(installation.errata("top", "--once", "--json").stdout)
    assert [row["name"] for row in report["workers"]] == ["h:2", "h:3"]
