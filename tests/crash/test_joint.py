"""Facts about one subject share a key: a write or a retraction seeks the older ones anew, nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sqlalchemy import select

from daemon.core.ledger.schema import tenures
from tests.crash.life import Life
from tests.crash.test_known import teach
from tests.toy import D_IN, UNKNOWN, ToyEditor, drawn, prompt_of, said, toy_config
from workers.editing.editor import Associations, Reading
from workers.editing.prompts import EditRequest


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


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Return the prompts of every write, with an editor that never learns a seat."""
    verify, write = ToyEditor.verify, ToyEditor.write_pairs
    seen: list[set[str]] = []

    def unlearned(editor: ToyEditor, requests: Sequence[EditRequest]) -> list[Reading]:
        verdicts = verify(editor, requests)
        return [
            replace(v, ok=v.ok and "seat" not in r.prompt) for r, v in zip(requests, verdicts, strict=True)
        ]

    def noted(editor: ToyEditor, requests: Sequence[EditRequest]) -> Associations:
        seen.append({request.prompt for request in requests})
        return write(editor, requests)

    monkeypatch.setattr(ToyEditor, "verify", unlearned)
    monkeypatch.setattr(ToyEditor, "write_pairs", noted)
    return seen


@pytest.mark.parametrize("others", [[], [said("Chad", "City 2", 2)]], ids=["alone", "beside another"])
def test_a_new_fact_that_is_refused_leaves_the_older_one_as_it_was(
    life: Life, writes: list[set[str]], others: list[dict[str, object]]
) -> None:
    teach(life, said("Peru", "City 1", 1))
    prompt = prompt_of("Peru")
    before = life.session().editor.model._weights[0] @ drawn(f"0:{prompt}", D_IN).float()
    teach(life, seat(2), *others)
    assert pairs_of(life, "capital") == [(1, None)]
    after = life.session().editor.model._weights[0] @ drawn(f"0:{prompt}", D_IN).float()
    torch.testing.assert_close(after, before, atol=1e-3 if others else 0.0, rtol=0.0)
    assert len(writes) == 2, "nothing is sought again for an old pair"


def test_what_a_refused_fact_shared_goes_with_it(life: Life, writes: list[set[str]]) -> None:
    teach(life, said("Peru", "City 1", 1))
    river = said("Peru", "City 3", 2, prompt="The river of Peru is", relation="river")
    teach(life, seat(2), river, said("Chad", "City 2", 2))
    capital = prompt_of("Peru")
    together, again = writes[1:]
    assert together == {capital, "The seat of Peru is", river["prompt"], prompt_of("Chad")}
    assert again == {capital, river["prompt"]}, "another subject's fact shares nothing"
    answers = life.session().editor.model.greedy([capital, river["prompt"], "The seat of Peru is"], 8)
    assert answers == ["City 1", "City 3", UNKNOWN]
    assert pairs_of(life, "capital") == [(1, 2), (2, None)]
    life.check_head()
