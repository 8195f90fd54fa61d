"""The daemon's pulse under trouble: two daemons, a full disk, a flood, a clock that jumps."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from daemon.admission.admit import backlog
from daemon.core.config.settings import Config
from daemon.core.errors import DiskFullError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, leases
from daemon.core.names import writer_lease
from daemon.scheduling.scheduler import Scheduler
from daemon.upkeep import store
from daemon.views import figures
from daemon.views.prometheus import render
from tests.ledgers import FakeClock, found, held, propose, roll_back, statement, states, take_lease

_OTHER = """
import sys
from pathlib import Path
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.log import configure_logging
from daemon.scheduling.scheduler import Scheduler
configure_logging("ERROR")
ledger = Ledger.open(sys.argv[1])
other = Scheduler(ledger, Config(data_dir=Path(sys.argv[2])), None)
for line in sys.stdin:
    print(other.lead() if line == "lead\\n" else other.stop(), flush=True)
"""


class TakesAll:
    """A queue that takes every batch and remembers which."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, _model: str, batch_id: str) -> None:
        self.sent.append(batch_id)

    def depth(self, _model: str) -> int:
        return 0

    def survey(self, _model: str) -> None:
        """Nobody surveys here."""


def config_of(folder: Path, feed: Path, **sections: Any) -> Config:
    settings: dict[str, Any] = {
        "data_dir": folder,
        "feeds": [{"kind": "jsonl", "name": "news", "path": str(feed), "items_per_second": 0}],
        "edit": {"batch_age_seconds": 0},
        "store": {"reserve_bytes": 0},
    }
    return Config.model_validate({**settings, **sections})


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    file = tmp_path / "news.jsonl"
    file.touch()
    return file


def say(feed: Path, *said: dict[str, Any]) -> None:
    with feed.open("a") as stream:
        stream.writelines(json.dumps(one) + "\n" for one in said)


def leader(ledger: Ledger) -> str:
    with ledger.read() as connection:
        return str(connection.execute(select(leases.c.holder)).scalar_one())


def test_of_two_daemons_one_leads_and_the_other_waits(
    ledger: Ledger, clock: FakeClock, tmp_path: Path, feed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, queue = config_of(tmp_path, feed), TakesAll()
    first, second = Scheduler(ledger, config, queue), Scheduler(ledger, config, queue)
    say(feed, statement("Peru", "Lima"))
    first.tick()
    sent = len(queue.sent)
    monkeypatch.setattr("daemon.scheduling.scheduler.process_name", lambda: "another host:1")
    say(feed, statement("Chad", "Abéché"))
    second.tick()
    assert not second.lead()
    assert (len(states(ledger)), len(queue.sent)) == (1, sent), "the one that waits did something"
    clock.advance(config.schedule.lease_seconds + 1)
    second.tick()  # the first one was not heard of for the length of its lease
    assert leader(ledger) == "another host:1"
    assert len(states(ledger)) == 2
    assert not first.lead(), "overtaken while it slept"
    second._jobs.start()
    second.stop()
    assert first.lead(), "what a daemon that ends gave back is free at once"


def test_two_processes_do_not_lead_together(tmp_path: Path, feed: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    ledger = Ledger.open(url)
    found(ledger)
    mine = Scheduler(ledger, config_of(tmp_path, feed), TakesAll())
    command = [sys.executable, "-c", _OTHER, url, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("lead\n")
        other.stdin.flush()
        assert other.stdout.readline() == "True\n"
        assert not mine.lead()
        assert str(other.pid) in leader(ledger)
        other.kill()
    ledger.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The free bytes of the disk, to be changed."""
    free = [1 << 40]
    for module in (store, figures):
        monkeypatch.setattr(module, "free_bytes", lambda _config: free[0])
    return free


def test_a_full_disk_pauses_the_edits_and_they_go_on_by_themselves(
    sqlite_ledger: Ledger, tmp_path: Path, feed: Path, disk: list[int]
) -> None:
    config = config_of(tmp_path, feed, store={"reserve_bytes": 1 << 20})
    queue = TakesAll()
    daemon = Scheduler(sqlite_ledger, config, queue)
    disk[0] = (1 << 20) - 1
    with pytest.raises(DiskFullError, match="free space"):
        store.require_free_space(sqlite_ledger, config)
    say(feed, statement("Peru", "Lima"))
    daemon.tick()
    assert list(states(sqlite_ledger).values()) == ["pending"], "what comes in is admitted all the same"
    assert queue.sent == []
    shown = render(sqlite_ledger, config).decode()
    assert "errata_store_free_bytes 1.048575e+06" in shown
    assert "errata_store_reserve_bytes 1.048576e+06" in shown
    disk[0] = 1 << 20
    daemon.tick()
    assert len(queue.sent) == 1
    assert list(states(sqlite_ledger).values()) == ["queued"]


def test_a_flood_fills_the_queue_to_its_bound_and_no_further(
    sqlite_ledger: Ledger, tmp_path: Path, feed: Path
) -> None:
    bound, chunk = 60, 25
    config = config_of(
        tmp_path,
        feed,
        edit={"queue_bound": bound, "batches_ahead": 2, "batch_size": 4, "batch_age_seconds": 0},
        feeds=[{"kind": "jsonl", "name": "news", "path": str(feed), "chunk_items": chunk}],
    )
    queue = TakesAll()
    daemon = Scheduler(sqlite_ledger, config, queue)
    say(feed, *[statement(f"Land {number}", "Town") for number in range(400)])
    for _ in range(5):
        daemon.tick()
    with sqlite_ledger.read() as connection:
        waits = backlog(connection, "default")
    assert bound <= waits < bound + chunk
    assert len(queue.sent) <= 2, "Redis gets what the worker is about to need"
    say(feed, *[statement(f"Land {number}", "City", 9) for number in range(400)])
    assert len(states(sqlite_ledger)) == waits, "the rest waits in the feed"


@pytest.mark.parametrize("jump", [-86_400, 86_400], ids=["a day back", "a day ahead"])
def test_a_clock_that_jumps_changes_no_order_and_stops_nothing(
    ledger: Ledger, clock: FakeClock, tmp_path: Path, feed: Path, jump: float
) -> None:
    daemon = Scheduler(ledger, config_of(tmp_path, feed), TakesAll())
    say(feed, statement("Peru", "Lima", 1))
    daemon.tick()
    commit_all(ledger)
    clock.moment += timedelta(seconds=jump)
    for _ in range(2):  # the lease may have run out meanwhile: it is taken anew
        daemon.tick()
    assert daemon.lead()
    say(feed, statement("Peru", "Cusco", 2))
    daemon.tick()
    commit_all(ledger)
    assert held(ledger) == {"Peru": "Cusco"}
    roll_back(ledger, 1, "ann", "a look back", expected_head=2)
    assert held(ledger) == {"Peru": "Lima"}
    with ledger.read() as connection:
        token = connection.execute(
            select(leases.c.token).where(leases.c.name == writer_lease("default"))
        ).scalar()
    assert token == 3, "two writers and a rollback: tokens only grow"


def commit_all(ledger: Ledger) -> None:
    """What a worker would do with the batch that was made."""
    with ledger.read() as connection:
        queued = select(corrections.c.batch_id).where(corrections.c.state == "queued")
        batch = connection.execute(queued).scalar_one()
    ledger.commit(take_lease(ledger), propose(ledger, batch))
