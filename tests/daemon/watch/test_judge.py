"""The judge over a ledger: what becomes live, what an incident, what is rolled back, when it freezes."""

import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy import select

from daemon.core.config.settings import Config
from daemon.core.ledger.chain import get_revision, head, lineage
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.probe_results import insert_probes
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.schema import incidents, judgements, switches
from daemon.core.ledger.switches import resume
from daemon.core.names import DEFAULT_MODEL, ProbeResult, Reaction
from daemon.watch import judge as judge_module
from daemon.watch.judge import judge, react, unjudged
from tests.ledgers import FakeClock, close_by_hand, found, roll_back
from tests.watching import commit, commit_and_judge, right, suite_row, text_row, unknown_row

ITEMS = 100


def config(**watch: object) -> Config:
    return Config(watch=watch)  # type: ignore[arg-type]


def state(ledger: Ledger, number: int) -> str:
    with ledger.read() as connection:
        return str(get_revision(connection, DEFAULT_MODEL, number)["state"])


def head_of(ledger: Ledger) -> tuple[int, int | None]:
    with ledger.read() as connection:
        row = head(connection, DEFAULT_MODEL)
        return row["number"], row["content_of"]


def story(ledger: Ledger) -> list[tuple[int, str, str]]:
    with ledger.read() as connection:
        rows = connection.execute(select(incidents).order_by(incidents.c.id))
        return [(row.revision, row.result, row.state) for row in rows]


def frozen(ledger: Ledger) -> bool:
    with ledger.read() as connection:
        return bool(connection.execute(select(switches.c.is_on)).scalar())


def quiz(wrong: Sequence[int] = (), **more: float) -> object:
    return suite_row(right(ITEMS, wrong), **more)


def learn_the_beginning(ledger: Ledger, watch: Config) -> int:
    """Commit the revisions against whose mean a drift is measured and return the newest."""
    for _ in range(8):
        commit_and_judge(ledger, watch, suite_row(right(500)))
    return commit_and_judge(ledger, watch, suite_row(right(500)))


def test_a_step_that_no_floor_shows_is_noticed_and_taken_back(ledger: Ledger) -> None:
    for _ in range(2):
        commit_and_judge(ledger, config(), quiz(range(5), floor=0.5))
    commit_and_judge(ledger, config(), quiz(range(25), floor=0.5))
    assert story(ledger) == [(3, "degraded", "rolled_back")]
    assert head_of(ledger) == (4, 2)
    with ledger.read() as connection:
        row = connection.execute(select(judgements).where(judgements.c.revision == 3)).mappings().one()
    assert row["reference"] == 2
    assert row["loss"] == pytest.approx(0.2)
    assert row["p_value"] == pytest.approx(2**-20)


def test_a_few_items_either_way_are_noise(ledger: Ledger) -> None:
    for number in range(6):
        commit_and_judge(ledger, config(), quiz(range(number, number + 5)))
    assert story(ledger) == []
    assert state(ledger, 6) == "live"


def test_a_significant_loss_within_the_budget_is_none(ledger: Ledger) -> None:
    commit_and_judge(ledger, config(), text_row([1.0] * 20))
    commit_and_judge(ledger, config(step_budget_nats=0.02), text_row([1.015] * 20))
    assert story(ledger) == []
    commit_and_judge(ledger, config(step_budget_nats=0.02), text_row([1.2] * 20))
    assert story(ledger) == [(3, "degraded", "rolled_back")]


def test_a_drift_leads_back_to_where_it_began(ledger: Ledger) -> None:
    """Two items fewer each time: no step shows it, and the last good revision is not the one before."""
    watch = config(significance=1e-6)
    number = learn_the_beginning(ledger, watch)
    while not story(ledger):
        number += 1
        commit_and_judge(ledger, watch, suite_row(right(500, range(2 * (number - 9)))))
        assert number < 25
    ((_, _, outcome),) = story(ledger)
    assert outcome == "rolled_back"
    back_to = head_of(ledger)[1]
    assert back_to in {9, 10}, "where the sum began to rise"


def test_a_drift_from_too_long_ago_freezes_instead(ledger: Ledger) -> None:
    watch = config(significance=1e-6, rollback_reach=1)
    learn_the_beginning(ledger, watch)
    for number in range(1, 12):
        commit_and_judge(ledger, watch, suite_row(right(500, range(2 * number))))
    assert story(ledger)[0][2] == "frozen"
    assert frozen(ledger)


def test_settling_a_drift_by_hand_accepts_what_is(ledger: Ledger) -> None:
    watch = config(significance=1e-6, auto_rollback=False)
    learn_the_beginning(ledger, watch)
    while not story(ledger):
        commit_and_judge(ledger, watch, suite_row(right(500, range(10))))
    close_by_hand(ledger, 1, "ann", "worth it")
    for _ in range(12):
        commit_and_judge(ledger, watch, suite_row(right(500, range(10))))
    assert len(story(ledger)) == 1


def test_unknown_is_never_ok_and_never_a_rollback(ledger: Ledger) -> None:
    number = commit_and_judge(ledger, config(), quiz(), unknown_row("canary"))
    assert state(ledger, number) == "candidate"
    assert story(ledger) == [(1, "unknown", "open")]
    assert head_of(ledger) == (1, None)
    ledger.record_probes(DEFAULT_MODEL, number, [suite_row(right(9), name="canary")])
    judge(ledger, config())
    assert state(ledger, number) == "live"
    assert story(ledger) == [(1, "unknown", "closed")]


def test_unknown_then_degraded_is_an_incident_to_act_on(ledger: Ledger) -> None:
    number = commit_and_judge(ledger, config(), quiz(), unknown_row("canary"))
    ledger.record_probes(DEFAULT_MODEL, number, [suite_row([False] * 9, floor=0.5, name="canary")])
    judge(ledger, config())
    assert state(ledger, number) == "rejected"
    assert story(ledger) == [(1, "degraded", "rolled_back")]


def test_an_edit_that_came_between_does_not_hide_the_damage(ledger: Ledger) -> None:
    """The damaged revision is no longer head when it is judged, and what came after has it too."""
    commit_and_judge(ledger, config(), quiz())
    commit(ledger, quiz(range(90), floor=0.5))
    commit(ledger, unknown_row())
    judge(ledger, config())
    assert head_of(ledger) == (4, 1)


def test_twice_within_the_cooldown_freezes(ledger: Ledger, clock: FakeClock) -> None:
    watch = config(cooldown_seconds=60)
    commit_and_judge(ledger, watch, quiz())
    commit_and_judge(ledger, watch, quiz(range(90), floor=0.5))
    clock.advance(30)
    commit_and_judge(ledger, watch, quiz(range(90), floor=0.5))
    assert [outcome for _, _, outcome in story(ledger)] == ["rolled_back", "frozen"]
    assert frozen(ledger)
    resume(ledger, model=DEFAULT_MODEL, feed=None, who="ann", reason="looked")
    clock.advance(60)
    commit_and_judge(ledger, watch, quiz(range(90), floor=0.5))
    assert [outcome for _, _, outcome in story(ledger)][-1] == "rolled_back"
    assert not frozen(ledger)


def test_after_an_incident_a_score_must_be_clear_of_its_bound(ledger: Ledger, clock: FakeClock) -> None:
    watch = config(cooldown_seconds=60, hysteresis=0.02, significance=1e-9, drift_limit=1e9)
    commit_and_judge(ledger, watch, quiz(floor=0.9))
    commit_and_judge(ledger, watch, quiz(range(20), floor=0.9))
    assert head_of(ledger) == (3, 1)
    commit_and_judge(ledger, watch, quiz(range(9), floor=0.9))
    assert state(ledger, 4) == "rejected", "0.91 is above the floor, but not by 0.02"
    clock.advance(61)
    resume(ledger, model=DEFAULT_MODEL, feed=None, who="ann", reason="looked")
    roll_back(ledger, 1, "ann", "clean")
    number = commit_and_judge(ledger, watch, quiz(range(9), floor=0.9))
    assert state(ledger, number) == "live"


def test_what_held_before_the_incident_still_holds_after_it(ledger: Ledger) -> None:
    """A model that always was near its floor is not frozen for it."""
    watch = config(hysteresis=0.02, significance=1e-9)
    commit_and_judge(ledger, watch, quiz(range(9), floor=0.9))
    commit_and_judge(ledger, watch, quiz(range(20), floor=0.9))
    number = commit_and_judge(ledger, watch, quiz(range(9), floor=0.9))
    assert state(ledger, number) == "live"


def test_of_many_reactions_at_once_one_acts(ledger: Ledger) -> None:
    quiet = config(auto_rollback=False)
    commit_and_judge(ledger, quiet, quiz())
    commit_and_judge(ledger, quiet, quiz(range(90), floor=0.5))
    done: list[Reaction] = []
    threads = [threading.Thread(target=lambda: done.append(react(ledger, quiet, "alerts"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted([Reaction.ROLLED_BACK] + [Reaction.NOTHING] * 7)
    assert head_of(ledger) == (3, 1)
    assert not frozen(ledger)


def test_the_last_good_revision_is_a_forebear(ledger: Ledger) -> None:
    """What a rollback left behind is no reference for what comes after it."""
    for _ in range(3):
        commit_and_judge(ledger, config(), quiz())
    roll_back(ledger, 1, "ann", "wrong source")
    number = commit_and_judge(ledger, config(), quiz())
    with ledger.read() as connection:
        assert lineage(connection, DEFAULT_MODEL, number) == [1, 0]
        query = select(judgements.c.reference).where(judgements.c.revision == number)
        assert connection.execute(query).scalar() == 1


def survey(ledger: Ledger, number: int, *rows: object) -> None:
    ledger.record_probes(DEFAULT_MODEL, number, rows)  # type: ignore[arg-type]


def test_a_survey_that_is_newer_does_not_hide_a_revision_from_the_judge(ledger: Ledger) -> None:
    """The survey of revision 1 ends after revision 2 is committed, and is judged with it or before it."""
    commit_and_judge(ledger, config(), quiz())
    commit(ledger, quiz(range(90), floor=0.5))
    survey(ledger, 1, suite_row(right(9), name="canary"), suite_row(right(9), name="all_probes"))
    judge(ledger, config())
    assert story(ledger) == [(2, "degraded", "rolled_back")]
    assert head_of(ledger) == (3, 1)


def test_a_survey_that_was_judged_first_does_not_hide_one_either(ledger: Ledger) -> None:
    commit_and_judge(ledger, config(), quiz())
    commit(ledger, quiz(range(90), floor=0.5))
    survey(ledger, 1, suite_row(right(9), name="canary"))
    with ledger.read() as connection:
        assert unjudged(connection, DEFAULT_MODEL) == [1, 2]
    judge_only(ledger, 1)
    with ledger.read() as connection:
        assert unjudged(connection, DEFAULT_MODEL) == [2]


def judge_only(ledger: Ledger, number: int) -> None:
    """What a judge leaves that dies after its first revision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("daemon.watch.judge.unjudged", lambda *_: [number])
        judge(ledger, config(auto_rollback=False))


def test_the_measurements_of_another_model_hide_nothing(ledger: Ledger) -> None:
    found(ledger, "other")
    with ledger.read() as connection:
        assert unjudged(connection, "other") == []
    commit(ledger, quiz(range(90), floor=0.5))
    ledger.record_probes("other", 0, [suite_row(right(ITEMS))])
    other = Config(model={"name": "other"})  # type: ignore[arg-type]
    judge(ledger, other)
    judge(ledger, config())
    assert story(ledger) == [(1, "degraded", "rolled_back")]


def test_a_revision_that_was_taken_back_is_judged_too_and_moves_nothing(ledger: Ledger) -> None:
    commit_and_judge(ledger, config(), quiz())
    commit(ledger, quiz(range(90), floor=0.5))
    roll_back(ledger, 1, "ann", "a doubt")
    judge(ledger, config())
    assert story(ledger) == [(2, "degraded", "closed")]
    assert head_of(ledger) == (3, 1)
    with ledger.read() as connection:
        assert unjudged(connection, DEFAULT_MODEL) == []
        assert get_revision(connection, DEFAULT_MODEL, 2)["state_before"] == "rejected"


def test_an_old_look_does_not_replace_a_newer_judgement(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that was stopped between look and verdict wakes up after another one has judged."""
    number = commit(ledger, quiz())
    true_assess = judge_module.assess

    def slow(*arguments: object) -> object:
        verdicts = true_assess(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(judge_module, "assess", true_assess)
        survey(ledger, number, quiz(range(90), floor=0.5))
        judge(ledger, config())
        return verdicts

    monkeypatch.setattr(judge_module, "assess", slow)
    judge(ledger, config())
    assert state(ledger, number) == "rejected"
    assert story(ledger) == [(1, "degraded", "rolled_back")]
    with ledger.read() as connection:
        assert connection.execute(select(judgements.c.result)).scalars().all() == ["degraded"]


def test_a_degraded_revision_that_came_back_is_accused_again_by_a_new_measurement(
    ledger: Ledger, clock: FakeClock
) -> None:
    watch = config(cooldown_seconds=60)
    commit_and_judge(ledger, watch, quiz())
    commit_and_judge(ledger, watch, quiz(range(90), floor=0.5))
    roll_back(ledger, 2, "ann", "I insist")
    clock.advance(61)
    judge(ledger, watch)
    assert head_of(ledger) == (4, 2), "the operator's word holds until there is new evidence"
    survey(ledger, 2, quiz(range(90), floor=0.5))
    judge(ledger, watch)
    assert head_of(ledger) == (5, 1)


def test_no_rollback_goes_to_the_content_that_is_accused(ledger: Ledger) -> None:
    """A survey finds a rollback's content degraded, which an older revision holds as well."""
    watch = config(cooldown_seconds=0)
    for _ in range(3):
        commit_and_judge(ledger, watch, quiz())
    roll_back(ledger, 2, "ann", "a doubt")
    commit_and_judge(ledger, watch, quiz())
    survey(ledger, 4, quiz(range(90), floor=0.5))
    judge(ledger, watch)
    assert head_of(ledger) == (6, 1)


def test_a_survey_makes_only_its_forebears_live(ledger: Ledger) -> None:
    watch = config(full_before_live=True, auto_rollback=False)
    commit_and_judge(ledger, watch, quiz())
    commit_and_judge(ledger, watch, quiz())
    roll_back(ledger, 1, "ann", "a doubt")
    survey(ledger, 2, quiz(), suite_row(right(9), name="all_probes"))
    judge(ledger, watch)
    assert [state(ledger, number) for number in (1, 2)] == ["live", "rejected"]


def test_a_probe_whose_worker_had_a_clock_far_ahead_is_judged_all_the_same(
    ledger: Ledger, clock: FakeClock
) -> None:
    judge(ledger, config())
    number = commit(ledger, quiz(range(90), floor=0.5))
    running = ProbeRow("canary", 1, ProbeResult.UNKNOWN, None, 0.5, 0, 0.0, {"running": True})
    with ledger.write() as connection:
        insert_probes(connection, clock.now() + timedelta(hours=2), DEFAULT_MODEL, number, [running])
    judge(ledger, config())
    assert head_of(ledger) == (2, 0)
