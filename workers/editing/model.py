"""A Hugging Face causal LM as the editor sees it: weights, partial forward, greedy decoding, likelihoods."""

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from daemon.core.errors import ModelError
from workers.editing.architectures import Architecture, architecture_of
from workers.editing.prompts import Layout

_ROWS = 32  # prompts in one forward pass of greedy decoding and likelihoods


class PrefixCache:
    """Keys and values of attention for the columns before the anchor, layer by layer.

    Takes the place of a Hugging Face cache: while ``recording`` it keeps the first ``length`` columns of what
    each layer computes; afterwards it puts them before a layer's own, and keeps nothing.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.recording = True
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention calls: keys and values [rows, heads, columns, width] of this pass."""
        if self.recording:
            cut = slice(0, self.length)
            self._kept[layer] = (keys[:, :, cut].detach(), values[:, :, cut].detach())
            return keys, values
        before_keys, before_values = self._kept[layer]
        return torch.cat([before_keys, keys], dim=2), torch.cat([before_values, values], dim=2)

    def rows(self, index: torch.Tensor) -> "PrefixCache":
        """The same for some of the rows."""
        chosen = PrefixCache(self.length)
        chosen.recording = False
        chosen._kept = {layer: (k[index], v[index]) for layer, (k, v) in self._kept.items()}
        return chosen

    def get_seq_length(self, _layer: int = 0) -> int:
        """Columns that stand before those of the pass."""
        return 0 if self.recording else self.length


class EditableModel:
    """The model, its tokenizer, and where its parts are; device and dtype are the model's own."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.lm = model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = tokenizer
        self.architecture: Architecture = architecture_of(model.config.model_type)
        self.layers: list[nn.Module] = list(_module(model, self.architecture.layers).children())
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    @property
    def n_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layers)

    def projection(self, layer: int) -> nn.Module:
        """The linear map that is edited in a layer."""
        return _module(self.layers[layer], self.architecture.projection)

    def tensor_name(self, layer: int) -> str:
        """The name of the edited weight in the model's state dict."""
        return f"{self.architecture.layers}.{layer}.{self.architecture.projection}.weight"

    def weight(self, layer: int) -> torch.Tensor:
        """The edited weight as W [d_out, d_in] with out = W k, whatever the model's own layout."""
        stored = self.stored_weight(layer)
        return stored.t() if self.architecture.transposed else stored

    def stored_weight(self, layer: int) -> torch.Tensor:
        """The edited weight as the state dict has it."""
        return self.projection(layer).get_parameter("weight")

    @torch.no_grad()
    def set_weight(self, layer: int, weight: torch.Tensor) -> None:
        """Round W [d_out, d_in] to the model's dtype and put it into the model."""
        self.weight(layer).copy_(weight)

    # -- forward in parts -----------------------------------------------------------------------------

    @torch.no_grad()
    def lower(self, layout: Layout, layer: int) -> tuple[torch.Tensor, torch.Tensor, PrefixCache]:
        """One pass over whole rows.

        Returns the keys at the anchor [rows, d_in] and the output of ``layer`` from the anchor on
        [rows, T − anchor, d_model], and the cache of all columns before the anchor.
        """
        cache = PrefixCache(layout.anchor)
        hidden = _module(self.lm, self.architecture.embedding)(layout.ids)
        keys: list[torch.Tensor] = []

        def take(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            keys.append(inputs[0][:, layout.anchor].detach())

        handle = self.projection(layer).register_forward_pre_hook(take)
        try:
            bias = self._bias(layout, start=0)
            hidden = self._layers(hidden, range(layer + 1), layout.positions, bias, cache)
            output = hidden[:, layout.anchor :]
            if layout.anchor:  # the layers above are needed for the prefix alone
                before = slice(0, layout.anchor)
                prefix_bias = bias[:, :, before, before]
                self._layers(
                    hidden[:, before],
                    range(layer + 1, self.n_layers),
                    layout.positions[:, before],
                    prefix_bias,
                    cache,
                )
            else:
                self._layers(hidden, range(layer + 1, self.n_layers), layout.positions, bias, cache)
        finally:
            handle.remove()
        cache.recording = False
        return keys[0], output, cache

    def upper(self, hidden: torch.Tensor, layout: Layout, layer: int, cache: PrefixCache) -> torch.Tensor:
        """The layers above ``layer`` and the final norm, for the columns from the anchor on.

        hidden [rows, T − anchor, d_model] is the output of ``layer``; gradients flow through it.
        """
        bias = self._bias(layout, start=layout.anchor)
        positions = layout.positions[:, layout.anchor :]
        hidden = self._layers(hidden, range(layer + 1, self.n_layers), positions, bias, cache)
        normed: torch.Tensor = _module(self.lm, self.architecture.norm)(hidden)
        return normed

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] in fp32 of normed hidden states [..., d_model]."""
        logits: torch.Tensor = self.lm.get_output_embeddings()(normed)
        return logits.float()

    def _layers(
        self,
        hidden: torch.Tensor,
        which: range,
        positions: torch.Tensor,
        bias: torch.Tensor,
        cache: PrefixCache,
    ) -> torch.Tensor:
        rotary = _module(self.lm, self.architecture.rotary)(hidden, positions)
        for index in which:
            result = self.layers[index](
                hidden,
                attention_mask=bias,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                position_embeddings=rotary,
            )
            hidden = result[0] if isinstance(result, tuple) else result
        return hidden

    def _bias(self, layout: Layout, start: int) -> torch.Tensor:
        """Additive causal mask [rows, 1, T − start, T]; padding sees itself so that no row is all masked."""
        width = layout.ids.shape[1]
        columns = torch.arange(width, device=self.device)
        queries = columns[start:, None]
        allowed = (columns[None, :] <= queries) & layout.mask[:, None, :]
        allowed = (allowed | (columns[None, :] == queries))[:, None]
        lowest = torch.finfo(self.dtype).min
        return torch.zeros(allowed.shape, dtype=self.dtype, device=self.device).masked_fill(~allowed, lowest)

    # -- what the model says --------------------------------------------------------------------------

    @torch.no_grad()
    def greedy(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """The greedy continuation of each prompt, ended by EOS, a line break or ``max_new_tokens``."""
        answers: list[str] = []
        for start in range(0, len(prompts), _ROWS):
            batch = self.tokenizer(
                list(prompts[start : start + _ROWS]), padding=True, padding_side="left", return_tensors="pt"
            ).to(self.device)
            found = self.lm.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.pad,
            )
            new = found[:, batch["input_ids"].shape[1] :]
            answers += [
                _first_line(text) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)
            ]
        return answers

    @torch.no_grad()
    def target_nll(self, prompts: Sequence[str], targets: Sequence[str]) -> torch.Tensor:
        """Mean negative log-likelihood [n] in nats of a token of each target after its prompt."""
        texts = [f"{prompt} {target.strip()}" for prompt, target in zip(prompts, targets, strict=True)]
        found: list[torch.Tensor] = []
        for start in range(0, len(texts), _ROWS):
            nll, spans = self._nll(texts[start : start + _ROWS])
            lengths = torch.tensor([len(prompt) for prompt in prompts[start : start + _ROWS]])
            wanted = spans[:, :, 1] > lengths[:, None]
            wanted = wanted[:, 1:].to(nll.device) & nll.isfinite()
            found.append((nll.nan_to_num() * wanted).sum(1) / wanted.sum(1).clamp(min=1))
        return torch.cat(found).cpu() if found else torch.empty(0)

    @torch.no_grad()
    def token_nll(self, texts: Sequence[str]) -> float:
        """Mean negative log-likelihood in nats of a token of the texts, their first tokens left out."""
        total, count = 0.0, 0
        for start in range(0, len(texts), _ROWS):
            nll, _ = self._nll(texts[start : start + _ROWS])
            kept = nll[nll.isfinite()]
            total, count = total + float(kept.double().sum()), count + kept.numel()
        return total / max(count, 1)

    def _nll(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """NLL [n, T − 1] of every token but the first, NaN at padding, and the character spans [n, T, 2]."""
        batch = self.tokenizer(
            list(texts), padding=True, padding_side="right", return_offsets_mapping=True, return_tensors="pt"
        )
        spans = batch.pop("offset_mapping")
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        logits = self.lm(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        nll = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return nll.masked_fill(mask[:, 1:] == 0, float("nan")), spans * batch["attention_mask"][:, :, None]


def load_model(path: Path, device: str = "auto", dtype: str = "auto") -> EditableModel:
    """Load a Hugging Face folder: safetensors only, no code of the folder's own, nothing from the network.

    Raises:
        ModelError: the folder cannot be read or the architecture is not known.
    """
    place = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    kind: str | torch.dtype = "auto" if dtype == "auto" else getattr(torch, dtype)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=kind, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model can be loaded from {path}: {error}", hint="errata prepare") from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {path} has no offsets", hint="convert it to a fast tokenizer")
    return EditableModel(model.to(place), tokenizer)


def sub_batches(total: int, size: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` with slices of at most ``size``."""
    for start in range(0, total, size):
        work(slice(start, min(start + size, total)))


def _module(root: nn.Module, path: str) -> nn.Module:
    found: nn.Module = reduce(getattr, path.split("."), root)
    return found


def _first_line(text: str) -> str:
    """The text up to its first line break, leading blank lines skipped."""
    return text.lstrip("\n").split("\n", 1)[0]
