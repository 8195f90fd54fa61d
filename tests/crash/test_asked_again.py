"""What is committed was asked on the very weights that are published, whatever was taken out on the way."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from daemon.core.ledger.chain import active_tenures, head
from daemon.core.ledger.schema import corrections, probe_results
from tests.crash.life import Life
from tests.crash.test_known import teach
from tests.ledgers import held
from tests.toy import D_IN, D_OUT, ToyEditor, drawn, prompt_of, said
from workers.editing.editor import Associations, Reading
from workers.editing.prompts import EditRequest
from workers.revisions.loading import load_tensors
from workers.session.session import Session

OBJECTS = {f"{kind} {number}": f"City {40 + number}" for kind in ("Land", "Unland") for number in range(8)}
"""The capital of each country: those that begin with Un are never learned."""


class Leaning(ToyEditor):
    """Facts of ``props`` give their answer only while the pair of another fact is in the weights.

    With ``mends`` a fact that is mended stands by itself.
    """

    def __init__(self, props: dict[str, str] | None = None, *, mends: bool = False) -> None:
        super().__init__()
        self.props, self.mends = props or {}, mends
        self.asked: list[tuple[set[str], dict[str, torch.Tensor]]] = []

    def write_pairs(self, requests: Sequence[EditRequest]) -> Associations:
        written = Associations([request.id for request in requests], {}, {})
        for layer in self.layers:
            pairs = [self._pair(layer, request) for request in requests]
            keys, values = (torch.stack(part) for part in zip(*pairs, strict=True))
            self.write_layer(written, layer, keys, values)
        return written

    def _pair(self, layer: int, request: EditRequest) -> tuple[torch.Tensor, torch.Tensor]:
        key = drawn(f"{layer}:{request.prompt}", D_IN)
        value = _value(request.subject, request.target)
        prop = self.props.get(request.subject)
        if prop is None or not request.prompt.startswith("The capital"):
            return key, value
        return key + drawn(f"{layer}:{prompt_of(prop)}", D_IN), value + _value(prop, OBJECTS[prop])

    def mend(self, requests: Sequence[EditRequest], written: Associations) -> Associations:
        failed = [row for row, reading in enumerate(super().verify(requests)) if not reading.ok]
        if not self.mends or not failed:
            return written
        self.forget(written.select(failed))
        fresh = ToyEditor.write_pairs(self, [requests[row] for row in failed])
        for layer in self.layers:
            written.keys[layer][failed] = fresh.keys[layer]
            written.values[layer][failed] = fresh.values[layer]
        return written

    def verify(self, requests: Sequence[EditRequest]) -> list[Reading]:
        self.asked.append(({request.id for request in requests}, self.published()))
        return super().verify(requests)


def _value(subject: str, answer: str) -> torch.Tensor:
    return (-1.0 if subject.startswith("Un") else 1.0) * drawn(answer, D_OUT)


class Leaned(Life):
    """An installation whose editor is ``editor``."""

    def __init__(self, folder: Path, editor: Leaning) -> None:
        super().__init__(folder)
        self.editor = editor
        self.found()
        self._session = Session(self.ledger, self.store, editor, self.config)

    def learn(self, *subjects: str, day: int = 1) -> None:
        teach(self, *(said(one, OBJECTS[one], day) for one in subjects))

    def check_commit(self) -> None:
        """Head answers each fact that it holds, and all of the last batch were asked on these tensors."""
        with self.ledger.read() as connection:
            revision = head(connection, "default")
            rows = active_tenures(connection, "default", revision["number"])
            query = select(corrections.c.id, corrections.c.prompt, corrections.c.object)
            stated = {row.id: row for row in connection.execute(query)}
        published = load_tensors(self.store, revision["tensors"])
        fresh = ToyEditor()
        fresh.show(published)
        new = {row["correction_id"] for row in rows if row["since"] == revision["number"] and row["blob"]}
        for row in rows:
            one = stated[row["correction_id"]]
            if row["blob"] is not None or (row["since"] == revision["number"] and one.object is not None):
                assert fresh.model.answer(one.prompt) == one.object, one
        same = [ids for ids, weights in self.editor.asked if _same(weights, published)]
        assert not new or any(new <= ids for ids in same), "committed without being asked"


def _same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(some[name], others[name]) for name in others)


Make = Callable[..., Leaned]


@pytest.fixture
def leaned(tmp_path: Path) -> Make:
    def make(props: dict[str, str] | None = None, *, mends: bool = False) -> Leaned:
        return Leaned(tmp_path, Leaning(props, mends=mends))

    return make


def efficacy(life: Life) -> float:
    with life.ledger.read() as connection:
        query = select(probe_results.c.score).where(probe_results.c.probe == "efficacy")
        return float(connection.execute(query.order_by(probe_results.c.id.desc())).scalars().first() or 0)


def test_what_fails_when_others_are_refused_is_dropped(leaned: Make) -> None:
    """A chain: the second leans on what is refused, the third on the second."""
    life = leaned({"Land 2": "Unland 1", "Land 3": "Land 2"})
    life.learn("Land 0", "Unland 1", "Land 2", "Land 3")
    assert held(life.ledger).keys() == {"Land 0"}
    assert sorted(life.states()) == ["applied", *["quarantined"] * 3]
    assert efficacy(life) == 1.0
    life.check_commit()


def test_it_is_mended_where_it_can_be(leaned: Make) -> None:
    life = leaned({"Land 2": "Unland 1", "Land 3": "Land 2"}, mends=True)
    life.learn("Land 0", "Unland 1", "Land 2", "Land 3")
    assert held(life.ledger).keys() == {"Land 0", "Land 2", "Land 3"}
    assert sorted(life.states()) == [*["applied"] * 3, "quarantined"]
    life.check_commit()


def test_six_refusals_beside_an_operators_retraction(leaned: Make) -> None:
    """As it was seen: of seven facts that stayed two did not answer, and the retraction went with them."""
    life = leaned({"Land 2": "Unland 1", "Land 3": "Unland 4"}, mends=True)
    life.learn("Land 7")
    refused = [f"Unland {number}" for number in range(1, 7)]
    news = [said(one, OBJECTS[one], 2) for one in (*refused, *(f"Land {number}" for number in range(7)))]
    life.config.edit.__dict__["batch_size"] = 32
    teach(life, *news, said("Land 7", None, 2))
    assert held(life.ledger).keys() == {f"Land {number}" for number in range(7)}
    assert efficacy(life) == 1.0
    life.check_commit()


def test_what_the_review_disturbs_is_asked_again(leaned: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The review writes an older fact anew, and with it goes what the new one leans on."""
    life = leaned({"Land 2": "Land 1"})
    life.learn("Land 1")

    def disturbed(_store: object, editor: Leaning, facts: Sequence[object]) -> list[object]:
        assert facts
        editor.forget(editor.write([EditRequest("x", "Land 2", prompt_of("Land 2"), "City 3")]))
        one = EditRequest("y", "Land 5", prompt_of("Land 2"), "City 4")
        editor.write([one])
        return []

    monkeypatch.setattr("workers.session.session.mend_slipped", disturbed)
    life.learn("Land 0", "Land 2", day=2)
    assert held(life.ledger).keys() == {"Land 0", "Land 1"}
    assert efficacy(life) == 1.0


def test_nothing_is_asked_twice_where_nothing_changed(leaned: Make) -> None:
    life = leaned()
    life.learn("Land 0", "Land 1")
    writing = life.editor.asked[:]
    assert [len(ids) for ids, _ in writing] == [2, 2, 2], "known before, right after, and the efficacy probe"


def test_an_older_fact_that_joined_gets_its_pair_back_and_is_asked_too(leaned: Make) -> None:
    life = leaned()
    life.learn("Land 0")
    life.editor.props = {"Land 0": "Unland 1"}
    seat = said("Land 0", "City 9", 2, prompt="The seat of Land 0 is", relation="seat")
    teach(life, seat, said("Unland 1", OBJECTS["Unland 1"], 2))
    assert sorted(life.states()) == ["applied", "applied", "quarantined"]
    life.check_commit()


@settings(
    max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    st.lists(st.tuples(st.sampled_from(["Land", "Unland"]), st.integers(0, 7)), unique=True, min_size=1),
    st.dictionaries(st.integers(0, 7), st.tuples(st.sampled_from(["Land", "Unland"]), st.integers(0, 7))),
    st.sets(st.integers(0, 7), max_size=3),
    st.booleans(),
)
def test_whatever_leans_on_whatever(
    tmp_path_factory: pytest.TempPathFactory,
    news: list[tuple[str, int]],
    leans: dict[int, tuple[str, int]],
    older: set[int],
    mends: bool,
) -> None:
    props = {f"Land {one}": f"{kind} {other}" for one, (kind, other) in leans.items() if one != other}
    life = Leaned(tmp_path_factory.mktemp("leaned"), Leaning(mends=mends))
    if older:
        life.learn(*(f"Land {number}" for number in sorted(older)))
    life.editor.props = props
    life.config.edit.__dict__["batch_size"] = 32
    gone = [said(f"Land {number}", None, 2) for number in sorted(older)[:1]]
    batch = [said(f"{kind} {number}", OBJECTS[f"{kind} {number}"], 2 + number) for kind, number in news]
    seats = [
        said(f"Land {number}", f"City {number}", 3, prompt=f"The seat of Land {number} is", relation="seat")
        for number in sorted(older)[1:]
    ]
    known = [
        said(f"Land {number}", OBJECTS[f"Land {number}"], 3, relation="twin") for number in sorted(older)[:2]
    ]
    asked = len(life.editor.asked)
    teach(life, *batch, *seats, *known, *gone)
    assert len(life.editor.asked) - asked < 3 * (len(batch) + len(seats)) + 12
    life.check_commit()
    life.close()
