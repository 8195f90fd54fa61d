"""The feed of Wikidata: a stream that breaks, repeats, swaps and lies, against books kept by its maker."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from sqlalchemy import func, select

from daemon.admission.admit import pull_feed
from daemon.core.config.feeds import WikidataFeedConfig
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, feeds, quarantine
from daemon.embedded.redis_server import PrivateRedis
from daemon.feeds.base import make_feed
from tests.conftest import is_full
from tests.daemon.feeds.servers import Answers
from tests.daemon.feeds.wikimedia import Wikimedia, World
from tests.ledgers import found

_REVISION = re.compile(r"&oldid=(\d+)$")


def section(web: Answers) -> dict[str, Any]:
    return {
        "kind": "wikidata", "name": "wikidata", "url": web.url + "/stream", "api_url": web.url + "/api",
        "allow_private": True, "relations": ["P36", "P6", "P169", "P19"], "quarantine_limit": 0,
    }  # fmt: skip


def said(ledger: Ledger) -> Counter[tuple[str, str, int, str | None]]:
    """Every correction of the ledger: subject, relation, revision, value."""
    with ledger.read() as connection:
        rows = connection.execute(select(corrections)).mappings().all()
    found_: Counter[tuple[str, str, int, str | None]] = Counter()
    for row in rows:
        match = _REVISION.search(row["source"])
        assert match is not None
        found_[row["subject"], row["relation"], int(match[1]), row["object"]] += 1
    return found_


def winners(ledger: Ledger) -> dict[tuple[str, str], str | None]:
    """What each fact will be once all that waits is written."""
    carrying = corrections.c.state.in_(("pending", "queued", "applied"))
    with ledger.read() as connection:
        rows = connection.execute(select(corrections).where(carrying)).mappings().all()
        facts = connection.execute(select(corrections.c.subject, corrections.c.relation)).all()
    held = {(row["subject"], row["relation"]): row["object"] for row in rows}
    return {(row.subject, row.relation): held.get((row.subject, row.relation)) for row in facts}


def agrees(ledger: Ledger, world: World) -> None:
    """None lost, none twice, and the newest of each wins."""
    expected = Counter({(*key, value): 1 for key, value in world.said.items()})
    assert said(ledger) == expected
    assert winners(ledger) == world.final
    with ledger.read() as connection:
        reasons = connection.execute(select(quarantine.c.reason)).scalars().all()
    assert set(reasons) <= {"not_json"}
    assert len(reasons) >= world.garbage  # a repeated one is held twice


def test_the_ledger_equals_the_books(web: Answers, sqlite_ledger: Ledger) -> None:
    world = World(seed=1)
    world.make(1_500, items=25)
    server = Wikimedia(web, world, cut_every=150)
    feed = make_feed(WikidataFeedConfig(**section(web)))
    deadline = time.monotonic() + 60
    while len(said(sqlite_ledger)) < len(world.said) and time.monotonic() < deadline:
        pull_feed(sqlite_ledger, feed, 200)
    for _ in range(10):
        pull_feed(sqlite_ledger, feed, 200)
    agrees(sqlite_ledger, world)
    assert server.connections > 3
    resumed = [headers.get("last-event-id") for path, headers in web.asked if path == "/stream"]
    assert resumed[0] is None
    assert all(resumed[1:])
    with sqlite_ledger.read() as connection:
        dropped = connection.execute(select(feeds.c.cursor)).scalar_one()["dropped"]
    for reason in ("sitelink", "label", "qualifier", "reference", "not_truthy", "other_wiki", "no_event"):
        assert dropped[reason] > 0, reason


class Daemon:
    """``errata run --no-worker`` on a ledger of its own, to be killed."""

    def __init__(self, folder: Path, feed: dict[str, Any], redis_url: str) -> None:
        self.file = folder / "errata.toml"
        settings = {
            "data_dir": str(folder / "data"), "redis_url": redis_url, "api": {"port": 0}, "feeds": [feed],
            "edit": {"queue_bound": 1_000_000}, "schedule": {"pull_seconds": 0.05, "lease_seconds": 1.0},
        }  # fmt: skip
        self.file.write_text(tomli_w.dumps(settings))
        self.url = f"sqlite:///{folder / 'data' / 'ledger.sqlite'}"
        self.log = (folder / "log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "daemon.cli", "--config", str(self.file), "run", "--no-worker"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def survive(web: Answers, folder: Path, events: int, kills: int) -> None:
    """Read a world while the daemon is killed again and again at moments drawn by a seed."""
    seed = int(os.environ.get("ERRATA_TEST_SEED", "7"))
    print(f"ERRATA_TEST_SEED={seed}")
    world, dice = World(seed), random.Random(seed)
    world.make(events, items=max(25, events // 60))
    Wikimedia(web, world)
    with PrivateRedis(folder / "redis") as redis:
        daemon = Daemon(folder, section(web), redis.url)
        ledger = Ledger.open(daemon.url)
        found(ledger)
        daemon.start()
        try:
            for number in range(1, kills + 1):
                goal = len(world.said) * number * dice.uniform(0.8, 1.0) / (kills + 1)
                _wait(ledger, int(goal), 120)
                time.sleep(dice.uniform(0.0, 0.3))
                daemon.kill()
                daemon.start()
            _wait(ledger, len(world.said), 300)
            time.sleep(2)  # whatever would come twice has time to come
        finally:
            daemon.kill()
        agrees(ledger, world)
        print(f"{len(world.said)} facts of {events} events, {kills} kills")
        ledger.close()


def _wait(ledger: Ledger, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with ledger.read() as connection:
            if connection.execute(select(func.count()).select_from(corrections)).scalar_one() >= count:
                return
        time.sleep(0.05)
    raise AssertionError(f"not {count} corrections within {seconds} s")


@pytest.mark.redis
def test_a_killed_daemon_loses_nothing_and_repeats_nothing(web: Answers, tmp_path: Path) -> None:
    survive(web, tmp_path, events=800, kills=1)


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.skipif(not is_full(), reason="a minute: part of deploy/test.sh --guarantees")
@pytest.mark.timeout(900)
def test_ten_thousand_events_and_twenty_kills(web: Answers, tmp_path: Path) -> None:
    survive(web, tmp_path, events=10_000, kills=20)
