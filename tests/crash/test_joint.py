"""Facts about one subject share a key: a write or a retraction seeks the older ones anew, nothing else."""

from pathlib import Path

import pytest
from sqlalchemy import select

from daemon.core.schema import tenures
from tests.crash.life import Life
from tests.crash.test_known import teach
from tests.toy import UNKNOWN, ToyEditor, prompt_of, said, toy_config


@pytest.fixture
def life(tmp_path: Path) -> Life:
    made = Life(tmp_path)
    made.found()
    return made


def seat(day: int, answer: str | None = "City 9") -> dict[str, object]:
    return said("Peru", answer, day, prompt="The seat of Peru is", relation="seat")


def pairs_of(life: Life, relation: str) -> list[tuple[int, int | None]]:
    """From which revision to which each pair of Peru's fact was held."""
    with life.ledger.read() as connection:
        rows = connection.exec_driver_sql(
            "SELECT t.since, t.until FROM tenures t JOIN corrections c ON c.id = t.correction_id"
            " WHERE c.subject = 'Peru' AND c.object IS NOT NULL AND c.relation = ? ORDER BY t.id",
            (relation,),
        )
        return [(row[0], row[1]) for row in rows]


def all_pairs(life: Life) -> int:
    with life.ledger.read() as connection:
        return len(connection.execute(select(tenures)).all())


def test_an_older_fact_of_the_subject_is_sought_again_with_the_new_one(life: Life) -> None:
    teach(life, said("Peru", "City 1", 1), said("Chad", "City 2", 1))
    teach(life, seat(2))
    assert pairs_of(life, "capital") == [(1, 2), (2, None)]
    assert all_pairs(life) == 4, "another subject's fact keeps its pair"
    life.check_head()


def test_it_is_sought_again_without_what_is_retracted(life: Life) -> None:
    teach(life, said("Peru", "City 1", 1))
    teach(life, seat(2))
    teach(life, seat(3, None))
    assert pairs_of(life, "capital") == [(1, 2), (2, 3), (3, None)]
    capital, gone = life.session().editor.model.greedy([prompt_of("Peru"), "The seat of Peru is"], 8)
    assert (capital, gone) == ("City 1", UNKNOWN)


def test_none_is_where_that_is_turned_off(life: Life) -> None:
    life.config = toy_config(life.config.data_dir, edit={"joint": 0})
    teach(life, said("Peru", "City 1", 1))
    teach(life, seat(2))
    assert pairs_of(life, "capital") == [(1, None)]


def test_a_new_fact_that_is_refused_leaves_the_older_one_as_it_was(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(life, said("Peru", "City 1", 1))
    right = ToyEditor.verify

    def unlearned(editor: ToyEditor, requests: list[object]) -> list[object]:
        verdicts = right(editor, requests)  # type: ignore[arg-type]
        return [
            type(v)(v.ok and "seat" not in r.prompt, v.answer)  # type: ignore[attr-defined]
            for r, v in zip(requests, verdicts, strict=True)
        ]

    monkeypatch.setattr(ToyEditor, "verify", unlearned)
    before = {layer: weight.clone() for layer, weight in life.session().editor.model._weights.items()}
    teach(life, seat(2))
    assert pairs_of(life, "capital") == [(1, None)]
    after = life.session().editor.model._weights
    assert all((before[layer] == after[layer]).all() for layer in before)
