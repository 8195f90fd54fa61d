"""Causal tracing against the whole model run row by row with plain hooks, and against what must come out."""

from collections.abc import Callable

import pytest
import torch

from daemon.core.errors import ModelError
from tests.numerics.models import random_model
from workers.editing.architectures import ARCHITECTURES
from workers.editing.model import EditableModel
from workers.locate.facts import KnownFact
from workers.locate.tracing import Traced, subject_deviation, trace, window_at

FACTS = [
    KnownFact("r", "w1 w2", "the w6 of w1 w2 is", "w20 w21", "-"),
    KnownFact("r", "w3", "the w11 of w12 the w3 was", "w22", "-"),
    KnownFact("r", "w4 w5 w6", "w7 w4 w5 w6 is a", "w23", "-"),
]
ONE_TOKEN = [KnownFact("r", "w3", "the w11 of w12 the w3 was", "w22 w24", "-")]
FP32_ATTENTION = ("gemma2", "gptj")  # whatever the model's dtype, theirs rounds to fp32
NOISES, SIGMA = 2, 0.7


def traced(model: EditableModel, facts: list[KnownFact] = FACTS, sigma: float = SIGMA) -> Traced:
    return Traced(model, facts, NOISES, sigma, torch.Generator().manual_seed(5))


def by_rows(
    model: EditableModel, facts: list[KnownFact], kind: str | None, layers: list[int]
) -> torch.Tensor:
    """p' of each row by whole forward passes of unpadded texts: the independent answer."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for fact in facts:
        ids = model.tokenizer(f"{fact.prompt} {fact.answer}", return_tensors="pt")["input_ids"]
        prompt = model.tokenizer(fact.prompt)["input_ids"]
        subject = model.tokenizer(fact.subject)["input_ids"]
        start = next(i for i in range(len(prompt)) if prompt[i : i + len(subject)] == subject)
        last = start + len(subject) - 1
        embedded = model.lm.get_input_embeddings()(ids)
        modules = [model.layers[i] if kind == "hidden" else model.projection(i) for i in layers]
        clean = states(model, embedded, modules)
        noise = torch.randn(NOISES, len(subject), embedded.shape[2], generator=generator) * SIGMA
        for draw in noise:
            noisy = embedded.clone()
            noisy[0, start : last + 1] += draw
            handles = [
                module.register_forward_hook(put_back(state, last))
                for module, state in zip(modules, clean, strict=True)
            ]
            logs = model.lm(inputs_embeds=noisy).logits[0].log_softmax(-1)
            for handle in handles:
                handle.remove()
            found.append(sum(logs[i - 1, ids[0, i]] for i in range(len(prompt), ids.shape[1])).exp())
    return torch.stack(found)


def states(model: EditableModel, embedded: torch.Tensor, modules: list) -> list[torch.Tensor]:
    kept: list[torch.Tensor] = []
    handles = [
        one.register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
        for one in modules
    ]
    model.lm(inputs_embeds=embedded)
    for handle in handles:
        handle.remove()
    return kept


def put_back(state: torch.Tensor, column: int) -> Callable:
    def change(_module, _inputs, output):
        changed = (output[0] if isinstance(output, tuple) else output).clone()
        changed[:, column] = state[:, column]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return change


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_restored_state_gives_what_the_whole_model_gives(family: str) -> None:
    model = random_model(family)
    one = traced(model)
    near = {"rtol": 1e-4 if family in FP32_ATTENTION else 1e-7, "atol": 1e-12}
    torch.testing.assert_close(one.corrupted, by_rows(model, FACTS, None, []), **near)
    for layer in range(model.n_layers):
        torch.testing.assert_close(one.with_hidden(layer), by_rows(model, FACTS, "hidden", [layer]), **near)
    for window in ([0], [0, 1, 2], [2, 3]):
        torch.testing.assert_close(one.with_mlp(window), by_rows(model, FACTS, "mlp", window), **near)


def test_restoring_everything_gives_the_clean_probability_back() -> None:
    model = random_model()
    one, whole = traced(model, ONE_TOKEN), 64
    assert not torch.allclose(one.corrupted, one.clean.repeat_interleave(NOISES), rtol=1e-3)
    for layer in range(-1, model.n_layers):  # nothing but the anchor was noise, so this is everything
        torch.testing.assert_close(one.with_hidden(layer, whole), one.clean.repeat_interleave(NOISES))
    torch.testing.assert_close(one.with_hidden(-1), one.clean.repeat_interleave(NOISES))
    all_said = traced(model).with_hidden(model.n_layers - 1, whole)  # of long subjects: the last layer's
    torch.testing.assert_close(all_said, traced(model).clean.repeat_interleave(NOISES))


def test_corrupting_nothing_changes_nothing() -> None:
    model = random_model("gpt2")
    one = traced(model, sigma=0.0)
    clean = one.clean.repeat_interleave(NOISES)
    torch.testing.assert_close(one.corrupted, clean)
    for layer in range(model.n_layers):
        torch.testing.assert_close(one.with_hidden(layer), clean)
        torch.testing.assert_close(one.with_mlp([layer]), clean)
    for noise, seed in [(0.0, 0), *((1e-9, seed) for seed in range(4))]:  # what rounding takes or gives
        with pytest.raises(ModelError, match="noise on the subjects"):
            trace(model, FACTS, NOISES, seed, noise=noise)


def test_sigma_is_that_of_the_subjects_tokens() -> None:
    model = random_model()
    table = model.lm.get_input_embeddings().weight
    words = [w for fact in FACTS for w in fact.subject.split()]
    wanted = torch.cat([table[model.tokenizer(w)["input_ids"]] for w in words]).std()
    assert subject_deviation(model, FACTS) == pytest.approx(float(wanted), rel=1e-12)


def own_facts(model: EditableModel) -> list[KnownFact]:
    """What a random model says anyway is what it knows."""
    prompts = {f"w{i} w{i + 1}": f"the w{30 + i % 3} of w{i} w{i + 1} is" for i in range(16)}
    said = model.greedy(list(prompts.values()), 1)
    pairs = zip(prompts.items(), said, strict=True)
    return [KnownFact("r", subject, prompt, answer, "-") for (subject, prompt), answer in pairs if answer]


def test_a_trace_finds_what_brings_known_facts_back() -> None:
    model = random_model()
    facts = own_facts(model)
    assert len(facts) > 8
    steps: list[tuple[int, int]] = []
    found = trace(model, facts, 10, 0, lambda done, total: steps.append((done, total)))
    assert found.clean > 1.5 * found.corrupted
    assert len(found.hidden) == len(found.mlp) == model.n_layers
    assert found.window == 1
    assert max(found.hidden) <= 1
    assert found.hidden[-1] == found.mlp[-1] == pytest.approx(0, abs=1e-9)  # the answer is said further on
    assert steps[-1][0] == steps[-1][1]
    assert trace(model, facts, 10, 0) == found
    assert trace(model, facts, 10, 1) != found


def test_a_window_is_a_sixth_of_the_model_without_its_first_layer() -> None:
    assert [list(window_at(layer, 30)) for layer in (0, 1, 3, 29)] == [
        [0],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [27, 28, 29],
    ]
    assert list(window_at(2, 4)) == [2]
