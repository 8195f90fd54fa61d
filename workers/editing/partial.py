"""A decoder run in parts: the layers up to the edited one once, those above it as often as is needed.

The model's own forward does the work, so positions, norms and head are its own; the layers of the other part
are stepped over meanwhile. Columns before the anchor never change while a target is sought: what they
give to attention is computed once and kept.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from workers.editing.model import EditableModel
from workers.editing.prompts import Layout


class PrefixCache:
    """Keys and values of attention for the columns before the anchor, layer by layer.

    Takes the place of a Hugging Face cache: while ``recording`` it keeps what each layer computes; afterwards
    it puts that before a layer's own and keeps nothing, so that one cache serves any number of passes.
    """

    def __init__(self, kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        self.recording = kept is None
        self._kept = kept if kept is not None else {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention calls: keys and values [rows, heads, columns, width] of this pass."""
        if self.recording:
            self._kept[layer] = (keys.detach(), values.detach())
        if self.recording or layer not in self._kept:
            return keys, values
        before_keys, before_values = self._kept[layer]
        return torch.cat([before_keys, keys], dim=2), torch.cat([before_values, values], dim=2)

    def rows(self, index: torch.Tensor) -> "PrefixCache":
        """A finished cache of some of the rows."""
        return PrefixCache({layer: (k[index], v[index]) for layer, (k, v) in self._kept.items()})

    def finished(self) -> "PrefixCache":
        """The same, no longer recording."""
        return PrefixCache(self._kept)

    def get_seq_length(self, _layer: int = 0) -> int:
        """Columns that stand before those of the pass."""
        return 0 if self.recording or not self._kept else next(iter(self._kept.values()))[0].shape[2]


@dataclass(frozen=True)
class Lower:
    """What the layers up to the edited one make of a layout.

    keys [rows, d_in] and values [rows, d_out]: input and output of the projection in the anchor column;
    hidden [rows, T − anchor, d_model]: the layer's output from the anchor on; cache: the columns before it.
    """

    keys: torch.Tensor
    values: torch.Tensor
    hidden: torch.Tensor
    cache: PrefixCache

    def rows(self, index: torch.Tensor) -> Self:
        """The same for some of the rows."""
        return type(self)(self.keys[index], self.values[index], self.hidden[index], self.cache.rows(index))


@torch.no_grad()
def run_lower(model: EditableModel, layout: Layout, layer: int, *, cached: bool = True) -> Lower:
    """Run whole rows up to ``layer``; when ``cached``, the columns before the anchor through all above it."""
    seen: list[torch.Tensor] = []

    def projected(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.extend((inputs[0][:, layout.anchor].detach(), output[:, layout.anchor].detach()))

    def left(_module: nn.Module, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).detach())

    handles = (
        model.projection(layer).register_forward_hook(projected),
        model.layers[layer].register_forward_hook(left),
    )
    bias = attention_bias(model, layout, start=0)
    try:
        with _stepped_over(model, range(layer + 1, model.n_layers), None):
            model.decoder(
                input_ids=layout.ids, attention_mask=bias, position_ids=layout.positions, use_cache=False
            )
    finally:
        for handle in handles:
            handle.remove()
    keys, values, hidden = seen
    cache = PrefixCache()
    if layout.anchor and cached:
        before = slice(0, layout.anchor)
        run_above(
            model, hidden[:, before], bias[:, :, before, before], layout.positions[:, before], layer, cache
        )
    return Lower(keys, values, hidden[:, layout.anchor :], cache.finished())


def run_upper(
    model: EditableModel, layout: Layout, layer: int, lower: Lower, delta: torch.Tensor | None = None
) -> torch.Tensor:
    """Normed hidden states [rows, T − anchor, d_model] of the columns from the anchor on.

    ``delta`` [rows, d_out] is added to the projection's output in the anchor column; gradients reach it.
    """
    hidden = lower.hidden
    if delta is not None:
        first = stream_with(model, layer, hidden[:, 0], lower.values, delta.to(hidden.dtype))
        hidden = torch.cat([first[:, None], hidden[:, 1:]], dim=1)
    bias = attention_bias(model, layout, start=layout.anchor)
    return run_above(model, hidden, bias, layout.positions[:, layout.anchor :], layer, lower.cache)


def stream_with(
    model: EditableModel, layer: int, hidden: torch.Tensor, said: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    """The layer's output [rows, d_model] where its projection says ``said`` + ``delta``, not ``said``."""
    post = model.post_norm(layer)
    if post is None:
        return hidden + delta
    changed: torch.Tensor = hidden + post(said + delta) - post(said)
    return changed


@torch.no_grad()
def reach_of(model: EditableModel, layer: int, hidden: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
    """‖δ‖ [rows] that moves the residual stream by about its own norm.

    Without a norm behind the projection this is ‖h‖; with one, a first-order estimate.
    """
    reach: torch.Tensor = hidden.norm(dim=1)
    post = model.post_norm(layer)
    if post is not None:
        reach = reach * said.norm(dim=1) / post(said).norm(dim=1).clamp(min=1e-12)
    return reach


def run_above(
    model: EditableModel,
    hidden: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    layer: int,
    cache: PrefixCache,
) -> torch.Tensor:
    """The layers above ``layer`` and the final norm, on ``hidden`` in place of the layer's output."""
    with _stepped_over(model, range(layer + 1), hidden):
        result = model.decoder(
            inputs_embeds=hidden,
            attention_mask=bias,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    normed: torch.Tensor = result.last_hidden_state
    return normed


def attention_bias(model: EditableModel, layout: Layout, start: int) -> torch.Tensor:
    """Additive causal mask [rows, 1, T − start, T]; padding sees itself, so that no row is all masked.

    Hugging Face decoders take a mask of four dimensions as it is. Windows of attention are left out of it:
    ``EditableModel.max_tokens`` is at most the window.
    """
    columns = torch.arange(layout.ids.shape[1], device=model.device)
    queries = columns[start:, None]
    allowed = (columns[None, :] <= queries) & layout.mask[:, None, :]
    allowed = (allowed | (columns[None, :] == queries))[:, None]
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(allowed.shape, dtype=model.dtype, device=model.device).masked_fill(~allowed, lowest)


@contextmanager
def _stepped_over(model: EditableModel, which: Iterable[int], given: torch.Tensor | None) -> Iterator[None]:
    """Layers that hand on ``given``, or what they are given, for the length of a block."""
    tuples = model.architecture.tuples

    def hand_on(hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor | tuple[torch.Tensor]:
        result = hidden if given is None else given
        return (result,) if tuples else result

    chosen = [vars(model.layers[index]) for index in which]
    before = [attributes.get("forward") for attributes in chosen]  # a device map may have put one there
    for attributes in chosen:
        attributes["forward"] = hand_on
    try:
        yield
    finally:
        for attributes, forward in zip(chosen, before, strict=True):
            if forward is None:
                del attributes["forward"]
            else:
                attributes["forward"] = forward
