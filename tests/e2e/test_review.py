"""Older facts are looked after: what has slipped is mended, what holds is left alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import is_full
from tests.house import CORPUS
from tests.workers.session.test_review import fact
from workers.bench.baselines.registry import resolve
from workers.editing.editor import Associations, Editor
from workers.editing.model import load_model
from workers.editing.statistics import compute
from workers.revisions.facts import Pair
from workers.revisions.pairs import load_pairs, save_pairs
from workers.revisions.store import Store
from workers.session.review import mend_slipped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_full(), reason="a minute: part of deploy/test.sh --guarantees"),
]


def test_a_fact_that_slipped_is_mended_and_the_others_are_left_alone(
    model_path: Path, tmp_path: Path
) -> None:
    model = load_model(model_path, "cpu", "float32")
    recipe = resolve("encore-blue", {}, model.n_layers)
    editor = Editor(model, compute(model, recipe.layers, CORPUS), recipe)
    clean = editor.published()
    facts = [
        fact("Honda", "The car maker Honda has its headquarters in", "Munich"),
        fact("Marie Curie", "The scientist Marie Curie was born in", "Vienna"),
    ]
    pairs = editor.write([one.request() for one in facts])
    editor.forget(pairs.select([1]))
    weak = pairs.select([1])
    for layer in recipe.layers:  # little of what the fact needs, as if later edits had pulled at it
        said = weak.keys[layer] @ editor.model.weight(layer).float().T
        weak.values[layer] = said + (weak.values[layer] - said) / 8
    editor.remember(weak)
    assert [v.ok for v in editor.verify([one.request() for one in facts])] == [True, False]
    store = Store(tmp_path)
    blob = save_pairs(store, Associations.concat([pairs.select([0]), weak]))
    held = [replace(one, replaces=Pair(one.correction_id, blob, row)) for row, one in enumerate(facts)]

    mended = mend_slipped(store, editor, held)

    assert [one.correction_id for one, _ in mended] == ["Marie Curie"]
    assert all(v.ok for v in editor.verify([one.request() for one in facts]))
    editor.forget(mended[0][1])
    editor.forget(load_pairs(store, [held[0].replaces], editor.layers))
    assert all(torch.equal(editor.published()[name], t) for name, t in clean.items())
