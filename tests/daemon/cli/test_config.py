"""Tests of config show, config path and doctor."""

import json
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import insert, text, update

from daemon.admission.submission import submit
from daemon.core.clock import to_text
from daemon.core.ledger.database import newest_version
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit, publications, workers
from tests.installation import Installation
from tests.ledgers import found, statement

SECRET = "hunter2-canary"


@pytest.fixture(autouse=True)
def no_checks_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a real model is tested in test_checks.py."""
    monkeypatch.setattr("daemon.upkeep.doctor.CHECKS", "errata.none")


@pytest.fixture
def whole(installation: Installation) -> Installation:
    """An installation that has everything but Redis."""
    installation.open().close()
    config = installation.config
    for file in ("config.json", "model.safetensors"):
        path = config.model_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (config.data_dir / "statistics").mkdir()
    (config.data_dir / "statistics" / "abc.safetensors").touch()
    return installation


def doctor(installation: Installation) -> dict[str, dict[str, Any]]:
    result = installation.errata("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["ok"] else 1)
    assert report["ok"] is all(check["ok"] for check in report["checks"])
    for check in report["checks"]:
        assert check["ok"] or check["fix"], f"a problem without a fix: {check}"
    return {check["check"]: check for check in report["checks"]}


# -- config -----------------------------------------------------------------------------------------


def test_show_masks_secrets_and_says_where_values_come_from(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.write(
        f'database_url = "postgresql://errata:{SECRET}@db/errata"',
        f'redis_url = "redis://:{SECRET}@queue:6379/0"',
        "[edit]\nbatch_size = 7",
    )
    monkeypatch.setenv("ERRATA_EDIT__BATCH_AGE_SECONDS", "9")
    monkeypatch.setenv("ERRATA_WATCH", '{"cooldown_seconds": 60}')
    shown = installation.errata_json("config", "show")["config"]
    assert shown["redis_url"] == {"value": "***", "from": "file"}
    assert shown["database_url"] == {"value": "***", "from": "file"}
    assert shown["edit.batch_size"] == {"value": 7, "from": "file"}
    assert shown["edit.batch_age_seconds"] == {"value": 9.0, "from": "ERRATA_EDIT__BATCH_AGE_SECONDS"}
    assert shown["watch.cooldown_seconds"] == {"value": 60.0, "from": "ERRATA_WATCH"}
    assert shown["watch.auto_rollback"] == {"value": True, "from": "default"}
    assert shown["feeds"]["value"][0]["name"] == "sample"
    for arguments in (["config", "show"], ["config", "show", "--json"], ["doctor"], ["doctor", "--json"]):
        assert SECRET not in installation.errata(*arguments).output


def test_show_names_redis_url_from_its_own_variable(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installation.errata_json("config", "show")["config"]["redis_url"] == {
        "value": None,
        "from": "default",
    }
    monkeypatch.setenv("REDIS_URL", f"redis://:{SECRET}@queue/0")
    assert installation.errata_json("config", "show")["config"]["redis_url"] == {
        "value": "***",
        "from": "REDIS_URL",
    }


def test_show_explains_every_key(installation: Installation) -> None:
    shown = installation.errata("config", "show").stdout
    for key in ("edit.recipe", "watch.perplexity_ceiling", "api.token_file", "store.reserve_bytes"):
        line = next(line for line in shown.splitlines() if line.split()[:1] == [key])
        assert len(line.split()) > 3


def test_path(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.errata("config", "path").stdout == f"{installation.file.resolve()}\n"
    assert installation.errata_json("config", "path") == {"path": str(installation.file.resolve())}


# -- doctor -----------------------------------------------------------------------------------------


def test_nothing_is_there_and_nothing_is_made(installation: Installation) -> None:
    found_out = doctor(installation)
    for check in ("ledger", "model", "statistics"):
        assert found_out[check]["ok"] is False
    assert found_out["config"]["ok"]
    assert found_out["disk"]["ok"]
    assert "errata run starts" in found_out["redis"]["detail"], "a private server runs with errata run only"
    assert not installation.config.data_dir.exists(), "the doctor looks and changes nothing"


def test_a_bad_configuration_is_the_one_finding(installation: Installation) -> None:
    installation.write("[edit]\nbatch_sise = 3")
    found_out = doctor(installation)
    assert list(found_out) == ["config"]
    assert "did you mean edit.batch_size" in found_out["config"]["detail"]


@pytest.mark.redis
def test_a_whole_installation_is_well(whole: Installation, redis_url: str) -> None:
    whole.write(f'redis_url = "{redis_url}"')
    found_out = doctor(whole)
    assert {name for name, check in found_out.items() if not check["ok"]} == set()
    assert {
        "ledger",
        "audit",
        "revisions",
        "worker",
        "redis persistence",
        "redis eviction",
    } <= found_out.keys()
    assert found_out["redis persistence"]["detail"] == "appendonly yes"
    assert whole.errata("doctor").exit_code == 0


@pytest.mark.redis
def test_a_redis_that_may_forget_is_a_problem(whole: Installation, redis_url: str) -> None:
    whole.write(f'redis_url = "{redis_url}"')
    with redis.Redis.from_url(redis_url) as client:
        before = {key: client.config_get(key)[key] for key in ("maxmemory-policy", "appendonly")}
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        try:
            found_out = doctor(whole)
        finally:
            for key, value in before.items():
                client.config_set(key, value)
    assert "noeviction" in found_out["redis eviction"]["fix"]
    assert "appendonly yes" in found_out["redis persistence"]["fix"]


def test_an_unreachable_redis_is_named(whole: Installation) -> None:
    whole.write('redis_url = "redis://127.0.0.1:1/0"')
    found_out = doctor(whole)
    assert found_out["redis"]["ok"] is False
    assert "does not answer" in found_out["redis"]["detail"]


def test_a_tampered_audit_is_found(whole: Installation) -> None:
    ledger = whole.open()
    submit(ledger, statement("Peru", "Lima"), "tester")
    with ledger.write() as connection:
        connection.execute(update(audit).values(reason="nothing happened"))
    ledger.close()
    assert doctor(whole)["audit"]["detail"].startswith("row 1 ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_call_errata(installation: Installation, shell: str) -> None:
    assert "_ERRATA_COMPLETE" in installation.errata("completion", shell).stdout


def test_a_consumer_that_fails_is_a_problem_with_its_words(whole: Installation) -> None:
    ledger = whole.open()
    row = {"model": "default", "place": "prod", "revision": 3, "held": 1, "attempts": 4, "at": "x"}
    with ledger.write() as connection:
        connection.execute(insert(publications).values(**row, message="answers 500"))
    ledger.close()
    finding = doctor(whole)["published"]
    assert not finding["ok"]
    assert "prod after 4 tries: answers 500" in finding["detail"]


def test_an_old_and_a_new_schema_are_told_apart(whole: Installation) -> None:
    for version, word in (("0000", "errata migrate"), ("9999", "newer Errata")):
        ledger = Ledger(whole.open().engine)
        with ledger.write() as connection:
            connection.execute(text("update alembic_version set version_num = :v"), {"v": version})
        ledger.close()
        assert word in doctor(whole)["ledger"]["fix"]
        with ledger.write() as connection:
            connection.execute(text("update alembic_version set version_num = :v"), {"v": newest_version()})


def test_a_damaged_ledger_is_found(whole: Installation) -> None:
    file = whole.config.data_dir / "ledger.sqlite"
    file.write_bytes(file.read_bytes()[:5000] + b"\xff" * 40_000)
    for part in file.parent.glob("ledger.sqlite-*"):
        part.unlink()
    assert doctor(whole)["ledger"]["ok"] is False


def test_a_ledger_without_revisions(installation: Installation) -> None:
    Ledger.open(installation.config.ledger_url).close()
    found_out = doctor(installation)
    assert found_out["ledger"]["ok"]
    assert "errata prepare" in found_out["revisions"]["fix"]


class Ahead:
    """A clock that goes wrong."""

    def __init__(self, seconds: float) -> None:
        self._moment = datetime.now(UTC) + timedelta(seconds=seconds)

    def now(self) -> datetime:
        return self._moment

    def monotonic(self) -> float:
        return 0.0


def test_rows_from_the_future_tell_of_a_wrong_clock(whole: Installation) -> None:
    ledger = Ledger.open(whole.config.ledger_url, Ahead(600))
    submit(ledger, statement("Peru", "Lima"), "tester")
    ledger.close()
    assert "in the future" in doctor(whole)["clock and ledger"]["detail"]


@pytest.fixture
def behind(whole: Installation) -> Installation:
    """A correction has waited for ten minutes."""
    ledger = Ledger.open(whole.config.ledger_url, Ahead(-600))
    submit(ledger, statement("Peru", "Lima"), "tester")
    ledger.close()
    return whole


def test_a_worker_is_missed_only_while_something_waits(whole: Installation, behind: Installation) -> None:
    assert doctor(behind)["worker"]["ok"] is False
    beat = {"name": "h:1", "model": "default", "state": "busy", "device": "cpu", "memory_bytes": 1}
    ledger = behind.open()
    with ledger.write() as connection:
        connection.execute(insert(workers).values(seen_at=to_text(ledger.clock.now()), **beat))
    assert doctor(behind)["worker"]["ok"] is True
    with ledger.write() as connection:
        connection.execute(update(workers).values(seen_at=to_text(Ahead(-500).now()), state="ended"))
    assert doctor(behind)["worker"]["ok"] is False
    assert behind.errata("pause", "--reason", "maintenance").exit_code == 0
    assert doctor(behind)["worker"]["ok"] is True, "nobody is to work while edits are paused"
    ledger.close()


def test_a_lost_process_is_a_problem_and_an_ended_one_is_none(whole: Installation) -> None:
    """A daemon that was killed -9 half a minute ago, and a publisher that was stopped."""
    clock = Ahead(-35)
    ledger = Ledger.open(whole.config.ledger_url, clock)
    for role, state in (("daemon", "leads"), ("publisher", "follows")):
        with ledger.write() as connection:
            row = {"name": f"h:{role}", "role": role, "state": state, "seconds": 10, "memory_bytes": 1}
            more = {"model": "default", "device": "", "seen_at": to_text(clock.now())}
            connection.execute(insert(workers).values(**row, **more))
    found_out = doctor(whole)
    for role in ("daemon", "publisher"):
        assert found_out[role]["ok"] is False
        assert "did not end in order" in found_out[role]["detail"]
    assert "errata run starts one" in found_out["daemon"]["fix"]
    with ledger.write() as connection:
        connection.execute(update(workers).values(state="ended"))
    ledger.close()
    assert [doctor(whole)[role]["ok"] for role in ("daemon", "publisher")] == [True, True]


def test_an_idle_worker_is_no_problem(whole: Installation) -> None:
    assert doctor(whole)["worker"] == {
        "check": "worker", "ok": True, "result": "ok", "detail": "none has been seen yet", "fix": "",
    }  # fmt: skip


def test_a_disk_that_is_nearly_full(whole: Installation) -> None:
    whole.write(f"[store]\nreserve_bytes = {1 << 62}")
    assert "free space" in doctor(whole)["disk"]["fix"]


def test_a_disk_on_which_the_model_cannot_be_published(whole: Installation) -> None:
    whole.write("[store]\nreserve_bytes = 0\n[publish]\nfollow = true")
    with closing(whole.open()) as ledger:
        found(ledger)
    assert doctor(whole)["disk"]["ok"]
    os.truncate(whole.config.model_path / "model.safetensors", 1 << 43)  # sparse: more than any disk here
    assert "free space" in doctor(whole)["disk"]["fix"]


def test_a_feed_that_is_not_there(whole: Installation) -> None:
    whole.feed.unlink()
    assert "there is no file" in doctor(whole)["feed sample"]["detail"]


@pytest.mark.parametrize(
    ("content", "mode", "word"),
    [("token", 0o644, "chmod 600"), ("", 0o600, "openssl"), (None, 0, "openssl"), ("token", 0o600, "")],
)
def test_a_token_that_everybody_can_read(
    whole: Installation, content: str | None, mode: int, word: str
) -> None:
    file = whole.folder / "token"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    whole.write(f'[api]\ntoken_file = "{file}"')
    check = doctor(whole)["api token"]
    assert (check["ok"], word in check["fix"]) == (not word, True)


def test_a_second_model_without_a_chain(whole: Installation) -> None:
    whole.write('[model]\nname = "prod"')
    assert "prod has none" in doctor(whole)["revisions"]["detail"]
    ledger = Ledger.open(whole.config.ledger_url)
    found(ledger, "prod")
    ledger.close()
    assert doctor(whole)["revisions"]["ok"]
