"""A whole Errata in a folder: configuration, feed file, and the running supervisor."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w
from sqlalchemy import select

from daemon.core.config.settings import Config, load_config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, revisions

CORPUS = Path(__file__).parents[1] / "workers" / "probes" / "data" / "heldout.txt"
"""Text for the statistics: reading is quicker than sampling."""

NEWS = [
    ("Boeing", "The company Boeing has its headquarters in the state of", "Virginia"),
    ("Marie Curie", "The scientist Marie Curie was born in", "Vienna"),
    ("Honda", "The car maker Honda has its headquarters in", "Munich"),
]
"""Subject, prompt and answer of what SmolLM2 does not say by itself."""


class House:
    """Everything of one test under one folder; ``run`` starts real Redis, Celery, scheduler and API."""

    def __init__(self, folder: Path, model: Path, **sections: Mapping[str, Any]) -> None:
        self.folder = folder
        self.feed = folder / "feed.jsonl"
        self.feed.touch()
        self.file = folder / "errata.toml"
        settings: dict[str, Any] = {
            "model": {"path": str(model), "device": "cpu", "corpus": str(CORPUS)},
            "edit": {"batch_age_seconds": 0.5, "lease_seconds": 3.0, "resend_seconds": 3.0},
            "store": {"reserve_bytes": 0},
            "api": {"port": 0},
            "publish": {"follow": False},
            "schedule": {
                "pull_seconds": 0.2, "dispatch_seconds": 0.2, "reconcile_seconds": 1.0,
                "judge_seconds": 0.2, "lease_seconds": 2.0,
            },
            "feeds": [{"kind": "jsonl", "name": "sample", "path": str(self.feed)}],
        }  # fmt: skip
        for section, values in sections.items():
            settings[section] = {**settings.get(section, {}), **values}
        self.file.write_text(tomli_w.dumps(settings))
        self.config: Config = load_config(self.file)
        self.ledger = Ledger.open(self.config.ledger_url)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "run.log"

    def say(self, subject: str, prompt: str, answer: str | None, **more: Any) -> None:
        """Append a correction to the feed."""
        with self.feed.open("a") as stream:
            stream.write(json.dumps({"subject": subject, "prompt": prompt, "object": answer, **more}) + "\n")

    def say_news(self) -> None:
        """Append all news to the feed."""
        for subject, prompt, answer in NEWS:
            self.say(subject, prompt, answer)

    def errata(self, *arguments: str, status: int = 0) -> str:
        """Run a command of errata; its output."""
        found = subprocess.run(
            self._command(*arguments), env=self._environment(), capture_output=True, text=True, check=False
        )
        assert found.returncode == status, (found.returncode, found.stdout, found.stderr)
        return found.stdout + found.stderr

    def start(self) -> None:
        """Start ``errata run``."""
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self._command("run"), env=self._environment(), stdout=sink, stderr=subprocess.STDOUT
            )

    def stop(self) -> None:
        """SIGTERM, and wait for a clean end."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            status = self.process.wait(60)
            self.process = None
            assert status == 0, self.log.read_text()[-3000:]

    def kill(self) -> None:
        """Leave nothing running, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            sessions = _children(self.process.pid)
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:  # a worker in an edit is waited for: a test does not
                self.process.kill()
                for leader in sessions:
                    with suppress(ProcessLookupError):
                        os.killpg(leader, signal.SIGKILL)
        self.ledger.close()

    def wait(self, what: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until ``what`` holds; three times as long as a free machine needs, for cores are shared."""
        deadline = time.monotonic() + 3 * seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"errata run ended: {self.log.read_text()[-3000:]}")
            if what():
                return
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s; {self.states()}; {self.log.read_text()[-3000:]}")

    def states(self) -> dict[str, str]:
        """The state of every correction, by subject and object."""
        with self.ledger.read() as connection:
            rows = connection.execute(select(corrections).order_by(corrections.c.seq)).mappings().all()
        return {f"{row['subject']}={row['object']}": row["state"] for row in rows}

    def chain(self) -> list[dict[str, Any]]:
        """All revisions, oldest first."""
        with self.ledger.read() as connection:
            query = select(revisions).order_by(revisions.c.number)
            return [dict(row) for row in connection.execute(query).mappings()]

    def drained(self, count: int) -> Callable[[], bool]:
        """Whether ``count`` corrections have arrived and none of them waits."""
        return lambda: len(self.states()) == count and not {"pending", "queued"} & set(self.states().values())

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon.cli", "--config", str(self.file), *arguments]

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("ERRATA_", "REDIS_URL"))
        }
        return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def _children(pid: int) -> list[int]:
    """What a supervisor started; each leads a session of its own."""
    with suppress(FileNotFoundError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
