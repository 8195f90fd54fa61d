"""The parts of an installation as processes that a bench may kill, and the folder in which they live."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
import tomli_w
from sqlalchemy import select

from daemon.core.broker import redis_url
from daemon.core.config.settings import CONFIG_VARIABLE, Config, load_config
from daemon.core.ledger.batches import are_open
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections
from daemon.core.names import edit_queue
from daemon.embedded.redis_server import PrivateRedis
from tests.bench.stream import Stream

ROOT = Path(__file__).parents[2]
MODEL = "default"
TOY_WORKER = "tests.broker.worker_app"
REAL_WORKER = "workers.queue.app"
_PATIENCE = 60.0  # seconds that a child of ours may take to disappear after SIGKILL


class Part:
    """One process in a session of its own, which is started again after every end."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self._command, self.environment = [*command], dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0

    @property
    def pid(self) -> int | None:
        """The process id, or None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self.pid is not None:
            return
        self._again_at = 0.0
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command, env=self.environment, cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=sink, stderr=sink, start_new_session=True,
            )  # fmt: skip

    def send(self, number: int) -> None:
        """Send a signal to the process and its descendants, unless it was seen to have ended."""
        if self._process is not None and not self._again_at:  # its number may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Kill the process and its descendants."""
        self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(_PATIENCE)
        self._process, self._again_at = None, 0.0

    def terminate(self, patience: float) -> float:
        """Send SIGTERM to the process alone, kill what is left after ``patience``, and return the seconds."""
        began = time.monotonic()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        took = time.monotonic() - began
        self.kill()
        return took

    def revive(self, pause: float = 1.0) -> int | None:
        """Start a process again that ended by itself, after a pause, and return the status when it ended."""
        if self._process is None:
            return None
        status = self._process.poll()
        if status is None:
            return None
        if not self._again_at:
            self.send(signal.SIGKILL)  # descendants that outlived it
            self._again_at = time.monotonic() + pause
            return status
        if time.monotonic() >= self._again_at:
            self.start()
        return None


class Site:
    """A Redis server, the ledger, one feed, and the parts that work on them, under one folder."""

    def __init__(
        self,
        folder: Path,
        binary: Path,
        stream: Stream,
        sections: Mapping[str, Any],
        parts: Sequence[str] = ("worker", "daemon"),
        worker: str = TOY_WORKER,
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder, self.stream = folder, stream
        self.server = PrivateRedis(folder / "redis", binary)
        self.server.start()
        self.file = folder / "errata.toml"
        self.file.write_text(tomli_w.dumps(self._settings() | sections))
        self.config: Config = load_config(self.file)
        self.ledger = Ledger.open(self.config.ledger_url)
        self._environments = environments or {}
        self._worker = worker
        self.parts = {name: self.part(name) for name in parts}

    def _settings(self) -> dict[str, Any]:
        return {
            "data_dir": "data",
            "redis_url": self.server.url.replace("db=0", "db=3"),
            "api": {"port": 0},
            "feeds": [
                {"kind": "jsonl", "name": "news", "path": str(self.stream.file), "quarantine_limit": 0}
            ],
        }

    def part(self, name: str, config: Path | None = None) -> Part:
        """A part that is not started, with another configuration than the site's where one is given."""
        file, kind = config or self.file, name.split("-", maxsplit=1)[0]
        errata = [sys.executable, "-m", "daemon.cli", "--config", str(file)]
        commands = {
            "worker": [
                sys.executable, "-m", "celery", "--app", self._worker, "worker", "--pool", "prefork",
                "--concurrency", "1", "--queues", edit_queue(MODEL), "--without-gossip", "--without-mingle",
                "--loglevel", "WARNING",
            ],
            "daemon": [*errata, "run", "--no-worker"],
            "publisher": [*errata, "publish", "--follow"],
        }  # fmt: skip
        environment = {
            **os.environ, CONFIG_VARIABLE: str(file), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            **self._environments.get(name, {}),
        }  # fmt: skip
        return Part(name, commands[kind], environment, self.folder / f"{name}.log")

    @property
    def redis(self) -> "redis.Redis":
        """A client of the Redis server, at the database of the queue."""
        return redis.Redis.from_url(redis_url(self.config), socket_timeout=5)

    def kill_redis(self) -> None:
        """Kill the Redis server. ``server.start`` starts it again."""
        if self.server.pid is not None:
            os.kill(self.server.pid, signal.SIGKILL)
        while self.server.alive():
            time.sleep(0.01)

    def states(self) -> Counter[str]:
        """Count the corrections by state."""
        with self.ledger.read() as connection:
            return Counter(connection.execute(select(corrections.c.state)).scalars())

    def all_ended(self) -> bool:
        """Whether every line is in the ledger, and no correction and no batch waits."""
        states = self.states()
        whole = self.stream.written.accepted() == states.total()
        with self.ledger.read() as connection:
            left = are_open(connection, MODEL)
        return whole and not left and not {"pending", "queued"} & states.keys()

    def close(self) -> None:
        """Kill every part, and stop Redis."""
        for part in self.parts.values():
            part.kill()
        self.ledger.close()
        self.server.stop()
