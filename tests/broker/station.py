"""A real Redis, a real Celery worker with a toy model, and the daemon's scheduler ticked by the test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
import tomli_w
from sqlalchemy import select

from daemon.core.broker import redis_url
from daemon.core.config.settings import Config, load_config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, revisions, tenures
from daemon.core.names import RevisionKind, edit_queue
from daemon.embedded.redis_server import PrivateRedis
from daemon.scheduling.dispatch import CeleryQueue
from daemon.scheduling.scheduler import Scheduler
from tests.toy import said

ROOT = Path(__file__).parents[2]


class Station:
    """Everything between a feed and the weights, under one folder."""

    def __init__(self, folder: Path, binary: Path, lease_seconds: float = 2.0) -> None:
        self.folder, self._lease_seconds = folder, lease_seconds
        self.server = PrivateRedis(folder / "redis", binary)
        self.server.start()
        self.feed = folder / "feed.jsonl"
        self.feed.touch()
        self.file = folder / "errata.toml"
        self.file.write_text(tomli_w.dumps(self._settings()))
        self.config: Config = load_config(self.file)
        self.ledger = Ledger.open(self.config.ledger_url)
        self.scheduler = Scheduler(self.ledger, self.config, CeleryQueue(self.config))
        self.log = folder / "worker.log"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.said = 0

    def _settings(self) -> dict[str, Any]:
        return {
            "data_dir": "data",
            "redis_url": self.server.url.replace("db=0", "db=3"),
            "edit": {
                "batch_size": 1, "batch_age_seconds": 0.0, "lease_seconds": self._lease_seconds,
                "resend_seconds": 2.0, "batches_ahead": 1000,
            },
            "store": {"reserve_bytes": 0},
            "watch": {"delta_ceiling": 1e6, "batch_delta_ceiling": 1e6},
            "schedule": {"lease_seconds": 5.0},
            "feeds": [{"kind": "jsonl", "name": "news", "path": str(self.feed)}],
        }  # fmt: skip

    @property
    def client(self) -> "redis.Redis":
        return redis.Redis.from_url(redis_url(self.config), socket_timeout=5)

    @property
    def worker(self) -> subprocess.Popen[bytes] | None:
        """The worker that was started last and was not stopped."""
        return self.workers[-1] if self.workers else None

    def start_worker(
        self, app: str = "tests.broker.worker_app", **environment: str
    ) -> subprocess.Popen[bytes]:
        """A worker as the supervisor starts it, or one of another application."""
        queue = edit_queue(self.config.model.name)
        command = [
            sys.executable, "-m", "celery", "--app", app, "worker",
            "--pool", "prefork", "--concurrency", "1", "--queues", queue, "--without-gossip",
            "--without-mingle", "--loglevel", "WARNING",
        ]  # fmt: skip
        environment = {
            **environment, **os.environ, "ERRATA_CONFIG": str(self.file), "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with self.log.open("ab") as sink:
            started = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=sink, stderr=sink, start_new_session=True
            )
        self.workers.append(started)
        return started

    def stop_worker(self, worker: "subprocess.Popen[bytes] | None" = None) -> None:
        """Kill a worker, or the one that was started last."""
        stopped = worker or self.worker
        if stopped is not None:
            with suppress(ProcessLookupError):
                os.killpg(stopped.pid, signal.SIGKILL)
            stopped.wait()
            self.workers.remove(stopped)

    def say(self, count: int) -> None:
        """Append facts to the feed that nobody has said before."""
        with self.feed.open("a") as stream:
            for _ in range(count):
                self.said += 1
                stream.write(json.dumps(said(f"Land {self.said}", f"City {self.said % 100}", 1)) + "\n")

    def tick(self) -> None:
        self.scheduler.tick()

    def until(self, what: Callable[[], bool], seconds: float = 60.0) -> None:
        """Tick until ``what`` holds."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {seconds} s: {self.states()} {self.log.read_text()[-3000:]}"
                )
            self.tick()
            time.sleep(0.1)

    def states(self) -> Counter[str]:
        with self.ledger.read() as connection:
            return Counter(connection.execute(select(corrections.c.state)).scalars())

    def all_applied(self) -> bool:
        return self.states() == {"applied": self.said}

    def waiting(self) -> int:
        """How many messages lie in the queue."""
        return int(self.client.llen(edit_queue(self.config.model.name)))

    def each_once(self) -> None:
        """Every fact was written by exactly one edit, and there are no edits beside those."""
        with self.ledger.read() as connection:
            writers = connection.execute(select(tenures.c.correction_id)).scalars().all()
            kinds = connection.execute(select(revisions.c.kind)).scalars().all()
        assert len(writers) == len(set(writers)) == self.said
        assert kinds.count(RevisionKind.EDIT) == self.said

    def close(self) -> None:
        while self.workers:
            self.stop_worker()
        self.ledger.close()
        self.server.stop()
