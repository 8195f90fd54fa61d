"""The worker lease, the step that listens while it is held, and a batch that waits for another writer."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from daemon.core.config.settings import Config
from daemon.core.errors import LeaseHeldError
from daemon.core.ledger import leases
from daemon.core.ledger.ledger import Ledger
from daemon.core.names import worker_lease
from workers.queue import leading, tasks
from workers.queue.leading import leading_step

QUEUE = "errata.edit.default"


class Consumer:
    """What a step sees of Celery's consumer: queues that are listened to, and a timer that is run by hand."""

    def __init__(self, *queues: str) -> None:
        self.listened = dict.fromkeys(queues)
        self.app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=self.listened)))
        self.timer = self
        self.steps: list[Any] = []
        self.pause, self._call = 0.0, lambda: None

    def call_repeatedly(self, pause: float, call: Callable[..., None], arguments: tuple[Any, ...]) -> Any:
        self.pause, self._call = pause, lambda: call(*arguments)
        return SimpleNamespace(cancel=lambda: setattr(self, "_call", lambda: None))

    def add_task_queue(self, queue: str) -> None:
        self.listened[queue] = None

    def cancel_task_queue(self, queue: str) -> None:
        del self.listened[queue]

    def look(self) -> bool:
        """Let the timer ring once, and return whether batches are listened to."""
        self._call()
        return QUEUE in self.listened


class Worker:
    """A worker process of its own name."""

    def __init__(self, config: Config, name: str, monkeypatch: pytest.MonkeyPatch, *queues: str) -> None:
        self._name, self._patch = name, monkeypatch
        self.consumer = Consumer(*(queues or (QUEUE,)))
        self._step = leading_step(config)(self.consumer)

    def start(self) -> bool:
        self._be()
        self._step.start(self.consumer)
        return QUEUE in self.consumer.listened

    def look(self) -> bool:
        self._be()
        return self.consumer.look()

    def end(self) -> None:
        self._be()
        self._step.shutdown(self.consumer)

    def _be(self) -> None:
        self._patch.setattr(leading, "process_name", lambda: self._name)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config.model_validate({"data_dir": tmp_path, "edit": {"lease_seconds": 20}})
    Ledger.open(made.ledger_url).close()
    return made


def test_one_of_two_workers_listens_and_the_other_when_it_ends(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Worker(config, "host:1", monkeypatch), Worker(config, "host:2", monkeypatch)
    assert first.start()
    assert not second.start(), "before the first message"
    assert second.consumer.pause <= config.edit.lease_seconds / 10
    assert (first.look(), second.look()) == (True, False)
    first.end()
    assert second.look()


def test_a_worker_that_was_overtaken_ends_to_listen(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(config, "host:1", monkeypatch)
    assert worker.start()
    ledger = Ledger.open(config.ledger_url)
    with ledger.write() as connection:
        leases.overtake(connection, ledger.lease_clock, worker_lease("default"), "host:2")
        leases.acquire(connection, ledger.lease_clock, worker_lease("default"), "host:2", 60, "leads")
    monkeypatch.setattr(leading, "_RENEWALS", 1e9)  # each look renews
    assert not worker.look()
    assert not worker.look()
    ledger.close()


def test_a_target_worker_needs_no_lease(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first, targets = Worker(config, "host:1", monkeypatch), Worker(config, "host:2", monkeypatch, "targets")
    assert first.start()
    targets.start()
    targets.look()
    assert list(targets.consumer.listened) == ["targets"]
    targets.end()
    assert first.look()


class Busy:
    """A holder whose session finds the lease held for the first runs."""

    model = "default"

    def __init__(self, times: int) -> None:
        self.runs, self._times = 0, times

    def session(self) -> "Busy":
        return self

    def run(self, _batch_id: str) -> str:
        self.runs += 1
        if self.runs <= self._times:
            raise LeaseHeldError("writer:default is held by host:1")
        return "committed"

    def tell(self, _state: str) -> None:
        """Nobody asks for heartbeats here."""

    def forget(self) -> None:
        raise AssertionError("nothing was wrong with the weights")


def test_a_batch_waits_for_the_lease_instead_of_being_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_LOOK_SECONDS", 0.001)
    holder = Busy(times=5)
    assert tasks.deliver_when_free(holder, "b1", patience=30)  # type: ignore[arg-type]
    assert holder.runs == 6


def test_a_batch_that_waits_for_long_goes_back_to_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_LOOK_SECONDS", 0.001)
    holder = Busy(times=1_000_000)
    assert not tasks.deliver_when_free(holder, "b1", patience=0.05)  # type: ignore[arg-type]
