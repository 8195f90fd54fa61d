"""The paired tests give known values, keep their level under noise and notice damage soon."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daemon.core.ledger.outcomes import Outcomes, Scale
from daemon.core.paired_tests import Drift, bootstrap_p, mcnemar, mean_of, standardised
from tests.bench.judgement import Quiz, alarms, delay, flips


def losses(lost: int, won: int, same: int = 0) -> list[float]:
    return [1.0] * lost + [-1.0] * won + [0.0] * same


@pytest.mark.parametrize(
    ("lost", "won", "value"),
    [(0, 0, 1.0), (5, 0, 1 / 32), (0, 5, 1.0), (8, 2, 56 / 1024), (10, 0, 1 / 1024), (3, 3, 42 / 64)],
)
def test_mcnemar_is_the_binomial_tail(lost: int, won: int, value: float) -> None:
    assert mcnemar(losses(lost, won, same=400)) == pytest.approx(value)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_knows_both_directions(lost: int, won: int) -> None:
    """P(X ≥ b) + P(X ≥ c) exceeds one by P(X = b), which it counts twice."""
    both = mcnemar(losses(lost, won)) + mcnemar(losses(won, lost))
    middle = math.comb(lost + won, lost) / 2 ** (lost + won)
    assert both == pytest.approx(1 + middle)


def test_mcnemar_keeps_its_level() -> None:
    """Among tests of pure noise, the share of false alarms is at most the level."""
    chance = random.Random(5)
    level, cried = 0.05, 0
    for _ in range(2_000):
        changed = chance.randrange(30)
        lost = sum(chance.random() < 0.5 for _ in range(changed))
        cried += mcnemar(losses(lost, changed - lost)) < level
    assert cried / 2_000 <= level


def test_the_bootstrap_asks_whether_the_loss_is_above_the_budget() -> None:
    chance = random.Random(1)
    noise = [chance.gauss(0.0, 0.1) for _ in range(40)]
    assert bootstrap_p(noise, 0.02) > 0.01
    assert bootstrap_p([one + 0.1 for one in noise], 0.02) < 0.001
    assert bootstrap_p([one + 0.1 for one in noise], 0.3) == 1.0
    assert bootstrap_p([], 0.0) == bootstrap_p([9.0], 0.0) == 1.0
    assert bootstrap_p(noise, 0.0, seed=3) == bootstrap_p(noise, 0.0, seed=3)


def test_a_loss_in_standard_errors_is_clipped_and_steadied() -> None:
    assert standardised([], 0.0, hits=True) == standardised([0.0] * 50, 0.0, hits=False) == 0.0
    assert standardised(losses(300, 0), 0.0, hits=True) == 4.0
    assert standardised([0.2] * 10, 0.05, hits=False) == 4.0, "all paragraphs alike: as sure as can be"
    assert standardised([0.01] * 10, 0.05, hits=False) == -4.0
    one_flipped = standardised(losses(1, 0, same=39), 0.0025, hits=True)
    assert 0 < one_flipped < 0.5, "one item that flips for good must not add up"


def test_the_cumulative_sum_remembers_where_it_began_to_rise() -> None:
    drift = Drift()
    for number, score in enumerate([0.1, 2.0, -9.0, 1.5, 2.5], start=1):
        drift = drift.after(number, score, 0.5)
    assert drift == Drift(3.0, 3)


def test_outcomes_meet_on_the_items_they_share() -> None:
    before = Outcomes.of_hits("facts", [True, True, False], ["a", "b", "c"])
    now = Outcomes.of_hits("facts", [False, True, True], ["b", "c", "z"])
    assert now.losses(before) == [1.0, -1.0]
    assert Outcomes.of_hits("other", [False], ["a"]).losses(before) == []
    fixed = Outcomes(Scale.NATS, "text", (1.0, 2.0))
    assert fixed.losses(Outcomes(Scale.NATS, "text", (0.5, 2.5))) == [0.5, -0.5]
    assert fixed.losses(Outcomes(Scale.NATS, "text", (0.5,))) == []
    assert fixed.losses(Outcomes.of_hits("text", [True, True])) == []


@given(st.lists(st.booleans(), max_size=30))
def test_outcomes_survive_the_ledger(hits: list[bool]) -> None:
    ids = [f"c{number}" for number in range(len(hits))]
    for made in (Outcomes.of_hits("s", hits), Outcomes.of_hits("s", hits, ids)):
        assert Outcomes.from_json(made.to_json()) == made
    nats = Outcomes(Scale.NATS, "s", tuple(round(0.125 * i, 5) for i in range(len(hits))))
    assert Outcomes.from_json(nats.to_json()) == nats
    assert Outcomes.from_json(None) is None


def test_the_mean_of_an_item_over_revisions() -> None:
    assert mean_of([(1.0, 0.0), (0.0, 0.0)]) == [0.5, 0.0]


def test_noise_is_no_incident_and_damage_is_noticed_in_time() -> None:
    """A short version of the table that ``python -m tests.bench.judgement`` prints."""
    torch.set_num_threads(1)
    quiz = Quiz(7)
    assert flips(quiz) > 1, "without noise this shows nothing"
    assert alarms(quiz, 30, seed=7) == 0
    found_after = {drop: delay(quiz, drop, seed=7) for drop in (0.02, 0.05, 0.10)}
    assert all(
        found is not None and found <= limit
        for found, limit in zip(found_after.values(), (5, 2, 1), strict=True)
    ), found_after
