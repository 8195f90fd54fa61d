"""Dispatch: what makes a batch, how many go ahead of the worker, what a failing queue leaves."""

import pytest
from sqlalchemy import func, select

from daemon.admission.admit import admit
from daemon.core.config.settings import Config
from daemon.core.errors import UnavailableError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import batches, corrections
from daemon.core.names import BatchState
from daemon.scheduling.dispatch import make_batches, send_open
from tests.ledgers import FakeClock, items, statement


class ListQueue:
    """A queue that is a list, and takes only so much."""

    def __init__(self, room: int = 1_000_000) -> None:
        self.sent: list[str] = []
        self.room = room

    def send(self, model: str, batch_id: str) -> None:
        if len(self.sent) >= self.room:
            raise UnavailableError("full")
        self.sent.append(batch_id)

    def depth(self, model: str) -> int:
        return len(self.sent)


def configured(**edit: object) -> Config:
    return Config.model_validate({"edit": {"batch_size": 4, "batch_age_seconds": 3.0, **edit}})


def say(ledger: Ledger, count: int, round_: int = 1) -> None:
    said = [statement(f"Land {number}", f"Town {number} {round_}", round_) for number in range(count)]
    with ledger.write() as connection:
        admit(connection, ledger.clock.now(), "news", 50, items(*said))


def in_state(ledger: Ledger, column: object, state: str) -> int:
    with ledger.read() as connection:
        return int(connection.execute(select(func.count()).where(column == state)).scalar_one())


def test_full_batches_leave_at_once_and_the_rest_when_it_is_old_enough(
    ledger: Ledger, clock: FakeClock
) -> None:
    say(ledger, 10)
    assert make_batches(ledger, configured()) == 2
    assert in_state(ledger, corrections.c.state, "pending") == 2
    clock.advance(3)
    assert make_batches(ledger, configured()) == 1
    with ledger.read() as connection:
        sizes = (
            connection.execute(select(func.count(corrections.c.id)).group_by(corrections.c.batch_id))
            .scalars()
            .all()
        )
    assert sorted(sizes) == [2, 4, 4]


def test_only_so_many_batches_go_ahead_and_what_waits_behind_them_is_replaced(
    sqlite_ledger: Ledger, clock: FakeClock
) -> None:
    few = configured(batches_ahead=2)
    for round_ in range(1, 30):
        say(sqlite_ledger, 20, round_)
        clock.advance(3)
        make_batches(sqlite_ledger, few)
    assert in_state(sqlite_ledger, batches.c.state, BatchState.OPEN) == 2
    assert in_state(sqlite_ledger, corrections.c.state, "pending") == 20  # the newest of each, no more


def test_many_batches_need_few_transactions(sqlite_ledger: Ledger) -> None:
    say(sqlite_ledger, 400)
    many, taken = configured(batches_ahead=1000), 0
    queue = ListQueue()
    write = sqlite_ledger.write

    def counted() -> object:
        nonlocal taken
        taken += 1
        return write()

    sqlite_ledger.write = counted  # type: ignore[method-assign,assignment]
    assert make_batches(sqlite_ledger, many) == 100
    assert send_open(sqlite_ledger, "default", queue) == 100
    assert taken <= 6
    assert in_state(sqlite_ledger, batches.c.state, BatchState.SENT) == 100


def test_a_queue_that_fails_half_way_keeps_what_it_took_and_the_rest_stays_in_the_outbox(
    ledger: Ledger,
) -> None:
    say(ledger, 20)
    make_batches(ledger, configured())
    queue = ListQueue(room=3)
    with pytest.raises(UnavailableError):
        send_open(ledger, "default", queue)
    assert in_state(ledger, batches.c.state, BatchState.SENT) == 3
    assert in_state(ledger, batches.c.state, BatchState.OPEN) == 2
    queue.room = 10
    assert send_open(ledger, "default", queue) == 2
    assert len(set(queue.sent)) == 5
