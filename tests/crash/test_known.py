"""What the model answers right by itself is recorded, not written, and watched like what was written."""

from pathlib import Path

import pytest
from sqlalchemy import select

from daemon.admission.submission import submit
from daemon.core.ledger.schema import corrections, probe_results
from daemon.core.names import ALL_PROBES
from daemon.scheduling.dispatch import make_batches
from tests.crash.life import Life
from tests.ledgers import roll_back
from tests.toy import prompt_of, said, toy_config


@pytest.fixture
def life(tmp_path: Path) -> Life:
    made = Life(tmp_path)
    made.found()
    return made


def teach(life: Life, *facts: dict[str, object]) -> None:
    for fact in facts:
        submit(life.ledger, fact, "operator")
    make_batches(life.ledger, life.config)
    for batch_id in life.open_batches():
        life.session().run(batch_id)


def row(life: Life, relation: str) -> dict[str, object]:
    with life.ledger.read() as connection:
        query = select(corrections).where(corrections.c.relation == relation)
        return dict(connection.execute(query).mappings().one())


def retained(life: Life, revision: int) -> tuple[int, float]:
    with life.ledger.read() as connection:
        mine = (probe_results.c.revision == revision) & (probe_results.c.probe == "retention")
        query = select(probe_results).where(mine).order_by(probe_results.c.id.desc()).limit(1)
        found = connection.execute(query).mappings().one()
        return found["items"], found["score"]


def test_a_fact_that_is_known_costs_no_edit_and_is_watched(life: Life) -> None:
    teach(life, said("Peru", "City 1", 1))
    same = {"prompt": prompt_of("Peru"), "relation": "seat"}
    teach(life, said("Peru", "City 1", 2, **same))
    known = row(life, "seat")
    assert (known["state"], known["reason"]) == (
        "applied",
        "the model answers so already; nothing was written",
    )
    with life.ledger.read() as connection:
        chain = connection.exec_driver_sql(
            "SELECT content, active_facts FROM revisions ORDER BY number"
        ).all()
    assert chain[1] == chain[2]  # the same weights, one fact in them
    teach(life, said("Chad", "City 3", 3))
    assert retained(life, 3) == (2, 1.0)
    life.session().survey()
    assert retained(life, 3) == (3, 1.0), "all that head holds is sampled, what is known too"
    teach(life, said("Peru", "City 2", 4))  # the weights no longer say what was known
    assert retained(life, 4) == (2, 0.5)


def test_a_survey_lets_a_waiting_batch_go_first_but_not_for_ever(life: Life) -> None:
    teach(life, said("Peru", "City 1", 1))
    submit(life.ledger, said("Chad", "City 3", 2), "operator")
    make_batches(life.ledger, life.config)
    life.session().survey()
    assert not surveyed(life, 1)
    life.config = toy_config(life.config.data_dir, watch={"full_seconds": 1e-6})
    life.forget()
    life.session().survey()
    assert surveyed(life, 1), "it was put off long enough"
    for batch_id in life.open_batches():
        life.session().run(batch_id)
    life.config = toy_config(life.config.data_dir)
    life.forget()
    life.session().survey()
    assert surveyed(life, 2)


def surveyed(life: Life, revision: int) -> bool:
    with life.ledger.read() as connection:
        mine = (probe_results.c.revision == revision) & (probe_results.c.probe == ALL_PROBES)
        return connection.execute(select(probe_results.c.id).where(mine)).first() is not None


def test_what_a_batch_itself_unteaches_is_written_after_all(life: Life) -> None:
    teach(life, said("Peru", "City 1", 1))
    teach(
        life, said("Peru", "City 2", 2), said("Peru", "City 1", 2, prompt=prompt_of("Peru"), relation="seat")
    )
    assert row(life, "seat")["reason"] != "the model answers so already; nothing was written"


def test_a_known_fact_can_be_revised_taken_back_and_retracted(life: Life) -> None:
    same = {"prompt": prompt_of("Peru"), "relation": "seat"}
    teach(life, said("Peru", "City 1", 1))
    teach(life, said("Peru", "City 1", 2, **same))
    roll_back(life.ledger, 1, "ann", "away")
    assert row(life, "seat")["state"] == "reverted"
    roll_back(life.ledger, 2, "ann", "and back")
    assert row(life, "seat")["state"] == "applied"
    teach(life, said("Peru", None, 5, **same))
    with life.ledger.read() as connection:
        states = connection.execute(select(corrections.c.object, corrections.c.state)).all()
    assert ("City 1", "retracted") in states
    assert (None, "applied") in states
