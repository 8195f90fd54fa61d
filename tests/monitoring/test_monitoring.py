"""Their own tools accept the files of monitoring/, and every name in them exists."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from types import ModuleType
from typing import Any

import pytest
import yaml

from daemon.cli.main import make_cli
from daemon.core.metrics import METRICS, Kind
from tests.conftest import absent

HERE = Path(__file__).parents[2] / "monitoring"
RULES = HERE / "prometheus" / "rules" / "errata.yml"
DASHBOARDS = HERE / "grafana" / "dashboards"
RUNBOOKS = HERE / "runbooks"
_NAME = re.compile(r"\berrata(?::|_)[a-z0-9_:]+")
_COMMAND = re.compile(r"\berrata ([a-z]+)")


def tool(name: str) -> str:
    found = which(name)
    if found is None:
        absent(f"no {name} here: apt-get install prometheus prometheus-alertmanager")
    return str(found)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def exported() -> set[str]:
    """Return every name that a query may use, exported or recorded."""
    names = {rule["record"] for rule in rules() if "record" in rule}
    for metric in METRICS.values():
        ends = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        names |= {metric.name + end for end in ends}
    return names


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every PromQL expression with its place."""
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]
    for file in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            for target in panel["targets"]:
                yield f"{file.name}: {panel['title']}", target["expr"]
        for note in board["annotations"]["list"]:
            yield f"{file.name}: annotation {note['name']}", note["expr"]


def generator(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script that writes the files beside it."""
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_prometheus_accepts_configuration_and_rules() -> None:
    promtool = tool("promtool")
    run(promtool, "check", "rules", str(RULES))
    run(promtool, "check", "config", str(HERE / "prometheus" / "prometheus.yml"))


def test_every_alert_fires_stays_quiet_and_copes_without_data() -> None:
    run(tool("promtool"), "test", "rules", str(HERE / "prometheus" / "tests" / "errata.yml"))
    written = yaml.safe_load((HERE / "prometheus" / "tests" / "errata.yml").read_text())
    names = {test["name"] for test in written["tests"]}
    for alert in alerts():
        assert {f"{alert} fires", f"{alert} does not fire", f"{alert} and no data"} <= names


def test_alertmanager_accepts_its_configuration_and_finds_the_daemon() -> None:
    amtool, file = tool("amtool"), HERE / "alertmanager" / "alertmanager.yml"
    run(amtool, "check-config", str(file))
    route = [amtool, "config", "routes", "test", f"--config.file={file}"]
    assert run(*route, "alertname=X", "severity=page", "action=rollback").strip() == "errata,pager"
    assert run(*route, "alertname=X", "severity=ticket").strip() == "tickets"
    receivers = {r["name"]: r for r in yaml.safe_load(file.read_text())["receivers"]}
    (hook,) = receivers["errata"]["webhook_configs"]
    assert hook["url"].endswith("/v1/alerts")
    assert "credentials_file" in hook["http_config"]["authorization"], "the file must not hold a token"


def test_every_metric_in_a_query_is_exported() -> None:
    known = exported()
    for where, expression in expressions():
        used = set(_NAME.findall(re.sub(r'"[^"]*"', "", expression)))
        assert used, where
        assert used <= known, (where, used - known)


def test_alerts_have_a_known_severity_and_no_thresholds_of_their_own() -> None:
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"page", "ticket", "info"}, name
        assert rule["labels"].get("action") in {None, "rollback"}, name
        assert "for" in rule, name
        assert not re.search(r"[<>=]=? *0\.\d", rule["expr"]) or "margin" in rule["expr"], (
            "thresholds come from the configuration"
        )


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {file.stem for file in RUNBOOKS.glob("*.md")} == set(alerts())
    for name, rule in alerts().items():
        file = HERE.parent / rule["annotations"]["runbook_url"]
        assert file == RUNBOOKS / f"{name}.md"
        for part in (f"# {name}", "What it means", "What to look at", "What to type"):
            assert part in file.read_text(), (name, part)


def test_commands_in_runbooks_exist() -> None:
    from typer.main import get_command

    known = set(get_command(make_cli()).commands)  # type: ignore[attr-defined]
    for file in RUNBOOKS.glob("*.md"):
        typed = file.read_text().split("```sh\n")[1].split("```")[0]
        for line in typed.splitlines():
            command = _COMMAND.search(line)
            assert command is None or command.group(1) in known, (file.name, line)


def test_dashboards_are_those_that_the_code_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = generator(HERE / "grafana" / "make.py", monkeypatch)
    made = {f"{board.uid}.json": module.text(board) for board in module.DASHBOARDS}
    assert {file.name: file.read_text() for file in DASHBOARDS.glob("*.json")} == made


def test_rule_tests_are_those_that_the_code_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = generator(HERE / "prometheus" / "tests" / "make.py", monkeypatch)
    assert (HERE / "prometheus" / "tests" / "errata.yml").read_text() == module.document()


def test_dashboards_are_complete() -> None:
    source = yaml.safe_load((HERE / "grafana/provisioning/datasources/errata.yml").read_text())
    uid = source["datasources"][0]["uid"]
    for file in DASHBOARDS.glob("*.json"):
        board = json.loads(file.read_text())
        assert board["uid"] == file.stem
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert {note["name"] for note in board["annotations"]["list"]} == {"revision", "rollback", "incident"}
        for panel in board["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            assert panel["datasource"]["uid"] == uid
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs) > 0
