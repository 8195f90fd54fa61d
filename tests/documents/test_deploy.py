"""The files in deploy/ pass their own checkers and agree with the code about keys, ports and commands."""

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import typer
import yaml

from daemon.cli.main import make_cli
from daemon.core.config.settings import Config, known_keys, load_config
from daemon.core.names import DEFAULT_MODEL, edit_queue
from tests.conftest import absent

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
TEXTS = [
    path
    for path in sorted(DEPLOY.rglob("*"))
    if path.is_file() and path.suffix in {".yaml", ".service", ".toml", ".example", ""}
]
BIN = Path(sys.executable).parent
KEYS = {"ERRATA_" + key.upper().replace(".", "__") for key in known_keys()}
TOOLS = {"ERRATA_CONFIG", "ERRATA_TORCH", "ERRATA_PYTHON", "ERRATA_MODEL_PATH"}


def label(one: object) -> str:
    """The name of a parametrised test."""
    return one if isinstance(one, str) else ""


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object of the base as written."""
    for path in MANIFESTS:
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield f"{path.name}/{document['kind']}", document


def check(*command: str | Path) -> str:
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout + found.stderr


def test_the_dockerfile_is_clean() -> None:
    if not (BIN / "hadolint").exists():
        absent("hadolint has no wheel for this machine")
    assert check(BIN / "hadolint", DEPLOY / "Dockerfile") == ""


def test_compose_files_keep_to_their_schema() -> None:
    files = sorted(DEPLOY.glob("compose*.yaml"))
    check(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


@pytest.mark.parametrize("name, document", list(documents()), ids=label)
def test_kubernetes_objects_keep_to_their_schema(name: str, document: dict[str, Any]) -> None:
    if document["apiVersion"].startswith("keda.sh/"):
        assert document["kind"] in {"ScaledObject", "TriggerAuthentication"}, "custom resources of KEDA"
    else:
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_the_kustomizations_name_every_file_and_render() -> None:
    base = DEPLOY / "kubernetes" / "base"
    listed = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(path.name for path in base.glob("*.yaml"))
    assert (base / "redis.conf").read_text() == (DEPLOY / "redis.conf").read_text()
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here: the kustomizations were not rendered")
    for place in ("base", "gpu"):
        rendered = list(yaml.safe_load_all(check("kubectl", "kustomize", DEPLOY / "kubernetes" / place)))
        assert {one["metadata"].get("namespace", "errata") for one in rendered} == {"errata"}
        for one in rendered:
            if not one["apiVersion"].startswith("keda.sh/"):
                kubernetes_validate.validate(one, "1.34", strict=True)
    workers = [one for one in rendered if one["metadata"]["name"] == "errata-worker"]
    (pod,) = [one["spec"]["template"]["spec"] for one in workers if one["kind"] == "StatefulSet"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_systemd_finds_nothing_wrong_and_little_exposed(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        absent("no systemd-analyze here: apt-get install systemd")
    for unit in UNITS:  # the unit's program must exist, so this environment's takes its place
        text = unit.read_text().replace("/opt/errata/bin/errata", str(BIN / "errata"))
        (tmp_path / unit.name).write_text(text)
    places = [tmp_path / unit.name for unit in UNITS]
    assert check("systemd-analyze", "verify", "--man=no", *places) == ""
    for place in places:
        said = check("systemd-analyze", "security", "--offline=true", "--no-pager", place)
        (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
        assert float(level) < 2.0, said


def test_every_variable_is_one_that_the_configuration_knows() -> None:
    for path in TEXTS:
        named = set(re.findall(r"\bERRATA_[A-Z_]+[A-Z]", path.read_text()))
        unknown = {name for name in named - KEYS - TOOLS if not name.startswith("ERRATA_TEST_")}
        assert not unknown, f"{path.name}: {unknown}"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every call of errata in units, compose files, images and pods."""
    for unit in UNITS:
        for line in re.findall(r"^ExecStart=/opt/errata/bin/errata (.*)$", unit.read_text(), re.M):
            yield unit.name, line.split()
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        if str(service["image"]).startswith("errata-"):
            yield f"compose {name}", service["command"]
    for line in re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M):
        yield "Dockerfile", yaml.safe_load(line)
    for name, document in documents():
        pod = document.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", []):
            if container["image"].startswith("errata-"):
                yield name, container["args"]


@pytest.mark.parametrize("place, words", list(commands()), ids=label)
def test_every_command_is_one_of_errata(place: str, words: list[str]) -> None:
    group = typer.main.get_command(make_cli())
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    options = {text for parameter in command.params for text in parameter.opts}
    assert set(words[1:]) <= options, place


def test_ports_are_those_of_the_code() -> None:
    defaults = {Config.model_fields[name].default.port for name in ("api", "serve")}
    assert defaults == {8765, 8766}
    for name, document in documents():
        for service_port in document.get("spec", {}).get("ports", []):
            assert service_port["port"] in defaults | {6379}, name
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
            named = {port["containerPort"] for port in container.get("ports", [])}
            assert named <= defaults | {6379}, name
    exposed = re.findall(r"^EXPOSE (\d+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert {int(port) for port in exposed} == defaults


def test_keda_watches_the_queue_that_the_daemon_fills() -> None:
    (scaled,) = [document for _, document in documents() if document["kind"] == "ScaledObject"]
    assert scaled["spec"]["triggers"][0]["metadata"]["listName"] == edit_queue(DEFAULT_MODEL)
    assert scaled["spec"]["maxReplicaCount"] == 1, "a model has one writer"
    edit = Config.model_fields["edit"].default
    assert scaled["spec"]["cooldownPeriod"] > edit.task_seconds


def test_everything_has_the_time_to_end_in_order() -> None:
    kinds = ("Deployment", "StatefulSet")
    graces = [
        document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        for name, document in documents()
        if document["kind"] in kinds and "redis" not in name
    ]
    for unit in sorted((DEPLOY / "systemd").glob("errata*.service")):
        graces += map(int, re.findall(r"^TimeoutStopSec=(\d+)$", unit.read_text(), re.M))
    assert len(graces) == 9
    assert all(10 < grace <= 30 for grace in graces), "they end within 10 s"


@pytest.mark.parametrize("file", ["errata.example.toml", "kubernetes/base/errata.toml"])
def test_configurations_are_read(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ERRATA_MODEL_PATH", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    text = (DEPLOY / file).read_text()
    (tmp_path / "errata.toml").write_text(text)
    assert load_config(tmp_path / "errata.toml").model.path == Path(tomllib.loads(text)["model"]["path"])


def test_a_redis_with_this_configuration_keeps_what_it_is_given(redis_binary: Path, tmp_path: Path) -> None:
    where = Path(tempfile.mkdtemp(prefix="errata-")) / "redis.sock"  # a socket's path is short
    server = subprocess.Popen(
        [redis_binary, DEPLOY / "redis.conf", "--port", "0", "--unixsocket", where, "--dir", tmp_path],
        stdout=subprocess.DEVNULL,
    )
    try:
        client = redis.Redis(unix_socket_path=str(where), retry=None)
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(where)) == 0:
                    break
            time.sleep(0.05)
        said: Any = client.config_get("*")
        assert (said["appendonly"], said["appendfsync"]) == ("yes", "everysec")
        assert said["maxmemory-policy"] == "noeviction"
    finally:
        server.terminate()
        server.wait(10)
        where.unlink(missing_ok=True)
