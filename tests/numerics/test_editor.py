"""The editor on a tiny model: what is forgotten was never there, and errors change nothing."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from daemon.core.errors import EditError
from tests.numerics.conftest import RECIPE
from tests.numerics.models import taught
from workers.editing import editor as module
from workers.editing.editor import Associations, Editor, Reading
from workers.editing.memory import Memory
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest, longer
from workers.editing.statistics import Statistics
from workers.editing.targets import find_keys

Tensors = Mapping[str, torch.Tensor]


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def held(editor: Editor) -> Tensors:
    """What the memories hold in fp64, before it is rounded to the grid and published."""
    return {str(layer): memory.weight.clone() for layer, memory in editor._memories.items()}


def near(one: Tensors, other: Tensors) -> bool:
    """Compare to nine digits, for a published entry between two points of the grid may fall to either."""
    return all(float((one[n] - other[n]).norm()) <= 1e-9 * float(other[n].norm()) for n in other)


def on_show(editor: Editor) -> bool:
    """Whether the model has what the memories hold, to half a step of the grid."""
    for layer, memory in editor._memories.items():
        step = 2.0 ** (memory.base.square().mean().sqrt().log2().floor() - 16)
        if not (editor.model.weight(layer) - memory.weight).abs().max() <= step / 2 * (1 + 1e-6):
            return False
    return True


def test_published_tensors_are_those_of_the_state_dict(editor: Editor, changes: list[EditRequest]) -> None:
    editor.write(changes[:1])
    state = editor.model.lm.state_dict()
    published = editor.published()
    assert set(published) == {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)}
    assert all(torch.equal(tensor, state[name]) for name, tensor in published.items())


def test_forgetting_one_is_never_having_written_it(editor: Editor, changes: list[EditRequest]) -> None:
    written = editor.write(changes)
    editor.forget(written.select([1]))
    forgotten = held(editor)
    assert on_show(editor)
    others = [0, 2, 3, 4, 5]
    editor.restore(written.select(others))
    assert near(forgotten, held(editor))
    assert on_show(editor)


def test_forgetting_all_in_any_order_is_the_model_bit_for_bit(
    editor: Editor, changes: list[EditRequest]
) -> None:
    clean = editor.published()
    written = Associations.concat([editor.write(changes[:2]), editor.write(changes[2:])])
    assert not same(editor.published(), clean)
    for row in (2, 0, 5, 3, 1, 4):
        editor.forget(written.select([row]))
    assert same(editor.published(), clean)


def test_a_cold_start_finds_what_was_there(
    editor: Editor, statistics: Statistics, changes: list[EditRequest]
) -> None:
    """Weights are a function of W0, the statistics and the active pairs, whatever happened before."""
    clean = editor.published()
    written = Associations.concat([editor.write(changes[:1]), editor.write(changes[1:])])
    editor.forget(written.select([0]))
    editor.show(clean)
    cold = Editor(editor.model, statistics, editor.recipe)
    cold.restore(written.select([1, 2, 3, 4, 5]))
    assert near(held(cold), held(editor))
    assert on_show(cold)


def test_a_revised_fact_forgets_before_it_writes(editor: Editor, changes: list[EditRequest]) -> None:
    """Only the newest pair is held: after any number of turns the norm is what one edit makes it."""
    revised = changes[1]
    others = [EditRequest("x", revised.subject, revised.prompt, one.target) for one in changes[2:5]]
    alone = editor.delta_norms()
    for fact in (*others, revised):
        written = editor.write([fact])
        alone = editor.delta_norms()
        editor.forget(written)
    for fact in (*others, revised, *others, revised):
        written = editor.write([fact])
        after = editor.delta_norms()
        editor.forget(written)
    for layer in (0, 1):
        assert after[layer][1] == pytest.approx(alone[layer][1], rel=1e-6)


def test_what_is_remembered_is_what_was_forgotten(editor: Editor, changes: list[EditRequest]) -> None:
    written = editor.write(changes)
    before = held(editor)
    editor.forget(written.select([2]))
    assert not near(held(editor), before)
    editor.remember(written.select([2]))
    assert near(held(editor), before)
    assert on_show(editor)


def test_stored_pairs_are_fp32_and_small(editor: Editor, changes: list[EditRequest]) -> None:
    written = editor.write(changes)
    assert written.ids == [change.id for change in changes]
    for layer in (0, 1):
        assert written.keys[layer].shape == (6, 48)
        assert written.values[layer].shape == (6, 32)
        assert {written.keys[layer].dtype, written.values[layer].dtype} == {torch.float32}


@pytest.mark.parametrize("error", [EditError("no"), RuntimeError("cuda"), KeyboardInterrupt()])
def test_an_error_between_layers_leaves_nothing_behind(
    editor: Editor, monkeypatch: pytest.MonkeyPatch, error: BaseException, changes: list[EditRequest]
) -> None:
    editor.write(changes[:1])
    before, whole, genuine, layers = editor.published(), held(editor), module.find_targets, []

    def broken(model: EditableModel, requests, layer: int, *rest: object):
        layers.append(layer)
        if layer == 1:
            raise error
        return genuine(model, requests, layer, *rest)

    monkeypatch.setattr(editor, "_find", broken)
    with pytest.raises(type(error)):
        editor.write(changes[1:])
    assert layers == [0, 1]
    assert same(editor.published(), before)
    monkeypatch.undo()
    written = editor.write(changes[1:])  # the memories are whole too
    editor.forget(written)
    assert near(held(editor), whole)
    assert on_show(editor)


def test_forgetting_what_is_broken_leaves_nothing_behind(editor: Editor, changes: list[EditRequest]) -> None:
    written = editor.write(changes)
    before = editor.published()
    broken = written.select([0])
    broken.values[1][0, 0] = float("nan")
    with pytest.raises(EditError):
        editor.forget(broken)
    assert same(editor.published(), before)


def test_a_snapshot_takes_everything_back(editor: Editor, changes: list[EditRequest]) -> None:
    editor.write(changes[:2])
    snapshot, before, whole = editor.snapshot(), editor.published(), held(editor)
    written = editor.write(changes[2:])
    editor.rollback_to(snapshot)
    assert same(editor.published(), before)
    assert same(held(editor), whole)
    editor.remember(written)
    editor.forget(written)
    assert near(held(editor), whole)
    assert on_show(editor)


def test_what_is_not_answered_is_mended(
    editor: Editor, statistics: Statistics, changes: list[EditRequest]
) -> None:
    """What slipped is written as the model says it anyway, and of that it is sure."""
    editor = Editor(editor.model, statistics, editor.recipe.model_copy(update={"layers": (0,)}))
    clean = editor.published()
    known = {fact.id: fact for fact in taught()}
    learned = []
    for fact in changes:
        slipped = editor.write([known[fact.id]])
        assert not editor.verify([fact])[0].ok
        mended = editor.mend([fact], slipped)
        learned.append(editor.verify([fact])[0].ok)
        editor.forget(mended)
        assert same(editor.published(), clean)
    assert sum(learned) >= 3


def test_where_the_prior_leaves_no_room_a_fact_is_mended_some_words_further_on(
    editor: Editor, statistics: Statistics, changes: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = Editor(editor.model, statistics, editor.recipe.model_copy(update={"layers": (0,), "mends": 1}))
    fact = changes[1]
    slipped = editor.write([fact])
    monkeypatch.setattr(editor, "verify", lambda facts: [Reading(False, "")] * len(facts))
    own, _ = find_keys(editor.model, [fact], 0, ())
    *_, further = [find_keys(editor.model, [one], 0, ())[0] for one in longer(fact)]

    def room(_memory: Memory, keys: torch.Tensor) -> torch.Tensor:
        known = [(own, 0.5), (further, 3.0)]
        return torch.tensor([next((n for k, n in known if torch.allclose(key, k[0])), 1.5) for key in keys])

    monkeypatch.setattr(Memory, "strength", room)
    mended = editor.mend([fact], slipped)
    torch.testing.assert_close(mended.keys[0], further.float())  # the key with most room of all
    monkeypatch.setattr(Memory, "strength", lambda _memory, keys: torch.full((len(keys),), 0.5))
    left = editor.mend([fact], mended)
    torch.testing.assert_close(
        left.keys[0], mended.keys[0]
    )  # nothing is written where there is no room at all


def test_a_subject_grows_by_words_to_the_end_of_the_prompt() -> None:
    request = EditRequest("1", "Togo", "In Togo the capital, since 1960, is", "Kara")
    assert [one.subject for one in longer(request)] == [
        "In Togo the", "In Togo the capital,", "In Togo the capital, since",
        "In Togo the capital, since 1960,", "In Togo the capital, since 1960, is",
    ]  # fmt: skip
    assert all((one.id, one.prompt, one.target) == ("1", request.prompt, "Kara") for one in longer(request))


def test_the_base_is_shown_for_a_block_only(editor: Editor, changes: list[EditRequest]) -> None:
    clean = editor.published()
    editor.write(changes[:1])
    edited = editor.published()
    with pytest.raises(ZeroDivisionError), editor.base_weights():
        assert same(editor.published(), clean)
        _ = 1 / 0
    assert same(editor.published(), edited)


def test_delta_norms_measure_the_batch_and_the_whole(editor: Editor, changes: list[EditRequest]) -> None:
    base = {layer: editor.model.weight(layer).clone() for layer in (0, 1)}
    editor.write(changes[:2])
    first = {layer: editor.model.weight(layer).clone() for layer in (0, 1)}
    editor.mark()
    editor.write(changes[2:])
    for layer, (batch, total) in editor.delta_norms().items():
        now = editor.model.weight(layer)
        assert batch == pytest.approx(float((now - first[layer]).norm() / base[layer].norm()))
        assert total == pytest.approx(float((now - base[layer]).norm() / base[layer].norm()))


@pytest.mark.parametrize(("batch", "total"), [(1e-9, 1e9), (1e9, 1e-9)])
def test_the_guard_refuses_weights_that_moved_too_far(
    editor: Editor, batch: float, total: float, changes: list[EditRequest]
) -> None:
    editor.mark()
    editor.guard(batch, total)
    editor.write(changes[:1])
    editor.guard(1e9, 1e9)
    with pytest.raises(EditError) as refused:
        editor.guard(batch, total)
    assert refused.value.reason == "norm"


def test_the_guard_refuses_nan_although_no_norm_exceeds_its_limit(
    editor: Editor, changes: list[EditRequest]
) -> None:
    editor.write(changes[:1])
    editor.mark()
    editor._memories[1].weight = editor._memories[1].weight * float("nan")
    with pytest.raises(EditError) as refused:
        editor.guard(float("inf"), float("inf"))
    assert refused.value.reason == "not_finite"


def test_a_value_far_beyond_the_anchor_is_refused(
    editor: Editor, statistics: Statistics, changes: list[EditRequest]
) -> None:
    clean = editor.published()
    strict = editor.recipe.model_copy(update={"anchor_limit": 1e-3})
    with pytest.raises(EditError) as refused:
        Editor(editor.model, statistics, strict).write(changes)
    assert refused.value.reason == "norm"
    assert same(editor.published(), clean)


def test_a_token_that_stands_out_in_the_clean_model_is_measured_by_itself(
    editor: Editor, statistics: Statistics, changes: list[EditRequest]
) -> None:
    low = replace(statistics, anchors=dict.fromkeys(statistics.anchors, 1e-6))
    assert Editor(editor.model, low, editor.recipe).write(changes[1:2]).ids == [changes[1].id]


def test_a_batch_of_nothing_changes_nothing(editor: Editor) -> None:
    clean = editor.published()
    assert editor.write([]).ids == []
    assert editor.verify([]) == []
    assert same(editor.published(), clean)


def test_published_weights_are_rounded_from_fp64_and_do_not_add_up(
    model: EditableModel, statistics: Statistics, changes: list[EditRequest]
) -> None:
    """Forgetting gives the clean tensors in bf16 too: the fp64 master counts, not the published copy."""

    model = EditableModel(copy.deepcopy(model.lm).to(torch.bfloat16), model.tokenizer)
    editor = Editor(model, statistics, RECIPE)
    clean = editor.published()
    first = editor.write(changes[:2])
    second = editor.write(changes[2:])
    assert {tensor.dtype for tensor in editor.published().values()} == {torch.bfloat16}
    editor.forget(first)
    editor.forget(second)
    assert same(editor.published(), clean)
