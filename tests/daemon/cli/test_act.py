"""Tests of the commands that change something: their effect, what they refuse, their audit rows."""

import getpass
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit, switches
from tests.installation import Installation, write_quietly
from tests.ledgers import apply_waiting, held, statement, states


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    monkeypatch.setenv("ERRATA_WHO", "ann")
    return Installation(tmp_path)


@pytest.fixture
def ledger(installation: Installation) -> Iterator[Ledger]:
    opened = installation.tell_story()
    yield opened
    opened.close()


def last_audit(ledger: Ledger) -> dict[str, Any]:
    with ledger.read() as connection:
        row = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(1)).mappings().one()
    return dict(row)


def is_on(ledger: Ledger, name: str) -> bool:
    with ledger.read() as connection:
        return bool(connection.execute(select(switches.c.is_on).where(switches.c.name == name)).scalar())


# -- submit -----------------------------------------------------------------------------------------


def test_submit_by_options(installation: Installation, ledger: Ledger) -> None:
    (row,) = installation.errata_json(
        "submit", "--subject", "Togo", "--prompt", "The capital of Togo is", "--object", "Lomé",
        "--relation", "capital", "--paraphrase", "Togo's capital is", "--paraphrase", "Togo is ruled from",
        "--source", "gazette", "--effective-at", "2026-01-01T00:00:00Z",
    )["corrections"]  # fmt: skip
    assert row["outcome"] == "accepted"
    story = installation.errata_json("facts", "Togo")["corrections"][0]
    assert (story["source"], story["object"]) == ("gazette", "Lomé")
    assert story["paraphrases"] == ["Togo's capital is", "Togo is ruled from"]
    assert (last_audit(ledger)["who"], last_audit(ledger)["action"]) == ("ann", "submit")


ONE, TWO = statement("Togo", "Lomé"), statement("Oman", "Muscat")


@pytest.mark.parametrize(
    ("document", "count"),
    [
        (json.dumps(ONE), 1),
        (json.dumps([ONE, TWO], indent=2), 2),
        (f"{json.dumps(ONE)}\n\n{json.dumps(TWO)}\n", 2),
        ("[]", 0),
    ],
)
def test_submit_from_stdin_and_file(
    installation: Installation, ledger: Ledger, document: str, count: int
) -> None:
    before = len(states(ledger))
    rows = installation.errata_json("submit", "-", text=document)["corrections"]
    assert [row["outcome"] for row in rows] == ["accepted"] * count
    file = installation.folder / "said.json"
    file.write_text(document, encoding="utf-8")
    again = installation.errata_json("submit", str(file))["corrections"]
    assert [row["outcome"] for row in again] == ["confirmed"] * count
    assert len(states(ledger)) == before + 2 * count


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (f"{json.dumps(ONE)}\nnonsense\n", "line 2 is not JSON"),
        (json.dumps([ONE, {"subject": "Oman"}]), "item 2: object"),
        (json.dumps([ONE, TWO | {"observed_at": "2999-01-01T00:00:00Z"}]), "item 2: observed_at is"),
        (json.dumps(ONE | {"object": "Lo\x00mé"}), "U+0000 is not allowed"),
        (json.dumps(ONE | {"effective_at": "2999-01-01T00:00:00Z"}), "more than a day from now"),
        (json.dumps(ONE | {"model": "another"}), "no model 'another'"),
        (json.dumps("text"), "a correction is a JSON object"),
        ("", ""),
    ],
)
def test_a_bad_item_refuses_the_whole_delivery(
    installation: Installation, ledger: Ledger, document: str, message: str
) -> None:
    before = states(ledger)
    result = installation.errata("submit", "-", text=document)
    assert result.exit_code == (1 if message else 0)
    assert message in result.stderr
    assert states(ledger) == before


def test_what_cannot_be_read(installation: Installation, ledger: Ledger) -> None:
    result = installation.errata("submit", "nowhere.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot read nowhere.json: No such file")
    result = installation.errata("submit", "-", text=b"\xff\xfe")
    assert (result.exit_code, "not UTF-8" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--subject", "Togo"],
        ["--subject", "Togo", "--prompt", "Togo is"],
        ["--subject", "Togo", "--prompt", "Togo is", "--object", ""],
        ["-", "--subject", "Togo"],
    ],
)
def test_half_a_correction_is_wrong_usage(
    installation: Installation, ledger: Ledger, arguments: list[str]
) -> None:
    """A missing object is never taken to mean that the fact is no longer true."""
    before = states(ledger)
    assert installation.errata("submit", *arguments).exit_code == 2
    assert states(ledger) == before


def test_a_correction_is_meant_for_the_configured_model(installation: Installation) -> None:
    installation.write('[model]\nname = "prod"')
    ledger = Ledger.open(installation.config.ledger_url)
    installation.errata_json("submit", "-", text=json.dumps(ONE))
    assert installation.errata_json("facts", "Togo")["model"] == "prod"
    ledger.close()


# -- retract ----------------------------------------------------------------------------------------


def test_retract_takes_one_fact_out_and_leaves_the_others(installation: Installation, ledger: Ledger) -> None:
    done = installation.errata_json("retract", "Peru", "--reason", "withdrawn")
    assert done["outcome"] == "accepted"
    apply_waiting(ledger)
    assert held(ledger) == {"Chad": "Abéché", "Mali": "Bamako"}
    row = last_audit(ledger)
    assert (row["who"], row["action"], row["target"], row["reason"]) == (
        "ann", "retract", done["fact"], "withdrawn",
    )  # fmt: skip


def test_retract_wins_over_a_value_dated_ahead(installation: Installation, ledger: Ledger) -> None:
    """A retraction removes a fact even if a feed has dated its value some hours ahead."""
    ahead = ledger.clock.now() + timedelta(hours=20)
    said = statement("Togo", "Lomé", effective_at=ahead.isoformat())
    write_quietly(ledger, said)
    assert held(ledger)["Togo"] == "Lomé"
    assert installation.errata_json("retract", "Togo", "--reason", "wrong")["outcome"] == "accepted"
    apply_waiting(ledger)
    assert "Togo" not in held(ledger)


def test_retract_of_a_fact_whose_relation_is_a_long_prompt(
    installation: Installation, ledger: Ledger
) -> None:
    prompt = f"Togo, {'of which so much could be said, ' * 8}has the capital"
    assert len(prompt) > 200
    write_quietly(ledger, {"subject": "Togo", "prompt": prompt, "object": "Lomé"})
    done = installation.errata_json("retract", "Togo", "--reason", "wrong")
    apply_waiting(ledger)
    assert "Togo" not in held(ledger)
    assert done["fact"] == installation.errata_json("facts", "Togo")["fact"]


def test_retract_twice_says_that_there_is_nothing_to_do(installation: Installation) -> None:
    installation.tell_story().close()
    installation.errata("retract", "Peru", "--reason", "x")
    assert installation.errata_json("retract", "Peru", "--reason", "x")["outcome"] == "confirmed"


def test_retract_of_what_is_not_there_or_not_clear(installation: Installation, ledger: Ledger) -> None:
    assert installation.errata("retract", "Atlantis", "--reason", "x").exit_code == 5
    write_quietly(ledger, statement("Peru", "sol", relation="currency"))
    result = installation.errata("retract", "Peru", "--reason", "x")
    assert result.exit_code == 5
    assert "names 2 facts" in result.stderr
    assert "currency" in result.stderr
    assert held(ledger)["Peru"]


# -- rollback ---------------------------------------------------------------------------------------


def test_rollback_and_back_again(installation: Installation, ledger: Ledger) -> None:
    assert installation.errata_json("rollback", "--to", "0", "--reason", "demo")["head"] == 5
    assert held(ledger) == {}
    row = last_audit(ledger)
    assert (row["who"], row["action"], row["reason"]) == ("ann", "rollback", "demo")
    shown = installation.errata("rollback", "--to", "4", "--reason", "and back", "--expected-head", "5")
    assert shown.stdout == "head is 6, with the content of revision 4\n"
    assert held(ledger) == {"Peru": "Cusco", "Chad": "Abéché"}


def test_rollback_to_the_last_good_one(installation: Installation, ledger: Ledger) -> None:
    done = installation.errata_json("rollback", "--last-good", "--reason", "3 a.m.")
    assert done == {"model": "default", "head": 5, "content_of": 1}


def test_rollback_to_what_was_taken_back_says_who_did_and_why(
    installation: Installation, ledger: Ledger
) -> None:
    said = "revision 3 was taken back by judge (judge) in revision 4: revision 3 is degraded"
    shown = installation.errata("rollback", "--to", "3", "--reason", "I insist")
    assert shown.exit_code == 0
    assert f"warning: {said}" in shown.stderr
    installation.errata_json("rollback", "--to", "4", "--reason", "no")
    assert (
        "taken back by ann (operator)"
        in installation.errata_json("rollback", "--to", "5", "--reason", "yes")["warning"]
    )


def test_rollback_with_a_wrong_expected_head(installation: Installation, ledger: Ledger) -> None:
    result = installation.errata("rollback", "--to", "0", "--reason", "x", "--expected-head", "3")
    assert result.exit_code == 1
    assert "head is 4, not 3" in result.stderr
    assert held(ledger) != {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--reason", "x"],
        ["--to", "0", "--last-good", "--reason", "x"],
        ["--to", "0"],
        ["--to", "0", "--reason", " "],
    ],
)
def test_an_unclear_rollback_is_wrong_usage(
    installation: Installation, ledger: Ledger, arguments: list[str]
) -> None:
    assert installation.errata("rollback", *arguments).exit_code == 2
    assert held(ledger) != {}


# -- pause and resume -------------------------------------------------------------------------------


def test_pause_and_resume_edits(installation: Installation, ledger: Ledger) -> None:
    assert installation.errata_json("pause", "--reason", "maintenance")["changed"] is True
    assert is_on(ledger, "paused:default")
    assert (last_audit(ledger)["action"], last_audit(ledger)["reason"]) == ("pause", "maintenance")
    assert "model default is paused already" in installation.errata("pause", "--reason", "again").stdout
    assert "PAUSED" in installation.errata("status").stdout
    assert installation.errata_json("resume")["paused"] is False
    assert not is_on(ledger, "paused:default")
    assert (last_audit(ledger)["who"], last_audit(ledger)["action"]) == ("ann", "resume")


def test_pause_one_feed(installation: Installation, ledger: Ledger) -> None:
    installation.errata_json("pause", "--feed", "sample", "--reason", "vandals")
    assert is_on(ledger, "feed:sample")
    assert not is_on(ledger, "paused:default")
    result = installation.errata("pause", "--feed", "sampel", "--reason", "x")
    assert result.exit_code == 5
    assert "configured: sample" in result.stderr
    assert installation.errata("pause").exit_code == 2, "a pause says why"


# -- quarantine -------------------------------------------------------------------------------------


def test_quarantine_list_release_and_drop(installation: Installation, ledger: Ledger) -> None:
    newest, oldest = installation.errata_json("quarantine", "list")["quarantine"]
    assert (oldest["position"], oldest["reason"], oldest["feed"]) == ("line 1", "schema", "sample")
    assert "line 1" in installation.errata("quarantine", "list").stdout
    result = installation.errata("quarantine", "release", str(oldest["id"]), "--reason", "try again")
    assert result.exit_code == 1, "what is still malformed stays held"
    assert installation.errata_json("quarantine", "drop", str(newest["id"]), "--reason", "nonsense") == {
        "id": newest["id"], "state": "dropped",
    }  # fmt: skip
    assert (last_audit(ledger)["who"], last_audit(ledger)["reason"]) == ("ann", "nonsense")
    assert [r["id"] for r in installation.errata_json("quarantine", "list")["quarantine"]] == [oldest["id"]]
    every = installation.errata_json("quarantine", "list", "--all")["quarantine"]
    assert [r["state"] for r in every] == ["dropped", "held"]
    assert installation.errata("quarantine", "drop", "99", "--reason", "x").exit_code == 5
    assert installation.errata("quarantine", "drop", str(oldest["id"]), "--reason", "").exit_code == 2


def test_release_lets_a_reverted_value_back_in(installation: Installation, ledger: Ledger) -> None:
    installation.errata("submit", "-", text=json.dumps(statement("Fiji", "Suva")))
    (entry,) = [
        r
        for r in installation.errata_json("quarantine", "list")["quarantine"]
        if r["reason"] == "reverted_before"
    ]
    done = installation.errata_json("quarantine", "release", str(entry["id"]), "--reason", "it is right")
    assert done["outcome"] == "accepted"
    apply_waiting(ledger)
    assert held(ledger)["Fiji"] == "Suva"


# -- who --------------------------------------------------------------------------------------------


def test_who_is_the_login_name_where_nobody_says(
    installation: Installation, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ERRATA_WHO")
    installation.errata("pause", "--reason", "x")
    assert last_audit(ledger)["who"] == getpass.getuser()

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nameless)
    installation.errata("pause", "--reason", "x")
    assert last_audit(ledger)["who"].startswith("uid ")


def test_every_change_leaves_an_audit_row(installation: Installation, ledger: Ledger) -> None:
    changes = (
        ["submit", "--subject", "Togo", "--prompt", "Togo is", "--object", "small"],
        ["retract", "Peru", "--reason", "x"],
        ["rollback", "--to", "1", "--reason", "x"],
        ["pause", "--reason", "x"],
        ["resume", "--reason", "x"],
        ["quarantine", "drop", "1", "--reason", "x"],
        ["incidents", "--close", "1", "--reason", "x"],
    )
    for command in changes:
        before = last_audit(ledger)["id"]
        assert installation.errata(*command).exit_code == 0, command
        row = last_audit(ledger)
        assert (row["id"] > before, row["who"]) == (True, "ann"), command
    assert installation.errata("audit", "verify").exit_code == 0
