"""The model in parts says what the whole model says, in every family of the table."""

import pytest
import torch
from torch.nn import functional

from tests.numerics.models import random_model
from workers.editing.architectures import ARCHITECTURES
from workers.editing.model import EditableModel
from workers.editing.partial import Packed, reach_of, run_lower, run_upper
from workers.editing.prompts import EditRequest, Encoded, encode_fact, pack

PREFIXES = ("w7 w8 w9 . ", "the w5 . ")
REQUESTS = [
    EditRequest("1", "w1 w2", "the w6 of w1 w2 is", "w20 w21"),
    EditRequest("2", "w3", "w3 w3 is the w11 of w12 the", "w22"),
]
FP32_ATTENTION = ("gemma2", "gptj")  # whatever the model's dtype, theirs rounds to fp32


def rows_of(model: EditableModel) -> list[Encoded]:
    """Texts of different lengths on both sides of the anchor, some of which begin alike."""
    return [row for request in REQUESTS for row in encode_fact(model.tokenizer, PREFIXES, request, 64)]


def packed_of(model: EditableModel, layer: int) -> Packed:
    return run_lower(model, pack(rows_of(model), model.device), layer)[1]


def whole(model: EditableModel, layer: int, delta: torch.Tensor | None) -> list[torch.Tensor]:
    """Logits of each row alone from the anchor on, δ put in by a hook: the independent answer."""
    found = []
    for i, text in enumerate(rows_of(model)):

        def add(_module, _inputs, output, row=i, at=text.anchor):
            changed = output.clone()
            changed[0, at] += delta[row] if delta is not None else 0.0
            return changed

        handle = model.projection(layer).register_forward_hook(add)
        found.append(model.lm(input_ids=torch.tensor([text.read])).logits[0, text.anchor :])
        handle.remove()
    return found


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_parts_equal_the_whole(family: str, layer: int) -> None:
    model = random_model(family)
    packed = packed_of(model, layer)
    delta = torch.randn(len(packed.values), model.weight(layer).shape[0], dtype=torch.float64)
    for moved in (None, delta):
        logits = model.logits(run_upper(model, packed, layer, moved))
        for row, wanted in enumerate(whole(model, layer, moved)):
            tolerance = 1e-5 if family in FP32_ATTENTION else 1e-9
            found = logits[packed.row == row]
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_the_value_is_the_weight_times_the_key(family: str) -> None:
    model = random_model(family)
    layer = model.projection(1)
    keys, packed = run_lower(model, pack(rows_of(model), model.device), 1)
    bias = layer.bias if getattr(layer, "bias", None) is not None else torch.zeros(1, dtype=torch.float64)
    torch.testing.assert_close(keys @ model.weight(1).T + bias, packed.values)
    assert model.tensor_name(1) in model.lm.state_dict()


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "gpt2"])
def test_gradients_of_delta_are_those_of_the_whole(family: str) -> None:
    model = random_model(family)
    packed = packed_of(model, 1)
    (at, tokens), delta = packed.wanted(), 0.1 * torch.randn(len(packed.values), 32, dtype=torch.float64)
    assert tokens.tolist() == [token for text in rows_of(model) for token in text.ids[text.target_start :]]
    delta.requires_grad_()
    in_parts = model.logits(run_upper(model, packed, 1, delta)[at])
    at_once = torch.cat(whole(model, 1, delta))[at]
    (one,) = torch.autograd.grad(functional.cross_entropy(in_parts, tokens), delta)
    (other,) = torch.autograd.grad(functional.cross_entropy(at_once, tokens), delta)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert one.abs().max() > 1e-4


def test_some_rows_say_what_they_said_among_all() -> None:
    model = random_model()
    packed = packed_of(model, 1)
    index = torch.tensor([1, 2, 5])
    every = run_upper(model, packed, 1)
    some = run_upper(model, packed.rows(index), 1)
    torch.testing.assert_close(some, every[torch.isin(packed.row, index)], rtol=1e-12, atol=1e-12)


def test_packs_put_together_say_what_each_says() -> None:
    model = random_model()
    packed = packed_of(model, 1)
    both = Packed.concat([packed, packed.rows(torch.tensor([0, 4]))])
    alone = [run_upper(model, one, 1) for one in (packed, packed.rows(torch.tensor([0, 4])))]
    torch.testing.assert_close(run_upper(model, both, 1), torch.cat(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 7, 12, 1000])
def test_passes_take_every_row_once_and_keep_to_their_size(columns: int) -> None:
    packed = packed_of(random_model(), 1)
    index = torch.tensor([0, 2, 3, 5, 6, 7])
    parts = list(packed.parts(index, columns))
    assert torch.cat(parts).tolist() == index.tolist()
    longest = int(torch.bincount(packed.row).max())
    assert all(len(packed.rows(part).row) <= 1.25 * columns + longest for part in parts)
    assert (len(parts) == 1) == (columns == 1000)
    assert list(packed.parts(index[:0], columns)) == []


def test_the_layers_are_whole_again_after_an_error() -> None:
    model = random_model()
    packed = packed_of(model, 1)
    with pytest.raises(RuntimeError):
        run_upper(model, packed, 1, torch.zeros(3, 1, 7))
    assert all("forward" not in vars(layer) for layer in model.layers)
    before = run_upper(model, packed, 1)
    torch.testing.assert_close(run_upper(model, packed, 1), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_reach_is_the_step_that_moves_the_stream_by_its_norm(family: str) -> None:
    model = random_model(family)
    packed = packed_of(model, 1)
    stream = packed.hidden[packed.first]
    reach = reach_of(model, 1, stream, packed.values)
    arrives = packed.values if family == "llama" else model.post_norm(1)(packed.values)
    gain = arrives.norm(dim=1) / packed.values.norm(dim=1)
    torch.testing.assert_close(reach * gain, stream.norm(dim=1))
