"""A soak test that streams corrections while it kills worker, Redis and daemon, and then checks the sums.

    python -m tests.bench.soak --minutes 20          50 corrections per second, about 22 minutes in all
    python -m tests.bench.soak --minutes 3           a short run

Redis, the Celery worker (with a toy in place of the language model) and the daemon (errata run --no-worker)
are real. The worker is killed every 20 s, Redis every 60 s and the daemon every 90 s, always by SIGKILL. An
operator rolls back every 45 s. Prints a line each half minute, then the ledger's sums and every check, and
exits with 1 when a check fails.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from daemon.core.errors import ErrataError
from daemon.core.ledger.chain import head
from daemon.core.ledger.schema import revisions
from daemon.embedded.redis_server import locate_redis
from tests.bench.site import Site
from tests.bench.soak_sums import checks
from tests.bench.stream import Stream
from tests.ledgers import roll_back

EVERY = {"worker": 20.0, "redis": 60.0, "daemon": 90.0, "rollback": 45.0, "line": 30.0}
SECTIONS: dict[str, Any] = {
    "edit": {
        "batch_size": 16, "batch_age_seconds": 0.5, "review": 0, "lease_seconds": 3.0, "resend_seconds": 3.0,
        "batches_ahead": 1000,
    },
    "store": {"reserve_bytes": 0, "keep_revisions": 50, "grace_seconds": 20.0},
    "watch": {"delta_ceiling": 1e6, "batch_delta_ceiling": 1e6, "auto_rollback": False},
    "schedule": {
        "pull_seconds": 0.5, "dispatch_seconds": 0.5, "reconcile_seconds": 1.0, "judge_seconds": 1.0,
        "keep_seconds": 5.0, "lease_seconds": 5.0,
    },
}  # fmt: skip


class Soak(Site):
    """A site without a publisher whose worker, Redis and daemon are killed."""

    def __init__(self, folder: Path, binary: Path) -> None:
        super().__init__(folder, binary, Stream(folder / "news.jsonl", seed=11), SECTIONS)
        self._chance = random.Random(11)

    def again(self, name: str) -> None:
        """Kill a part and start it again."""
        self.parts[name].kill()
        self.parts[name].start()

    def redis_again(self) -> None:
        """Kill Redis and start it again."""
        self.kill_redis()
        self.server.start()

    def roll_back(self) -> None:
        """Roll back a few revisions, unless head moves meanwhile."""
        with suppress(ErrataError):
            with self.ledger.read() as connection:
                number = int(head(connection, "default")["number"])
            to = max(0, number - self._chance.randrange(1, 4))
            roll_back(self.ledger, to, "operator", "a doubt", expected_head=number)

    def figures(self) -> dict[str, int]:
        """Return head, files in the store, and resident MiB of daemon and worker."""
        with self.ledger.read() as connection:
            number = connection.execute(select(func.max(revisions.c.number))).scalar() or 0
        files = sum(1 for _ in self.config.store_path.glob("*/*"))
        sizes = {f"{name}_mib": resident_mib(part.pid) for name, part in self.parts.items() if part.pid}
        return {"head": int(number), "files": files, **sizes}

    def drain(self, seconds: float) -> None:
        """Wait until every line is in the ledger and no correction waits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.all_ended():
            time.sleep(0.5)


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
        "worker": lambda: soak.again("worker"), "daemon": lambda: soak.again("daemon"),
        "redis": soak.redis_again, "rollback": soak.roll_back,
    }  # fmt: skip
    done: Counter[str] = Counter()
    seen: list[dict[str, int]] = []
    began = time.monotonic()
    due = {name: began + every for name, every in EVERY.items()}
    sent = 0
    while (now := time.monotonic()) < began + seconds:
        count = int((now - began) * per_second) - sent
        soak.stream.write(count)
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
            for part in soak.parts.values():
                part.start()
            done, seen = run(soak, asked.minutes * 60, asked.rate)
            soak.drain(asked.drain)
            soak.parts["worker"].kill()
            print(f"\nkilled or done: {dict(done)}")
            failed = [
                name
                for name, holds in checks(soak.ledger, soak.config, soak.stream.written, seen)
                if not holds
            ]
        finally:
            soak.close()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
