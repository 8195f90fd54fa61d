"""Two models on one PostgreSQL ledger: two daemons, three workers, each leader is killed in turn."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from sqlalchemy import func, select

from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, feeds, leases, revisions, tenures
from daemon.core.names import RevisionKind, edit_queue, scheduler_lease, worker_lease
from daemon.embedded.redis_server import PrivateRedis
from tests import postgres
from tests.broker.station import ROOT
from tests.conftest import is_full
from tests.toy import said

pytestmark = [pytest.mark.redis, pytest.mark.postgres]
MODELS = ("alpha", "beta")
LEASE = 5.0  # seconds; a busy machine delays a renewal by seconds


class House:
    """The processes of two models that share a ledger and a Redis, each with a feed of the same name."""

    def __init__(self, folder: Path, ledger_url: str, redis_url: str) -> None:
        self.folder, self.log = folder, folder / "log"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.told = dict.fromkeys(MODELS, 0)
        for model in MODELS:
            (folder / f"{model}.jsonl").touch()
            settings = self._settings(model, ledger_url, redis_url)
            (folder / f"{model}.toml").write_text(tomli_w.dumps(settings))
        self.ledger = Ledger.open_migrated(ledger_url)

    def _settings(self, model: str, ledger_url: str, redis_url: str) -> dict[str, Any]:
        return {
            "data_dir": model, "database_url": ledger_url, "redis_url": redis_url, "model": {"name": model},
            "edit": {
                "batch_size": 1, "batch_age_seconds": 0.0, "lease_seconds": LEASE, "resend_seconds": 2.0,
            },
            "schedule": {"lease_seconds": LEASE, "reconcile_seconds": 1.0},
            "store": {"reserve_bytes": 0},
            "watch": {"delta_ceiling": 1e6, "batch_delta_ceiling": 1e6},
            "api": {"port": 0},
            "feeds": [{"kind": "jsonl", "name": "news", "path": str(self.folder / f"{model}.jsonl")}],
        }  # fmt: skip

    def daemon(self, model: str) -> None:
        self._start(model, ["-m", "daemon.cli", "run", "--no-worker"])

    def worker(self, model: str) -> None:
        celery = ["-m", "celery", "--app", "tests.broker.worker_app", "worker", "--pool", "prefork"]
        self._start(
            model, [*celery, "--concurrency", "1", "--queues", edit_queue(model), "--loglevel", "WARNING"]
        )

    def _start(self, model: str, command: list[str]) -> None:
        environment = {**os.environ, "ERRATA_CONFIG": str(self.folder / f"{model}.toml")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as sink:
            started = subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                cwd=ROOT,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self.processes.append(started)

    def leader(self, lease: str) -> int | None:
        """The process id of the holder of a lease."""
        with self.ledger.read() as connection:
            mine = (leases.c.name == lease) & (leases.c.note != "")
            holder = connection.execute(select(leases.c.holder).where(mine)).scalar()
        return None if holder is None else int(holder.rpartition(":")[2])

    def kill_leader(self, lease: str) -> int:
        """Kill the holder of a lease with its children, and return its process id."""
        self.until(lambda: self.leader(lease) in {process.pid for process in self.processes})
        (process,) = [one for one in self.processes if one.pid == self.leader(lease)]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.processes.remove(process)
        return process.pid

    def say(self, count: int) -> None:
        """Let the feed of each model bring so many facts that nobody has said."""
        for model in MODELS:
            with (self.folder / f"{model}.jsonl").open("a") as stream:
                for _ in range(count):
                    self.told[model] += 1
                    number = self.told[model]
                    stream.write(json.dumps(said(f"Land {number}", f"City {number % 100}", 1)) + "\n")

    def applied(self) -> dict[str, int]:
        with self.ledger.read() as connection:
            count = select(corrections.c.model, func.count()).where(corrections.c.state == "applied")
            rows = connection.execute(count.group_by(corrections.c.model)).all()
        return {row[0]: int(row[1]) for row in rows}

    def until(self, what: Callable[[], bool], seconds: float = 120) -> float:
        """Wait until something holds, and return the seconds that it took."""
        began = time.monotonic()
        while not what():
            took = time.monotonic() - began
            assert took < seconds, f"{self.applied()} of {self.told}: {self.log.read_text()[-6000:]}"
            time.sleep(0.1)
        return time.monotonic() - began

    def until_all_applied(self) -> None:
        self.until(lambda: self.applied() == self.told)

    def close(self) -> None:
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.ledger.close()


@pytest.fixture
def house(postgres_server: str, redis_binary: Path, tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        server = stack.enter_context(PrivateRedis(tmp_path / "redis", redis_binary))
        url = stack.enter_context(postgres.database(postgres_server))
        made = House(tmp_path, url, server.url)
        stack.callback(made.close)
        yield made


@pytest.mark.timeout(600)
@pytest.mark.skipif(not is_full(), reason="starts eight processes: part of deploy/test.sh --guarantees")
def test_the_leader_of_each_is_killed_in_turn_and_all_is_applied_once(house: House) -> None:
    for model in MODELS:
        house.daemon(model)
        house.worker(model)
    house.say(3)
    house.until_all_applied()
    house.worker("alpha")  # it stands by
    house.until(lambda: "stands by" in house.log.read_text())
    house.say(6)
    first = house.kill_leader(worker_lease("alpha"))
    house.until(lambda: house.leader(worker_lease("alpha")) not in (None, first), LEASE + 5)
    house.kill_leader(worker_lease("beta"))
    house.worker("beta")
    house.say(6)
    house.until_all_applied()
    for model in MODELS:
        house.say(3)
        killed = house.kill_leader(scheduler_lease(model))
        house.say(3)
        house.daemon(model)
        house.until(
            lambda killed=killed, model=model: house.leader(scheduler_lease(model)) not in (None, killed)
        )
        house.say(3)
    house.until_all_applied()
    with house.ledger.read() as connection:
        for model in MODELS:
            mine = revisions.c.model == model
            edits = select(func.count()).where(mine, revisions.c.kind == RevisionKind.EDIT)
            written = select(tenures.c.correction_id).where(tenures.c.model == model)
            ids = connection.execute(written).scalars().all()
            assert connection.execute(edits).scalar_one() == house.told[model]
            assert len(ids) == len(set(ids)) == house.told[model], "applied twice"
            read = select(feeds.c["items"]).where(feeds.c.model == model, feeds.c.name == "news")
            assert connection.execute(read).scalar_one() == house.told[model]
