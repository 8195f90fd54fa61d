"""Measure throughput and memory from JSON lines through admission to ledger and Redis queue.

    python -m tests.bench.feeds                      100,000 corrections about as many facts, SQLite
    python -m tests.bench.feeds --facts 500          a flood about few facts: the newest of each must win
    python -m tests.bench.feeds --url postgresql+psycopg://…

Prints corrections a second and resident memory at every tenth, then what ledger and Redis hold.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import func, select

from daemon.admission.admit import pull_feed
from daemon.core.broker import CELERY_URL_FILE, URL_FILE, redis_url
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections
from daemon.core.names import CorrectionState
from daemon.embedded.redis_server import PrivateRedis
from daemon.feeds.jsonl import JsonlFeed
from daemon.scheduling.dispatch import CeleryQueue, make_batches, send_open
from tests.ledgers import jsonl_feed

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
BATCHES_EVERY = 4  # chunks, as often as the scheduler's jobs alternate under load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--facts", type=int, default=0, help="number of facts (0: each item is a new fact)")
    parser.add_argument("--chunk", type=int, default=500)
    parser.add_argument("--ahead", type=int, default=1_000_000, help="batches made ahead of the worker")
    parser.add_argument("--url", default="")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="errata-bench-") as folder:
        place = Path(folder)
        url = asked.url or f"sqlite:///{place / 'ledger.sqlite'}"
        feed_file = place / "feed.jsonl"
        write_feed(feed_file, asked.items, asked.facts or asked.items)
        config = Config.model_validate(
            {"data_dir": place, "edit": {"queue_bound": asked.items, "batches_ahead": asked.ahead}}
        )
        with PrivateRedis(place / "redis") as server:
            config.run_path.mkdir()
            (config.run_path / URL_FILE).write_text(server.url)
            (config.run_path / CELERY_URL_FILE).write_text(server.celery_url)
            run(config, url, feed_file, asked)


def run(config: Config, url: str, feed_file: Path, asked: Any) -> None:
    ledger, queue = Ledger.open(url), CeleryQueue(config)
    client = redis.Redis.from_url(redis_url(config))
    feed = jsonl_feed("bench", feed_file)
    start = time.perf_counter()
    print(f"{'items':>9}  {'items/s':>8}  {'RSS MiB':>8}  {'Redis MiB':>9}")
    last, tenth = (0, start), asked.items // 10
    for done in pulled(ledger, feed, asked.chunk, queue, config):
        if done // tenth > last[0] // tenth:
            now = time.perf_counter()
            rate = (done - last[0]) / (now - last[1])
            print(f"{done:>9}  {rate:>8.0f}  {rss():>8.1f}  {redis_mib(client):>9.2f}", flush=True)
            last = (done, now)
    seconds = time.perf_counter() - start
    print(f"{asked.items} in {seconds:.1f} s: {asked.items / seconds:.0f} a second")
    with ledger.read() as connection:
        counted = select(corrections.c.state, func.count()).group_by(corrections.c.state)
        print({row[0]: row[1] for row in connection.execute(counted)}, "queue", queue.depth("default"))
    print("newest of each fact wins:", newest_wins(ledger, asked))
    ledger.close()


def pulled(ledger: Ledger, feed: JsonlFeed, chunk: int, queue: CeleryQueue, config: Config) -> Iterator[int]:
    done, more, chunks = 0, True, 0
    while more:
        report = pull_feed(ledger, feed, chunk)
        done, more, chunks = done + len(report.decisions), report.more, chunks + 1
        if chunks % BATCHES_EVERY == 0 or not more:
            make_batches(ledger, config)
            send_open(ledger, "default", queue)
        yield done


def write_feed(file: Path, items: int, facts: int) -> None:
    with file.open("w") as stream:
        for number in range(items):
            place = number % facts
            line = {
                "subject": f"Place {place}",
                "relation": "capital",
                "prompt": f"The capital of Place {place} is",
                "object": f"Town {number}",
                "paraphrases": [f"Place {place} is governed from"],
                "source": "bench",
                "effective_at": (BEGIN + timedelta(seconds=number)).isoformat(),
            }
            stream.write(json.dumps(line) + "\n")


def newest_wins(ledger: Ledger, asked: Any) -> bool:
    facts = asked.facts or asked.items
    wanted = {
        f"Place {number % facts}": f"Town {number}" for number in range(asked.items - facts, asked.items)
    }
    carrying = corrections.c.state.in_((CorrectionState.PENDING, CorrectionState.QUEUED))
    with ledger.read() as connection:
        found = connection.execute(select(corrections.c.subject, corrections.c.object).where(carrying)).all()
    return len(found) == facts and {row.subject: row.object for row in found} == wanted


def rss() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def redis_mib(client: "redis.Redis") -> float:
    return client.info("memory")["used_memory"] / 2**20


if __name__ == "__main__":
    main()
