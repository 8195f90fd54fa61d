"""A soak test that streams corrections while it kills worker, Redis and daemon, and then checks the sums.

    python -m tests.bench.soak --minutes 20          50 corrections per second, about 22 minutes in all
    python -m tests.bench.soak --minutes 3           a short run

Redis, the Celery worker (with a toy in place of the language model) and the daemon (errata run --no-worker)
are real. The worker is killed every 20 s, Redis every 60 s and the daemon every 90 s, always by SIGKILL. An
operator rolls back every 45 s. Prints a line each half minute, then the ledger's sums and every check, and
exits with 1 when a check fails.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from daemon.core.errors import ErrataError
from daemon.core.ledger.chain import head
from daemon.core.ledger.schema import revisions
from daemon.embedded.redis_server import locate_redis
from tests.bench.soak_sums import Written, checks
from tests.broker.station import ROOT, Station
from tests.ledgers import roll_back
from tests.toy import said

BEGIN = datetime(2020, 1, 1, tzinfo=UTC)
SUBJECTS = 60  # the toy's layers hold somewhat more independent facts
EVERY = {"worker": 20.0, "redis": 60.0, "daemon": 90.0, "rollback": 45.0, "line": 30.0}


class Soak(Station):
    """A station whose scheduler is a daemon in its own process."""

    def __init__(self, folder: Path, binary: Path) -> None:
        super().__init__(folder, binary)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.written = Written()
        self._chance = random.Random(11)

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings()
        settings["edit"] = {
            "batch_size": 16, "batch_age_seconds": 0.5, "review": 0,
            "lease_seconds": 3.0, "resend_seconds": 3.0,
        }  # fmt: skip
        settings["store"] = {"reserve_bytes": 0, "keep_revisions": 50, "grace_seconds": 20.0}
        settings["watch"] |= {"auto_rollback": False}
        settings["api"] = {"port": 0}
        settings["schedule"] = {
            "pull_seconds": 0.5, "dispatch_seconds": 0.5, "reconcile_seconds": 1.0, "judge_seconds": 1.0,
            "keep_seconds": 5.0, "lease_seconds": 5.0,
        }  # fmt: skip
        settings["feeds"][0]["quarantine_limit"] = 0
        return settings

    def start_daemon(self) -> None:
        command = [sys.executable, "-m", "daemon.cli", "--config", str(self.file), "run", "--no-worker"]
        with (self.folder / "daemon.log").open("ab") as sink:
            self.daemon = subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, stdout=sink, stderr=sink
            )

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()
        self.start_daemon()

    def kill_worker(self) -> None:
        self.stop_worker()
        self.start_worker()

    def kill_redis(self) -> None:
        if self.server.pid is not None:
            os.kill(self.server.pid, signal.SIGKILL)
        while self.server.alive():
            time.sleep(0.01)
        self.server.start()

    def roll_back(self) -> None:
        """Roll back a few revisions, unless head moves meanwhile."""
        with suppress(ErrataError):
            with self.ledger.read() as connection:
                number = int(head(connection, "default")["number"])
            to = max(0, number - self._chance.randrange(1, 4))
            roll_back(self.ledger, to, "operator", "a doubt", expected_head=number)

    def write(self, count: int) -> None:
        """Append lines, mostly new statements about few facts.

        Some are old, repeated, retractions, garbage or poison.
        """
        with self.feed.open("a") as stream:
            for _ in range(count):
                stream.write(self._line() + "\n")

    def _line(self) -> str:
        kind = self._chance.random()
        if kind < 0.02:
            self.written.garbage += 1
            return "no correction at all"
        if kind < 0.04 and self.written.lines:
            self.written.repeated += 1
            return self._chance.choice(self.written.lines[-500:])
        number = len(self.written.lines)
        subject = "Unland" if kind < 0.05 else f"Land {self._chance.randrange(SUBJECTS)}"
        answer = None if kind > 0.97 else f"City {self._chance.randrange(100)}"
        age = self._chance.randrange(3_000) if kind > 0.90 else 0  # an old statement
        moment = BEGIN + timedelta(seconds=number - age, microseconds=number)
        line = json.dumps(said(subject, answer, 1, effective_at=moment.isoformat(), source=f"line {number}"))
        self.written.lines.append(line)
        return line

    def figures(self) -> dict[str, int]:
        """Return head, files in the store, and resident MiB of daemon and worker."""
        with self.ledger.read() as connection:
            number = connection.execute(select(func.max(revisions.c.number))).scalar() or 0
        files = sum(1 for _ in (self.folder / "data" / "store").glob("*/*"))
        pids = {"daemon": self.daemon, "worker": self.worker}
        sizes = {f"{name}_mib": resident_mib(p.pid) for name, p in pids.items() if p is not None}
        return {"head": int(number), "files": files, **sizes}

    def drain(self, seconds: float) -> None:
        """Wait until every line is in the ledger and no correction waits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            states = self.states()
            if self.written.accepted() == states.total() and not {"pending", "queued"} & states.keys():
                return
            time.sleep(0.5)

    def close(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
        super().close()


def resident_mib(pid: int) -> int:
    """Return the resident MiB of a process, or 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def run(soak: Soak, seconds: float, per_second: float) -> tuple[Counter[str], list[dict[str, int]]]:
    """Write and kill for a while, and return the count of each act and the figures of each half minute."""
    acts: dict[str, Callable[[], None]] = {
        "worker": soak.kill_worker, "redis": soak.kill_redis, "daemon": soak.kill_daemon,
        "rollback": soak.roll_back,
    }  # fmt: skip
    done: Counter[str] = Counter()
    seen: list[dict[str, int]] = []
    began = time.monotonic()
    due = {name: began + every for name, every in EVERY.items()}
    sent = 0
    while (now := time.monotonic()) < began + seconds:
        count = int((now - began) * per_second) - sent
        soak.write(count)
        sent += count
        for name in (name for name, when in due.items() if when <= now):
            due[name] += EVERY[name]
            if name == "line":
                seen.append(soak.figures())
                print(f"{now - began:6.0f} s  lines {sent}  {seen[-1]}  {dict(soak.states())}", flush=True)
            else:
                acts[name]()
                done[name] += 1
        time.sleep(0.1)
    return done, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=50.0, help="lines per second")
    parser.add_argument(
        "--drain",
        type=float,
        default=180.0,
        help="longest wait for the queue to empty at the end, in seconds",
    )
    asked = parser.parse_args()
    binary = locate_redis()
    if binary is None:
        sys.exit("no Redis server on this machine")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before its time"))
    with tempfile.TemporaryDirectory(prefix="errata-soak-") as folder:
        soak = Soak(Path(folder), binary)
        try:
            soak.start_worker()
            soak.start_daemon()
            done, seen = run(soak, asked.minutes * 60, asked.rate)
            soak.drain(asked.drain)
            soak.stop_worker()
            print(f"\nkilled or done: {dict(done)}")
            failed = [
                name for name, holds in checks(soak.ledger, soak.config, soak.written, seen) if not holds
            ]
        finally:
            soak.close()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
