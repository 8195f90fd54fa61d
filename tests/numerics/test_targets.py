"""Targets against the loss written out on the whole model, and a batch against its facts one by one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch.nn import functional

from daemon.core.errors import EditError, OutOfMemoryError
from tests.numerics.conftest import RECIPE
from tests.numerics.models import PREFIXES, SUBJECTS, random_model, taught, taught_kinds
from workers.editing import targets as module
from workers.editing.model import EditableModel
from workers.editing.prompts import EditRequest, encode_fact
from workers.editing.recipes import Recipe
from workers.editing.targets import Targets, _Search, find_keys, find_targets

LAYER = 0
ALL_PROMPTS = RECIPE.model_copy(update={"mends": 0})  # who mends nothing leaves no bare prompt to mending
AT_ONCE = ALL_PROMPTS.model_copy(update={"extra_steps": 0, "steps": 100})  # stops where MPES first holds


def sought(model: EditableModel, requests: Sequence[EditRequest], recipe: Recipe = RECIPE) -> Targets:
    return find_targets(model, requests, LAYER, recipe, PREFIXES)


def logits_with(model: EditableModel, ids: list[int], at: int, delta: torch.Tensor) -> torch.Tensor:
    """Logits [T, vocabulary] of one text by the whole model, δ added to the projection's output at ``at``."""

    def add(_module, _inputs, output):
        moved = torch.zeros_like(output)
        moved[0, at] = 1.0
        return output + moved * delta

    handle = model.projection(LAYER).register_forward_hook(add)
    try:
        return model.lm(input_ids=torch.tensor([ids])).logits[0]
    finally:
        handle.remove()


def test_the_gradient_is_that_of_the_loss_written_out(
    model: EditableModel, changes: list[EditRequest]
) -> None:
    request = changes[1]
    recipe = ALL_PROMPTS.model_copy(update={"kl_weight": 0.3, "decay": 2.0})
    search = _Search(model, [request], LAYER, recipe, PREFIXES, columns=64)
    delta = torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    every = torch.ones(1, dtype=torch.bool)
    found, _ = search._evaluate(search._visible(every, every), delta, every, every)

    moved = delta[0].clone().requires_grad_()
    *told, plain = encode_fact(model.tokenizer, PREFIXES, request, 64)
    nll = []
    for row in told:
        logits = logits_with(model, row.ids, row.anchor, moved)[row.target_start - 1 : -1]
        nll.append(functional.cross_entropy(logits, torch.tensor(row.ids[row.target_start :])))
    edited = logits_with(model, plain.ids, plain.anchor, moved)[-1].log_softmax(-1)
    clean = logits_with(model, plain.ids, plain.anchor, torch.zeros(32).double())[-1].log_softmax(-1)
    kl = (clean.exp() * (clean - edited)).sum()
    h = search.stream[0].norm()
    loss = torch.stack(nll).mean() + 0.3 * kl + 2.0 * moved.norm() / h**2
    (wanted,) = torch.autograd.grad(loss, moved)
    torch.testing.assert_close(found[0], wanted, rtol=1e-7, atol=1e-10)


def test_the_first_step_may_leave_out_what_has_no_gradient_yet(
    model: EditableModel, changes: list[EditRequest]
) -> None:
    recipe = RECIPE.model_copy(update={"kl_weight": 0.3})
    search = _Search(model, changes[1:3], LAYER, recipe, PREFIXES, columns=64)
    every, delta = torch.ones(2, dtype=torch.bool), torch.zeros(2, 32, dtype=torch.float64)
    passes = [search._visible(every, every, plain=plain) for plain in (True, False)]
    rows = [sum(len(part.fact) for part in parts) for parts in passes]
    assert rows[1] == rows[0] - 2
    whole, first = (search._evaluate(parts, delta, every, every)[0] for parts in passes)
    torch.testing.assert_close(first, whole, rtol=1e-10, atol=1e-12)


def test_a_batch_finds_what_its_facts_find_alone(model: EditableModel, changes: list[EditRequest]) -> None:
    batch = sought(model, changes)
    alone = [sought(model, [request]) for request in changes]
    for name in ("keys", "values", "deltas", "norms", "steps", "done"):
        one_by_one = torch.cat([getattr(found, name) for found in alone])
        torch.testing.assert_close(getattr(batch, name), one_by_one, rtol=1e-6, atol=1e-6)
    assert len(set(batch.steps.tolist())) > 1, "facts that end together would not prove that rows leave"


def test_done_means_every_token_under_every_prompt(model: EditableModel, changes: list[EditRequest]) -> None:
    found = sought(model, changes, AT_ONCE)
    assert found.done.all()
    for request, delta in zip(changes, found.deltas, strict=True):
        for row in encode_fact(model.tokenizer, PREFIXES, request, 64)[:-1]:
            said = logits_with(model, row.ids, row.anchor, delta)[row.target_start - 1 : -1].argmax(-1)
            assert said.tolist() == row.ids[row.target_start :]


def test_prompts_that_come_later_hold_too_and_cost_fewer_passes(
    model: EditableModel, changes: list[EditRequest]
) -> None:
    narrow = AT_ONCE.model_copy(update={"first_prompts": 1})
    found = sought(model, changes, narrow)
    assert found.done.all()
    for request, delta in zip(changes, found.deltas, strict=True):
        for row in encode_fact(model.tokenizer, PREFIXES, request, 64)[:-1]:
            said = logits_with(model, row.ids, row.anchor, delta)[row.target_start - 1 : -1].argmax(-1)
            assert said.tolist() == row.ids[row.target_start :]
    search = _Search(model, changes, LAYER, narrow, PREFIXES, columns=64)
    no, yes = torch.zeros(len(changes), dtype=torch.bool), torch.ones(len(changes), dtype=torch.bool)
    counted = [sum(len(rows.fact) for rows in search._visible(yes, wide)) for wide in (no, yes)]
    assert counted == [2 * len(changes), 4 * len(changes)]  # bare and "is a", then with two prefixed besides


def test_older_methods_go_on_to_a_loss_or_to_the_last_step(
    model: EditableModel, changes: list[EditRequest]
) -> None:
    small = AT_ONCE.model_copy(update={"learning_rate": 0.02, "steps": 300})  # none does both at once
    mpes = sought(model, changes[1:], small)
    loss = sought(model, changes[1:], small.model_copy(update={"stop": "loss", "kl_weight": 0.0}))
    assert (loss.steps > mpes.steps).all()
    assert loss.done.sum() >= 3
    for request, delta, done in zip(changes[1:], loss.deltas, loss.done, strict=True):
        nll = []
        for row in encode_fact(model.tokenizer, PREFIXES, request, 64)[:-1]:
            logits = logits_with(model, row.ids, row.anchor, delta)[row.target_start - 1 : -1]
            nll.append(functional.cross_entropy(logits, torch.tensor(row.ids[row.target_start :])))
        assert not done or torch.stack(nll).mean() < 0.05
    never = sought(model, changes[1:], RECIPE.model_copy(update={"stop": "never"}))
    assert never.steps.tolist() == [RECIPE.steps] * len(changes[1:])
    assert not never.done.any()


def test_normalised_steps_have_the_length_that_was_asked_for(
    model: EditableModel, changes: list[EditRequest]
) -> None:
    recipe = RECIPE.model_copy(update={"optimiser": "normalised", "learning_rate": 0.3, "steps": 1})
    found = sought(model, changes[1:], recipe)
    reach = found.stream.norm(dim=1)
    torch.testing.assert_close(found.deltas.norm(dim=1), 0.3 * reach)


def test_what_is_not_predicted_is_not_done(model: EditableModel, changes: list[EditRequest]) -> None:
    found = sought(model, changes, RECIPE.model_copy(update={"steps": 1}))
    assert not found.done.any()
    assert found.steps.tolist() == [1] * len(changes)


@pytest.mark.parametrize(
    ("extra", "steps"), [(0, [0, 1, 3, 3, 6, 9]), (1, [1, 2, 4, 4, 7, 10]), (4, [4, 5, 7, 8, 10, 13])]
)
def test_extra_steps_are_taken_after_mpes(
    model: EditableModel,
    extra: int,
    steps: list[int],
    changes: list[EditRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test sets when a fact holds, and the fourth lapses for one step, which does not count as extra."""
    look, since, lapse = count(), torch.tensor([0, 1, 3, 3, 6, 9]), torch.tensor([-1, -1, -1, 4, -1, -1])

    def holds(*_: object) -> torch.Tensor:
        now = next(look)
        return (now >= since) & (now != lapse)

    monkeypatch.setattr(type(AT_ONCE), "is_reached", holds)
    found = sought(model, changes, AT_ONCE.model_copy(update={"extra_steps": extra}))
    assert found.done.all()
    assert found.steps.tolist() == steps


def test_extra_steps_begin_where_the_model_first_says_the_target(
    model: EditableModel, changes: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it says step by step, the search ends with the fourth step at which all was said."""
    looks: list[torch.Tensor] = []

    class Watched(_Search):
        def _evaluate(self, passes, delta, sought_, wide):
            for row, request in enumerate(self.requests):
                told = encode_fact(self.model.tokenizer, PREFIXES, request, 64)[:-1]
                said = [logits_with(self.model, one.ids, one.anchor, delta[row]).argmax(-1) for one in told]
                ok = [
                    s[t.target_start - 1 : -1].tolist() == t.ids[t.target_start :]
                    for s, t in zip(said, told, strict=True)
                ]
                looks.append(torch.tensor(all(ok)))
            return super()._evaluate(passes, delta, sought_, wide)

    monkeypatch.setattr(module, "_Search", Watched)
    some = changes[:3]
    small = {"extra_steps": 4, "learning_rate": 0.03}  # now and then a step brings one prompt alone
    found = sought(model, some, AT_ONCE.model_copy(update=small))
    held = torch.stack(looks).view(-1, len(some)).cumsum(0)
    assert found.done.all()
    assert found.steps.tolist() == [int((column < 4).sum()) + 1 for column in held.T]


def test_what_the_model_knows_already_needs_no_delta(model: EditableModel) -> None:
    found = sought(model, taught(), RECIPE.model_copy(update={"extra_steps": 0}))
    assert found.done.all()
    assert found.steps.abs().max() == 0
    assert found.deltas.abs().max() == 0
    torch.testing.assert_close(found.values, found.keys @ model.weight(LAYER).T)


def test_delta_stays_within_the_clamp(model: EditableModel, changes: list[EditRequest]) -> None:
    found = sought(model, changes, RECIPE.model_copy(update={"clamp": 0.5, "learning_rate": 5.0}))
    search = _Search(model, changes, LAYER, RECIPE, PREFIXES, columns=64)
    share = found.deltas.norm(dim=1) / search.stream.norm(dim=1)
    assert share.max() <= 0.5 + 1e-9
    assert share.max() > 0.49
    assert (found.norms <= 1.5 * search.stream.norm(dim=1) + 1e-9).all()


def keys_of(model: EditableModel, request: EditRequest) -> torch.Tensor:
    """The key in each prompt, the bare one first."""
    seen = []
    for row in encode_fact(model.tokenizer, PREFIXES, request, 64)[:-1]:
        handle = model.projection(LAYER).register_forward_pre_hook(
            lambda _m, inputs, at=row.anchor: seen.append(inputs[0][0, at])
        )
        model.lm(input_ids=torch.tensor([row.ids]))
        handle.remove()
    return torch.stack(seen)


def test_keys_are_the_mean_over_the_prompts(model: EditableModel, changes: list[EditRequest]) -> None:
    request = changes[0]
    found = sought(model, [request], ALL_PROMPTS)
    torch.testing.assert_close(found.keys[0], keys_of(model, request).mean(0))


def test_a_bare_prompt_with_another_key_is_left_to_mending(
    model: EditableModel, changes: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_all = sought(model, changes, AT_ONCE)
    mending = AT_ONCE.model_copy(update={"mends": 2})
    monkeypatch.setattr(module, "_APART", -1.1)  # every key is near enough
    torch.testing.assert_close(sought(model, changes, mending).deltas, with_all.deltas)
    monkeypatch.setattr(module, "_APART", 1.1)  # and none now
    found = sought(model, changes, mending)
    assert found.done.all()
    for request, key, delta in zip(changes, found.keys, found.deltas, strict=True):
        torch.testing.assert_close(key, keys_of(model, request)[1:].mean(0))
        for row in encode_fact(model.tokenizer, PREFIXES, request, 64)[1:-1]:
            said = logits_with(model, row.ids, row.anchor, delta)[row.target_start - 1 : -1].argmax(-1)
            assert said.tolist() == row.ids[row.target_start :]
    search = _Search(model, changes, LAYER, mending, PREFIXES, columns=64)
    assert len(search.rows.fact) == 3 * len(changes)  # two prefixed, and "is a"
    for never_mends in ({"mends": 0}, {"residual": "shared"}):
        unmended = sought(model, changes, mending.model_copy(update=never_mends))
        torch.testing.assert_close(unmended.deltas, with_all.deltas)  # who mends nothing looks at all of them


def test_facts_with_one_key_get_one_value_that_serves_both(model: EditableModel) -> None:
    """Both prompts begin with the subject, so no memory could give it two values."""
    recipe, served = ALL_PROMPTS.model_copy(update={"steps": 80}), 0
    for i in range(5):
        twins = [
            replace(kind[i], target=kind[i + 3].target)  # what another subject is, and was
            for kind in (taught_kinds(), [fact for fact in taught() if fact.id.endswith("/was")])
        ]
        found = sought(model, twins, recipe)
        assert torch.equal(found.deltas[0], found.deltas[1])
        assert found.done[0] == found.done[1]
        if found.done[0]:
            served += 1
            for request, delta in zip(twins, found.deltas, strict=True):
                row = encode_fact(model.tokenizer, PREFIXES, request, 64)[0]
                said = logits_with(model, row.ids, row.anchor, delta)[row.target_start - 1 : -1].argmax(-1)
                assert said.tolist() == row.ids[row.target_start :]
    assert served > 0


def test_one_subject_with_two_keys_keeps_two_values(model: EditableModel) -> None:
    """What stands before the subject tells the keys apart, so each fact has a value of its own."""

    def alike(pair: Sequence[EditRequest]) -> float:
        return float(functional.cosine_similarity(*find_keys(model, pair, LAYER, PREFIXES)[0], dim=0))

    pairs = [[fact for fact in taught() if fact.subject == subject] for subject in SUBJECTS[:8]]
    pair = min(pairs, key=alike)  # for each prompt the same word ends the subject
    swapped = [replace(one, target="w29") for one in pair]
    found = sought(model, swapped)
    assert not torch.equal(found.deltas[0], found.deltas[1])


def test_running_out_of_memory_halves_the_batch(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch, changes: list[EditRequest]
) -> None:
    whole = sought(model, changes)
    tried = []

    class Small(_Search):
        def __init__(self, model, requests, *rest) -> None:
            tried.append(len(requests))
            if len(requests) > 1:
                raise RuntimeError(
                    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            super().__init__(model, requests, *rest)

    monkeypatch.setattr(module, "_Search", Small)
    torch.testing.assert_close(sought(model, changes).values, whole.values, rtol=1e-6, atol=1e-6)
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]


def test_a_fact_that_fits_nowhere_is_an_error_of_its_own(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch, changes: list[EditRequest]
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(module, "_Search", full)
    with pytest.raises(OutOfMemoryError):
        sought(model, changes)


def test_other_errors_are_not_taken_for_lack_of_memory(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch, changes: list[EditRequest]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(module, "_Search", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        sought(model, changes)


def test_a_model_that_says_nan_is_refused(changes: list[EditRequest]) -> None:
    broken = random_model("gpt2")
    with torch.no_grad():
        broken.weight(2)[0, 0] = float("nan")
    with pytest.raises(EditError) as refused:
        sought(broken, changes[:1])
    assert refused.value.reason == "not_finite"


def test_a_subject_at_the_very_start_is_edited_behind_it(model: EditableModel) -> None:
    """The first token of a text is an attention sink, whose key would stand for every subject there is."""
    request = EditRequest("1", "w13", "w13 was the w11 of", "w24")
    rows = encode_fact(model.tokenizer, PREFIXES, request, 64)
    assert rows[0].anchor == 1
    assert {row.ids[row.anchor] for row in rows[:-1]} == {rows[0].ids[1]}
    other = EditRequest("2", "w14", "w14 was the w11 of", "w24")
    keys = sought(model, [request, other]).keys
    assert not torch.allclose(keys[0], keys[1], rtol=1e-3)
