"""The model in parts says what the whole model says, in every family of the table."""

import pytest
import torch
from torch.nn import functional

from tests.numerics.models import random_model
from workers.editing.architectures import ARCHITECTURES
from workers.editing.model import EditableModel
from workers.editing.partial import reach_of, run_lower, run_upper
from workers.editing.prompts import EditRequest, Layout, encode_fact, lay_out

PREFIXES = ("w7 w8 w9 . ", "the w5 . ")
REQUESTS = [
    EditRequest("1", "w1 w2", "the w6 of w1 w2 is", "w20 w21"),
    EditRequest("2", "w3", "w3 w3 is the w11 of w12 the", "w22"),
]
FP32_ATTENTION = ("gemma2", "gptj")  # whatever the model's dtype, theirs rounds to fp32


def layout_of(model: EditableModel) -> Layout:
    """Rows of different lengths on both sides of the anchor."""
    rows = [row for request in REQUESTS for row in encode_fact(model.tokenizer, PREFIXES, request, 64)]
    return lay_out(rows, model.pad, model.device)


def whole(model: EditableModel, layout: Layout, layer: int, delta: torch.Tensor | None) -> list[torch.Tensor]:
    """Logits of each row without padding from the anchor on, δ put in by a hook: the independent answer."""
    found = []
    for i, mask in enumerate(layout.mask):
        ids = layout.ids[i][mask][None]
        at = layout.anchor - int(mask.int().argmax())

        def add(_module, _inputs, output, row=i, at=at):
            changed = output.clone()
            changed[0, at] += delta[row] if delta is not None else 0.0
            return changed

        handle = model.projection(layer).register_forward_hook(add)
        found.append(model.lm(input_ids=ids).logits[0, at:])
        handle.remove()
    return found


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_parts_equal_the_whole(family: str, layer: int) -> None:
    model = random_model(family)
    layout = layout_of(model)
    lower = run_lower(model, layout, layer)
    d_out, d_in = model.weight(layer).shape
    delta = torch.randn(len(layout.ids), d_out, dtype=torch.float64)
    for moved in (None, delta):
        logits = model.logits(run_upper(model, layout, layer, lower, moved))
        for row, wanted in enumerate(whole(model, layout, layer, moved)):
            tolerance = 1e-5 if family in FP32_ATTENTION else 1e-9
            torch.testing.assert_close(logits[row, : len(wanted)], wanted, rtol=tolerance, atol=tolerance)
    assert lower.keys.shape == (len(layout.ids), d_in)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_the_value_is_the_weight_times_the_key(family: str) -> None:
    model = random_model(family)
    layer = model.projection(1)
    lower = run_lower(model, layout_of(model), 1)
    bias = layer.bias if getattr(layer, "bias", None) is not None else torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(lower.keys @ model.weight(1).T + bias, lower.values)
    assert model.tensor_name(1) in model.lm.state_dict()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "gpt2"])
def test_gradients_of_delta_are_those_of_the_whole(family: str) -> None:
    model = random_model(family)
    layout = layout_of(model)
    lower = run_lower(model, layout, 1)
    (at, tokens), delta = layout.wanted(), 0.1 * torch.randn(len(layout.ids), 32, dtype=torch.float64)
    delta.requires_grad_()
    in_parts = model.logits(run_upper(model, layout, 1, lower, delta)[at])
    rows = whole(model, layout, 1, delta)
    at_once = torch.stack([rows[row][column] for row, column in zip(*at, strict=True)])
    (one,) = torch.autograd.grad(functional.cross_entropy(in_parts, tokens), delta)
    (other,) = torch.autograd.grad(functional.cross_entropy(at_once, tokens), delta)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert one.abs().max() > 1e-4


def test_some_rows_say_what_they_said_among_all() -> None:
    model = random_model()
    layout = layout_of(model)
    lower = run_lower(model, layout, 1)
    index = torch.tensor([5, 1, 2])
    every = run_upper(model, layout, 1, lower)
    some = run_upper(model, layout.rows(index), 1, lower.rows(index))
    torch.testing.assert_close(some, every[index], rtol=1e-12, atol=1e-12)


def test_the_layers_are_whole_again_after_an_error() -> None:
    model = random_model()
    layout = layout_of(model)
    lower = run_lower(model, layout, 1)
    with pytest.raises(RuntimeError):
        run_upper(model, layout, 1, lower, torch.zeros(3, 1, 7))
    assert all("forward" not in vars(layer) for layer in model.layers)
    before = run_upper(model, layout, 1, lower)
    torch.testing.assert_close(run_upper(model, layout, 1, lower), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_reach_is_the_step_that_moves_the_stream_by_its_norm(family: str) -> None:
    model = random_model(family)
    lower = run_lower(model, layout_of(model), 1)
    reach = reach_of(model, 1, lower.hidden[:, 0], lower.values)
    arrives = lower.values if family == "llama" else model.post_norm(1)(lower.values)
    gain = arrives.norm(dim=1) / lower.values.norm(dim=1)
    torch.testing.assert_close(reach * gain, lower.hidden[:, 0].norm(dim=1))
