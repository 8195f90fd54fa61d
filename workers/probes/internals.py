"""Probes of the edited layers: norms, share of the residual stream, strength of values, capacity used."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from workers.editing.model import EditableModel
from workers.editing.targets import find_keys
from workers.probes.base import Measurement, Probe, ProbeContext
from workers.probes.perplexity import heldout_texts

_ROUNDS = 12  # of the power iteration: the largest singular value to about a hundredth
_TEXT_CHARACTERS = 800  # of the held-out text: a mean over about 200 tokens
_FACTS = 16  # that are measured of the older ones, and at most twice as many in all


def measure_delta(context: ProbeContext) -> Measurement:
    """The largest ‖W − W0‖_F / ‖W0‖_F of the edited layers."""
    base = context.base.of(("weights",), lambda: _weights(context))
    now = _weights(context)
    norms = {str(layer): float((now[layer] - base[layer]).norm() / base[layer].norm()) for layer in now}
    return Measurement(max(norms.values()), len(norms), {"layers": norms})


def measure_spectral(context: ProbeContext) -> Measurement:
    """The largest σ₁(W − W0) / σ₁(W0), which finds a change that is small in norm but has one direction."""
    base = context.base.of(("weights",), lambda: _weights(context))
    shares = {
        str(layer): largest_singular_value(now - base[layer]) / largest_singular_value(base[layer])
        for layer, now in _weights(context).items()
    }
    return Measurement(max(shares.values()), len(shares), {"layers": shares})


def largest_singular_value(weight: torch.Tensor) -> float:
    """σ₁ of W [d_out, d_in] by power iteration on WᵀW from a fixed start."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(weight.shape[1], generator=generator).to(weight)
    for _ in range(_ROUNDS):
        vector = weight.T @ (weight @ vector)
        size = vector.norm()
        if not size > 0:
            return 0.0 if size == 0 else float("nan")
        vector /= size
    return float((weight @ vector).norm())


def measure_stream(context: ProbeContext) -> Measurement:
    """The growth of the edited layers' share in the residual stream, against the base model.

    The share of a layer is ‖output of its projection‖ / ‖stream after the layer‖, a mean over tokens of
    held-out text. A layer with too large a share hides what the others add.
    """
    model = context.editor.model
    before = context.base.of(("stream",), lambda: stream_shares(model, context.editor.layers))
    now = stream_shares(model, context.editor.layers)
    growth = {str(layer): now[layer] / before[layer] for layer in now}
    return Measurement(max(growth.values()), len(growth), {"layers": growth})


@torch.no_grad()
def stream_shares(model: EditableModel, layers: Sequence[int]) -> dict[int, float]:
    """For each layer ‖output of its projection‖ / ‖stream after it‖, a mean over all tokens but the first."""
    added: dict[int, torch.Tensor] = {}
    behind: dict[int, torch.Tensor] = {}
    hooks = [model.projection(layer).register_forward_hook(_keep(added, layer)) for layer in layers]
    hooks += [model.layers[layer].register_forward_hook(_keep(behind, layer)) for layer in layers]
    try:
        text = "\n\n".join(heldout_texts(_TEXT_CHARACTERS))
        ids = model.tokenizer(text, return_tensors="pt", truncation=True, max_length=model.max_tokens)
        model.lm(input_ids=ids["input_ids"].to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        layer: float((added[layer].norm(dim=-1) / behind[layer].norm(dim=-1))[:, 1:].mean())
        for layer in layers
    }


def measure_values(context: ProbeContext) -> Measurement:
    """The strength of the facts' values: mean ‖W k‖ divided by the unedited model's mean, largest layer.

    Measured on facts of the batch and older ones, at the subject's last token.
    """
    editor = context.editor
    facts = [*context.written, *context.sample_facts(_FACTS)][-2 * _FACTS :]
    requests = [fact.request() for fact in facts if fact.object]
    if not requests:
        return Measurement(None, 0)
    shares = {}
    for layer in editor.layers:
        keys, _ = find_keys(editor.model, requests, layer, ())
        values = keys @ editor.model.weight(layer).to(keys.dtype).T
        shares[str(layer)] = float(values.norm(dim=1).mean()) / editor.statistics.anchors[layer]
    return Measurement(max(shares.values()), len(requests), {"layers": shares})


def measure_capacity(context: ProbeContext) -> Measurement:
    """The number of facts divided by the width of the edited projections, which bounds independent keys."""
    width = min(context.editor.model.weight(layer).shape[1] for layer in context.editor.layers)
    facts = len(context.written) + len(context.older)
    return Measurement(facts / width, facts, {"width": width})


def _weights(context: ProbeContext) -> dict[int, torch.Tensor]:
    """The edited weights as they are now, in fp32."""
    editor = context.editor
    return {layer: editor.model.weight(layer).detach().float().clone() for layer in editor.layers}


def _keep(place: dict[int, torch.Tensor], layer: int) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor):
            place[layer] = hidden.float()

    return hook


DELTA = Probe("delta_ratio", 1, measure_delta, lambda watch: watch.delta_ceiling, ceiling=True)
SPECTRAL = Probe("spectral_ratio", 1, measure_spectral, lambda watch: watch.spectral_ceiling, ceiling=True)
STREAM = Probe("stream_growth", 1, measure_stream, lambda watch: watch.stream_ceiling, ceiling=True)
VALUES = Probe("value_norm", 1, measure_values, lambda watch: watch.value_ceiling, ceiling=True)
CAPACITY = Probe("capacity_used", 1, measure_capacity, lambda watch: watch.capacity_ceiling, ceiling=True)
