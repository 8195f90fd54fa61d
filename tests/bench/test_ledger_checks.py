"""The checks of the benches that break things: a sound ledger passes, each planted violation is noticed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, insert, select, update

from daemon.admission.admit import pull_feed
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import audit, corrections, judgements, revisions, tenures
from daemon.core.names import CorrectionState, RevisionState, RollbackCause
from daemon.watch.judge import judge
from tests.bench.ledger_checks import Check, newest_won, once, sums, verdicts
from tests.bench.stream import Stream
from tests.ledgers import apply_waiting, jsonl_feed, roll_back
from tests.watching import right, suite_row

WATCH = Config(watch={"auto_rollback": False})  # type: ignore[arg-type]


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path / "news.jsonl", seed=3)


def failed(checks: Iterator[Check]) -> list[str]:
    return [check.name for check in checks if not check.holds]


def live_through(ledger: Ledger, stream: Stream) -> None:
    """Five revisions with measurements, a rollback by an operator, and a verdict on each."""
    feed = jsonl_feed("news", stream.file)
    for _ in range(5):
        stream.write(40)
        while pull_feed(ledger, feed, 20, "default").more:
            pass
        number = apply_waiting(ledger)
        assert number is not None
        ledger.record_probes("default", number, [suite_row(right(20))])
        judge(ledger, WATCH)
    roll_back(ledger, 3)


def every_check(ledger: Ledger, stream: Stream) -> Iterator[Check]:
    yield from sums(ledger, stream.written)
    yield from once(ledger)
    yield from verdicts(ledger)
    yield from newest_won(ledger)


def test_a_sound_ledger_passes(sqlite_ledger: Ledger, stream: Stream) -> None:
    live_through(sqlite_ledger, stream)
    assert failed(every_check(sqlite_ledger, stream)) == []
    assert stream.written.garbage
    assert stream.written.repeated


def lose_a_correction(ledger: Ledger) -> None:
    with ledger.write() as connection:
        idle = select(corrections.c.id).where(corrections.c.state == CorrectionState.SUPERSEDED).limit(1)
        connection.execute(delete(corrections).where(corrections.c.id == idle.scalar_subquery()))


def apply_one_again(ledger: Ledger) -> None:
    """A second edit writes a correction that the one before it had superseded."""
    with ledger.write() as connection:
        span = connection.execute(select(tenures).where(tenures.c.until == 2).limit(1)).mappings().one()
        again = {key: span[key] for key in ("model", "fact_id", "correction_id", "blob", "row")}
        connection.execute(insert(tenures).values(**again, since=4, until=4))


def hold_two_values(ledger: Ledger) -> None:
    with ledger.write() as connection:
        span = connection.execute(select(tenures).where(tenures.c.until == 2).limit(1)).mappings().one()
        connection.execute(update(tenures).where(tenures.c.id == span["id"]).values(until=None))


def forget_a_verdict(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(delete(judgements).where(judgements.c.revision == 2))


def leave_a_candidate(ledger: Ledger) -> None:
    with ledger.write() as connection:
        mine = revisions.c.number == 2
        connection.execute(update(revisions).where(mine).values(state=RevisionState.CANDIDATE))


def blame_the_judge(ledger: Ledger) -> None:
    with ledger.write() as connection:
        mine = revisions.c.cause == RollbackCause.OPERATOR
        connection.execute(update(revisions).where(mine).values(cause=RollbackCause.JUDGE))


def leave_one_waiting(ledger: Ledger) -> None:
    with ledger.write() as connection:
        idle = select(corrections.c.id).where(corrections.c.state == CorrectionState.SUPERSEDED).limit(1)
        mine = corrections.c.id == idle.scalar_subquery()
        connection.execute(update(corrections).where(mine).values(state=CorrectionState.QUEUED))


def rewrite_the_audit(ledger: Ledger) -> None:
    with ledger.write() as connection:
        connection.execute(update(audit).values(reason="another one"))


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (lose_a_correction, "nothing accepted was lost"),
        (apply_one_again, "nothing was applied twice"),
        (hold_two_values, "nothing was applied twice"),
        (forget_a_verdict, "no revision is unjudged"),
        (leave_a_candidate, "no revision is unjudged"),
        (blame_the_judge, "only operators leave corrections reverted"),
        (leave_one_waiting, "all came to an end"),
        (rewrite_the_audit, "the audit holds"),
    ],
)
def test_a_planted_violation_is_noticed(
    sqlite_ledger: Ledger, stream: Stream, plant: Callable[[Ledger], None], check: str
) -> None:
    live_through(sqlite_ledger, stream)
    plant(sqlite_ledger)
    assert check in failed(every_check(sqlite_ledger, stream))
