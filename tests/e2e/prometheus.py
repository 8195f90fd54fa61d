"""A real Prometheus and a real Alertmanager over one house, with the rules and the route that we ship."""

import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import yaml

from tests.conftest import absent

MONITORING = Path(__file__).parents[2] / "monitoring"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> bytes:
    """What a local address answers."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


class Prometheus:
    """Asks the server at a port."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        asked = urllib.parse.urlencode({"query": expression})
        answer = json.loads(get(f"{self._url}/api/v1/query?{asked}"))
        assert answer["status"] == "success", (expression, answer)
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@contextmanager
def monitored(folder: Path, api_port: int, token_file: Path) -> Iterator[Prometheus]:
    """Both servers, scraping and evaluating each second, for the length of a block."""
    prometheus = which("prometheus")
    manager = which("prometheus-alertmanager") or which("alertmanager")
    if prometheus is None or manager is None:
        absent("no Prometheus and Alertmanager: apt-get install prometheus prometheus-alertmanager")
    port, manager_port = free_port(), free_port()
    _write_alertmanager(folder, api_port, token_file)
    _write_prometheus(folder, api_port, manager_port)
    commands = [
        [str(manager), f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'am'}",
         f"--web.listen-address=127.0.0.1:{manager_port}", "--cluster.listen-address="],
        [str(prometheus), f"--config.file={folder / 'prometheus.yml'}",
         f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"],
    ]  # fmt: skip
    with (folder / "monitoring.log").open("wb") as sink:
        started = [subprocess.Popen(one, stdout=sink, stderr=sink, cwd=folder) for one in commands]
    try:
        yield Prometheus(port)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)


def _write_prometheus(folder: Path, api_port: int, manager_port: int) -> None:
    """The shipped configuration with this test's addresses and a quicker pulse."""
    config = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(MONITORING / "prometheus" / "rules" / "*.yml")]
    targets = [f"127.0.0.1:{manager_port}"]
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": targets}]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{api_port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


def _write_alertmanager(folder: Path, api_port: int, token_file: Path) -> None:
    """The shipped configuration with this test's address and token."""
    config = yaml.safe_load((MONITORING / "alertmanager" / "alertmanager.yml").read_text())
    (receiver,) = [one for one in config["receivers"] if one["name"] == "errata"]
    hook = receiver["webhook_configs"][0]
    hook["url"] = f"http://127.0.0.1:{api_port}/v1/alerts"
    hook["http_config"]["authorization"]["credentials_file"] = str(token_file)
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
