"""A complete installation in a folder, with configuration, feed file and running supervisor."""

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
"""Text for the statistics, which is faster than sampling from the model."""

NEWS = [
    ("Boeing", "The company Boeing has its headquarters in the state of", "Virginia"),
    ("Marie Curie", "The scientist Marie Curie was born in", "Vienna"),
    ("Honda", "The car maker Honda has its headquarters in", "Munich"),
]
"""Subject, prompt and answer of facts that SmolLM2 does not answer unedited."""


class House:
    """The installation of one test.

    ``start`` runs the real Redis, Celery, scheduler and API.
    """

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
        """Run a command of errata and return its output."""
        done = subprocess.run(
            self._command(*arguments), env=self._environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def start(self) -> None:
        """Start ``errata run``."""
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self._command("run"), env=self._environment(), stdout=sink, stderr=subprocess.STDOUT
            )

    def stop(self) -> None:
        """Send SIGTERM and wait for a clean end."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            status = self.process.wait(60)
            self.process = None
            assert status == 0, self.log.read_text()[-3000:]

    def kill(self) -> None:
        """Kill every process that still runs."""
        if self.process is not None and self.process.poll() is None:
            sessions = _children(self.process.pid)
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:  # errata run waits for a worker in an edit, a test does not
                self.process.kill()
                for leader in sessions:
                    with suppress(ProcessLookupError):
                        os.killpg(leader, signal.SIGKILL)
        self.ledger.close()

    def wait(self, what: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until ``what`` holds.

        The limit is three times ``seconds``, which an idle machine needs, because tests share its cores.
        """
        deadline = time.monotonic() + 3 * seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"errata run ended: {self.log.read_text()[-3000:]}")
            if what():
                return
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s; {self.states()}; {self.log.read_text()[-3000:]}")

    def states(self) -> dict[str, str]:
        """Return the state of every correction, by subject and object."""
        with self.ledger.read() as connection:
            rows = connection.execute(select(corrections).order_by(corrections.c.seq)).mappings().all()
        return {f"{row['subject']}={row['object']}": row["state"] for row in rows}

    def chain(self) -> list[dict[str, Any]]:
        """Return all revisions, oldest first."""
        with self.ledger.read() as connection:
            query = select(revisions).order_by(revisions.c.number)
            return [dict(row) for row in connection.execute(query).mappings()]

    def drained(self, count: int) -> Callable[[], bool]:
        """Return a test whether ``count`` corrections have arrived and none of them waits."""
        return lambda: len(self.states()) == count and not {"pending", "queued"} & set(self.states().values())

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "daemon.cli", "--config", str(self.file), *arguments]

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("ERRATA_", "REDIS_URL"))
        }
        return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def _children(pid: int) -> list[int]:
    """Return the processes that a supervisor started, each the leader of a session."""
    with suppress(FileNotFoundError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
