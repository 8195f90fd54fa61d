"""Run a decoder in two parts, the layers up to the edited one once and those above it repeatedly.

The model's own forward does the work, so positions, norms and head are its own, and the layers of the other
part are skipped. Columns before the anchor do not change during a search, so their attention keys and values
are computed once and cached. The columns from the anchors on are packed into one row without padding, for a
pass of few columns takes as long as one of many.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import nn

from workers.editing.model import EditableModel
from workers.editing.prompts import IGNORED, Packing

_FRONT = 8  # cached columns that cost as much as one new column, since only attention reads them
_SPARE = 0.25  # a chunk may exceed `columns` by 25%, so that a small rest makes no chunk of its own

Hook = tuple[nn.Module, Callable[..., object]]
"""A module and what is called with it, its inputs and its output after its forward."""


class PrefixCache:
    """A Hugging Face cache of attention's keys and values for the columns before the anchor.

    While ``recording`` it keeps what each layer computes. Afterwards it puts that before a layer's own keys
    and values and keeps nothing.
    """

    def __init__(self, kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None) -> None:
        self.recording = kept is None
        self.kept = kept if kept is not None else {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values [rows, heads, columns, width] with the cached ones before this pass's."""
        if self.recording:
            self.kept[layer] = (keys.detach(), values.detach())
        if self.recording or layer not in self.kept:
            return keys, values
        before_keys, before_values = self.kept[layer]
        return torch.cat([before_keys, keys], dim=2), torch.cat([before_values, values], dim=2)

    def finished(self) -> "PrefixCache":
        """Return a cache with the same contents that records no more."""
        return PrefixCache(self.kept)

    def get_seq_length(self, _layer: int = 0) -> int:
        """Return the number of cached columns."""
        return 0 if self.recording or not self.kept else next(iter(self.kept.values()))[0].shape[2]


@dataclass(frozen=True)
class Packed:
    """Packed texts at the edited layer, with the columns from the anchors on and a cache of those before.

    hidden [N, d_model]: the edited layer's output; positions, row, targets, sees as in ``Packing``;
    values [rows, d_out]: its projection's at the anchors; before {layer: keys, values [P, heads, width]}.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    row: torch.Tensor
    targets: torch.Tensor
    values: torch.Tensor
    sees: torch.Tensor
    before: dict[int, tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, in order."""
        starts = accumulate((len(part.values) for part in parts), initial=0)
        layers = sorted({layer for part in parts for layer in part.before})
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat([part.row + start for part, start in zip(parts, starts, strict=False)]),
            torch.cat([part.targets for part in parts]),
            torch.cat([part.values for part in parts]),
            torch.block_diag(*(part.sees for part in parts)),  # type: ignore[no-untyped-call]
            {
                layer: (
                    torch.cat([part.before[layer][0] for part in parts if layer in part.before]),
                    torch.cat([part.before[layer][1] for part in parts if layer in part.before]),
                )
                for layer in layers
            },
        )

    def rows(self, index: torch.Tensor) -> Self:
        """Return the rows of an ascending index."""
        number = torch.full((len(self.values),), -1, device=index.device)
        number[index] = torch.arange(len(index), device=index.device)
        own, sees = number[self.row] >= 0, self.sees[index]
        front = sees.any(0)
        return type(self)(
            self.hidden[own],
            self.positions[own],
            number[self.row[own]],
            self.targets[own],
            self.values[index],
            sees[:, front],
            {layer: (k[front], v[front]) for layer, (k, v) in self.before.items()},
        )

    def parts(self, index: torch.Tensor, columns: int) -> Iterator[torch.Tensor]:
        """Cut an index [n] into parts of about ``columns`` new and up to 8 times as many cached columns."""
        own = torch.bincount(self.row, minlength=len(self.values))
        weight = torch.maximum(own, self.sees.sum(1) / _FRONT)[index].double()
        count = max(1, math.ceil(float(weight.sum()) / columns - _SPARE))
        part = ((weight.cumsum(0) - weight / 2) * count / weight.sum()).long()
        yield from (chosen for number in range(count) if len(chosen := index[part == number]))

    @property
    def first(self) -> torch.Tensor:
        """The column [rows] in which each row begins, its anchor."""
        return torch.searchsorted(self.row, torch.arange(len(self.values), device=self.row.device))

    @property
    def last(self) -> torch.Tensor:
        """The column [rows] in which each row ends."""
        numbers = torch.arange(len(self.values), device=self.row.device)
        return torch.searchsorted(self.row, numbers, right=True) - 1

    def wanted(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the columns [n] that predict a target token, and these tokens [n]."""
        at = (self.targets != IGNORED).nonzero()[:, 0]
        return at, self.targets[at]


@torch.no_grad()
def run_lower(
    model: EditableModel, packing: Packing, layer: int, *, cached: bool = True
) -> tuple[torch.Tensor, Packed]:
    """Run texts up to ``layer`` and, if ``cached``, the columns before the anchors through all above it.

    Returns the keys [texts, d_in], the projection's inputs at the anchors, and the packed rest.
    """
    seen: list[torch.Tensor] = []
    front = len(packing.owner)
    anchors = front + torch.searchsorted(
        packing.row, torch.arange(len(packing.sees), device=packing.row.device)
    )

    def projected(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.extend((inputs[0][0, anchors].detach(), output[0, anchors].detach()))

    def left(_module: nn.Module, _inputs: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen.append(first_of(output)[0].detach())

    hooks = hooked((model.projection(layer), projected), (model.layers[layer], left))
    bias = torch.cat([_front_sees(packing), _own_sees(packing.row, packing.sees)])
    bias = additive(bias, model.dtype)
    with hooks, stepped_over(model, range(layer + 1, model.n_layers), None):
        model.decoder(
            input_ids=packing.ids[None],
            attention_mask=bias[None, None],
            position_ids=packing.positions[None],
            use_cache=False,
        )
    keys, values, hidden = seen
    cache = PrefixCache()
    if front and cached:
        positions = packing.positions[None, :front]
        run_above(model, hidden[None, :front], bias[None, None, :front, :front], positions, layer, cache)
    before = {n: (k[0].transpose(0, 1), v[0].transpose(0, 1)) for n, (k, v) in cache.kept.items()}
    own = slice(front, None)
    return keys, Packed(
        hidden[own], packing.positions[own], packing.row, packing.targets, values, packing.sees, before
    )


def run_upper(
    model: EditableModel, packed: Packed, layer: int, delta: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the normed hidden states [N, d_model] of the packed columns.

    ``delta`` [rows, d_out] is added to the projection's output at the anchors; gradients reach it.
    """
    hidden = packed.hidden
    if delta is not None:
        first = packed.first
        moved = stream_with(model, layer, hidden[first], packed.values, delta.to(hidden.dtype))
        hidden = hidden.index_copy(0, first, moved)
    before = {n: (k.transpose(0, 1)[None], v.transpose(0, 1)[None]) for n, (k, v) in packed.before.items()}
    bias = additive(_own_sees(packed.row, packed.sees), model.dtype)
    return run_above(
        model, hidden[None], bias[None, None], packed.positions[None], layer, PrefixCache(before)
    )[0]


def stream_with(
    model: EditableModel, layer: int, hidden: torch.Tensor, output: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    """Return a layer's output ``hidden`` [rows, d_model] with ``delta`` added to ``output`` [rows, d_out]."""
    post = model.post_norm(layer)
    if post is None:
        return hidden + delta
    changed: torch.Tensor = hidden + post(output + delta) - post(output)
    return changed


@torch.no_grad()
def reach_of(model: EditableModel, layer: int, hidden: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return the ‖δ‖ [rows] that moves the stream by its norm: ‖h‖, or with a post-norm an estimate of it."""
    reach: torch.Tensor = hidden.norm(dim=1)
    post = model.post_norm(layer)
    if post is not None:
        reach = reach * output.norm(dim=1) / post(output).norm(dim=1).clamp(min=1e-12)
    return reach


def run_above(
    model: EditableModel,
    hidden: torch.Tensor,
    bias: torch.Tensor,
    positions: torch.Tensor,
    layer: int,
    cache: PrefixCache,
) -> torch.Tensor:
    """Run the layers above ``layer`` and the final norm on ``hidden`` in place of the layer's output."""
    with stepped_over(model, range(layer + 1), hidden):
        result = model.decoder(
            inputs_embeds=hidden,
            attention_mask=bias,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    normed: torch.Tensor = result.last_hidden_state
    return normed


def _front_sees(packing: Packing) -> torch.Tensor:
    """Return which columns those before the anchors attend to [P, P + N] bool."""
    own = packing.sees[packing.owner].tril()
    return nn.functional.pad(own, (0, len(packing.row)))


def _own_sees(row: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
    """Return which columns the others attend to [N, P + N] bool: their text up to themselves."""
    return torch.cat([sees[row], (row[:, None] == row).tril()], dim=1)


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive mask of attention: 0 where allowed, else the dtype's lowest number."""
    nothing = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return nothing.masked_fill(~allowed, torch.finfo(dtype).min)


def first_of(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the hidden states of what a layer returns, a tensor or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def hooked(*hooks: Hook) -> Iterator[None]:
    """Call hooks with (module, inputs, output) after their modules' forward, for the length of a block."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def stepped_over(model: EditableModel, which: Iterable[int], given: torch.Tensor | None) -> Iterator[None]:
    """Make some layers return ``given``, or their input if it is None, for the length of a block."""
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
