"""A worker that was paused and wakes up too late, two workers on one model, a fact that kills its worker."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from daemon.admission.submission import submit
from daemon.core.ledger.schema import attempts, leases, quarantine, revisions
from daemon.core.names import RevisionKind, writer_lease
from daemon.scheduling.dispatch import make_batches
from tests.crash.conftest import copy_of
from tests.crash.life import Life, ended, fork
from tests.ledgers import roll_back
from tests.toy import said


@pytest.fixture
def place(template: Path) -> Iterator[Path]:
    """An installation with three facts in one batch."""
    folder = copy_of(template)
    life = Life(folder)
    life.take_chunk()
    life.close()
    yield folder
    shutil.rmtree(folder)


def pauses_at(name: str) -> Callable[[str], None]:
    """A point at which the process stops, once, until it is told to go on."""
    left = [name]

    def stop(here: str) -> None:
        if left and here == left[0]:
            left.clear()
            os.kill(os.getpid(), signal.SIGSTOP)

    return stop


def paused_worker(folder: Path, ahead: float, point: str = "session.saved") -> int:
    """A worker that has done all but the commit, and sleeps."""
    pid = fork(lambda: Life(folder, pauses_at(point), ahead).edit_once())
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return pid


def wake(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
    assert ended(pid) == 0


def edits(life: Life) -> list[int]:
    """The tokens of the revisions that are edits."""
    with life.ledger.read() as connection:
        query = select(revisions.c.token).where(revisions.c.kind == RevisionKind.EDIT)
        return list(connection.execute(query.order_by(revisions.c.number)).scalars())


def token(life: Life) -> int:
    with life.ledger.read() as connection:
        query = select(leases.c.token).where(leases.c.name == writer_lease("default"))
        return int(connection.execute(query).scalar_one())


def test_a_worker_that_wakes_up_late_is_refused_while_the_next_one_works(place: Path) -> None:
    """Head has not moved, so only the token tells the two apart."""
    late = paused_worker(place, ahead=0.0)
    second = paused_worker(place, ahead=60.0)
    life = Life(place, ahead=60.0)
    newest = token(life)
    wake(late)
    assert edits(life) == []
    wake(second)
    assert edits(life) == [newest]
    life.check()
    life.close()


def test_a_worker_that_wakes_up_after_the_work_is_done_adds_nothing(place: Path) -> None:
    late = paused_worker(place, ahead=0.0)
    life = Life(place, ahead=60.0)
    life.edit_once()
    wake(late)
    assert len(edits(life)) == 1
    life.check()
    life.close()


def test_of_two_workers_one_writes_and_the_other_waits(place: Path) -> None:
    first = paused_worker(place, ahead=0.0)
    life = Life(place)
    life.edit_once()  # the lease is held: nothing happens, and nobody is blamed
    assert edits(life) == []
    with life.ledger.read() as connection:
        assert len(connection.execute(select(attempts)).all()) == 1
    wake(first)
    assert len(edits(life)) == 1
    life.check()
    life.close()


def test_a_rollback_during_an_edit_is_not_lost_and_the_edit_is_planned_again(place: Path) -> None:
    life = Life(place)
    life.edit_once()
    life.take_chunk()
    editing = paused_worker(place, ahead=0.0)
    roll_back(life.ledger, 0, "operator", "why", expected_head=1)
    wake(editing)
    with life.ledger.read() as connection:
        kinds = connection.execute(select(revisions.c.kind).order_by(revisions.c.number)).scalars().all()
    assert kinds == ["base", "edit", "rollback", "edit"]
    life.check()
    life.close()


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        ("Deadly", "crashed_worker"),
        ("Breathless", "crashed_worker"),
        ("Nan", "not_finite"),
        ("Infinite", "not_finite"),
        ("Huge", "norm"),
        ("Unland", "not_learned"),
    ],
)
def test_a_poisonous_fact_is_quarantined_and_the_others_are_applied(
    template: Path, subject: str, reason: str
) -> None:
    folder = copy_of(template)
    life = Life(folder)
    facts = [said("Peru", "City 1", 1), said(subject, "City 2", 1), said("Chad", "City 3", 1)]
    for fact in facts:
        submit(life.ledger, fact, "operator")
    for number in range(20):
        make_batches(life.ledger, life.config)
        if not life.open_batches():
            break
        pid = fork(lambda ahead=60.0 * number: Life(folder, ahead=ahead).edit_once())
        ended(pid)
    life.check_books()
    with life.ledger.read() as connection:
        held = connection.execute(select(quarantine.c.reason)).scalars().all()
        starts = len(connection.execute(select(attempts)).all())
    assert held == [reason]
    assert sorted(life.states()) == ["applied", "applied", "quarantined"]
    assert starts <= 11  # three for the batch, three for each half on the way down, no more
    life.close()
    shutil.rmtree(folder)
