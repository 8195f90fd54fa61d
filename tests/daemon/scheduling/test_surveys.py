"""When all probes are due, what waits for them, and what their results do to a revision that is live."""

from sqlalchemy import select, update

from daemon.core.config.settings import Config
from daemon.core.ledger.attempts import (
    begin_attempt,
    begin_probe,
    count_failures,
    end_attempt,
    fatal_probes,
)
from daemon.core.ledger.chain import get_revision
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.schema import attempts, incidents
from daemon.core.names import ALL_PROBES, DEFAULT_MODEL, AttemptOutcome
from daemon.scheduling.surveys import ask_for_survey
from daemon.watch.judge import judge
from tests.ledgers import FakeClock
from tests.watching import commit, commit_and_judge, right, suite_row, unknown_row

DONE = ProbeRow(ALL_PROBES, 1, "ok", None, None, 9, 40.0)
HOURLY = Config(watch={"full_seconds": 3600})  # type: ignore[arg-type]
FIRST = Config(watch={"full_before_live": True})  # type: ignore[arg-type]


class Asked:
    """A queue that only counts."""

    def __init__(self) -> None:
        self.count = 0

    def survey(self, _model: str) -> None:
        self.count += 1


def asks(ledger: Ledger, config: Config) -> bool:
    return ask_for_survey(ledger, config, Asked())  # type: ignore[arg-type]


def state(ledger: Ledger, number: int) -> str:
    with ledger.read() as connection:
        return str(get_revision(connection, DEFAULT_MODEL, number)["state"])


def test_a_survey_is_due_once_an_hour_where_something_changed(ledger: Ledger, clock: FakeClock) -> None:
    assert not asks(ledger, HOURLY)
    clock.advance(4000)
    assert not asks(ledger, HOURLY), "nothing was edited yet"
    number = commit_and_judge(ledger, HOURLY, suite_row(right(9)))
    assert asks(ledger, HOURLY)
    assert not asks(ledger, HOURLY), "one is under way"
    ledger.record_probes(DEFAULT_MODEL, number, [DONE])
    clock.advance(4000)
    assert not asks(ledger, HOURLY), "head has been surveyed"
    commit_and_judge(ledger, HOURLY, suite_row(right(9)))
    assert asks(ledger, HOURLY)


def test_a_survey_that_was_lost_is_asked_for_again(ledger: Ledger, clock: FakeClock) -> None:
    commit_and_judge(ledger, HOURLY, suite_row(right(9)))
    clock.advance(4000)
    assert asks(ledger, HOURLY)
    clock.advance(HOURLY.edit.task_seconds + 1)
    assert asks(ledger, HOURLY)


def test_where_all_probes_come_first_nothing_lives_without_them(ledger: Ledger) -> None:
    first = commit_and_judge(ledger, FIRST, suite_row(right(9)))
    second = commit_and_judge(ledger, FIRST, suite_row(right(9)))
    assert (state(ledger, first), state(ledger, second)) == ("candidate", "candidate")
    assert asks(ledger, FIRST)
    ledger.record_probes(DEFAULT_MODEL, second, [DONE])
    judge(ledger, FIRST)
    assert (state(ledger, first), state(ledger, second)) == ("live", "live")


def test_a_slow_probe_may_reject_what_is_live_already(ledger: Ledger) -> None:
    commit_and_judge(ledger, HOURLY, suite_row(right(9)))
    number = commit_and_judge(ledger, HOURLY, suite_row(right(9)))
    ledger.record_probes(DEFAULT_MODEL, number, [suite_row([False] * 9, floor=0.5, name="slow")])
    judge(ledger, HOURLY)
    assert state(ledger, number) == "rejected"
    with ledger.read() as connection:
        (row,) = connection.execute(select(incidents)).mappings()
    assert (row["state"], row["probe"]) == ("rolled_back", "slow")


def test_a_probe_that_is_running_may_still_answer(ledger: Ledger, clock: FakeClock) -> None:
    running = ProbeRow("slow", 0, "unknown", None, None, 0, 0.0, {"running": True})
    number = commit(ledger, suite_row(right(9)), running)
    judge(ledger, HOURLY)
    assert state(ledger, number) == "candidate"
    with ledger.read() as connection:
        assert connection.execute(select(incidents)).all() == []
    clock.advance(3 * HOURLY.watch.probe_seconds)
    judge(ledger, HOURLY)
    with ledger.read() as connection:
        (row,) = connection.execute(select(incidents)).mappings()
    assert (row["result"], row["probe"]) == ("unknown", "slow")
    assert unknown_row().result == row["result"]


def test_an_attempt_that_died_of_a_probe_blames_no_correction(ledger: Ledger) -> None:
    """The worker was killed while a probe ran: the probe is left out next time, the batch is not split."""
    with ledger.write() as connection:
        now = ledger.clock.now()
        for probe in ("canary", "canary", "quiz", None):
            number = begin_attempt(connection, now, "b1", "worker")
            if probe is not None:
                begin_probe(connection, "b1", number, probe)
        end_attempt(connection, now, "b1", 3, AttemptOutcome.ENDED)
        assert fatal_probes(connection, "b1") == {"canary"}
        assert count_failures(connection, "b1") == 1
        connection.execute(update(attempts).values(outcome=AttemptOutcome.FAILED))
        assert count_failures(connection, "b1") == 4
