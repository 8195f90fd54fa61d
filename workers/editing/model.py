"""A Hugging Face causal LM with its editable parts, greedy decoding and likelihoods."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from daemon.core.errors import ModelError
from workers.editing.architectures import Architecture, architecture_of
from workers.editing.prompts import joined

_ROWS = 32  # prompts in one pass of decoding and likelihoods: memory for logits grows with them
_MAX_TOKENS = 256  # of prefix, prompt and target: a fact is a sentence
_LENGTH_LIMITS = ("max_position_embeddings", "sliding_window")


class EditableModel:
    """A model, its tokenizer and the parts that an edit needs, on the model's own device and dtype.

    precise: dtype of sums and targets, fp32 or a wider one of the model; max_tokens: longest text of an edit.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.lm = model.eval().requires_grad_(requires_grad=False)
        self.tokenizer = tokenizer
        self.architecture: Architecture = architecture_of(model.config.model_type)
        self.decoder = _module(model, self.architecture.decoder)
        self.layers = list(_module(self.decoder, self.architecture.layers).children())
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.precise = torch.promote_types(self.dtype, torch.float32)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._text_config = model.config.get_text_config()
        self.width = int(self._text_config.hidden_size)
        limits = (getattr(self._text_config, name, None) for name in _LENGTH_LIMITS)
        self.max_tokens = min([_MAX_TOKENS, *(limit for limit in limits if limit)])

    @property
    def n_layers(self) -> int:
        """The number of decoder layers."""
        return len(self.layers)

    def projection(self, layer: int) -> nn.Module:
        """Return the linear map that is edited in a layer."""
        return _module(self.layers[layer], self.architecture.projection)

    def post_norm(self, layer: int) -> nn.Module | None:
        """Return the norm between projection and residual stream, in families that have one."""
        name = self.architecture.post_norm
        return _module(self.layers[layer], name) if name else None

    def tensor_name(self, layer: int) -> str:
        """Return the name of a layer's edited weight in the state dict."""
        row = self.architecture
        return f"{row.decoder}.{row.layers}.{layer}.{row.projection}.weight"

    def weight(self, layer: int) -> torch.Tensor:
        """Return the edited weight as W [d_out, d_in] with out = W k, whatever the model's own layout."""
        stored = self.stored_weight(layer)
        return stored.t() if self.architecture.transposed else stored

    def stored_weight(self, layer: int) -> torch.Tensor:
        """Return the edited weight as the state dict has it."""
        return self.projection(layer).get_parameter("weight")

    @torch.no_grad()
    def set_weight(self, layer: int, weight: torch.Tensor) -> None:
        """Round W [d_out, d_in] to the model's dtype and put it into the model."""
        self.weight(layer).copy_(weight)

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """Return logits [..., vocabulary], fp32 or better, of normed hidden states [..., d_model]."""
        logits: torch.Tensor = self.lm.get_output_embeddings()(normed).to(self.precise)
        cap = getattr(self._text_config, "final_logit_softcapping", None)
        return logits if not cap else cap * torch.tanh(logits / cap)

    # -- answers and likelihoods --------------------------------------------------------------------------

    @torch.no_grad()
    def greedy(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """Return the greedy continuation of each prompt, ended by EOS, a line break or ``max_new_tokens``."""
        answers: list[str] = []
        for start in range(0, len(prompts), _ROWS):
            batch = self.tokenizer(
                list(prompts[start : start + _ROWS]), padding=True, padding_side="left", return_tensors="pt"
            ).to(self.device)
            tokens = self.lm.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.pad,
            )
            new = tokens[:, batch["input_ids"].shape[1] :]
            answers += [
                _first_line(text) for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)
            ]
        return answers

    def target_nll(self, prompts: Sequence[str], targets: Sequence[str]) -> torch.Tensor:
        """Return the mean negative log-likelihood [n] in nats of a token of each target after its prompt."""
        return self.target_scores(prompts, targets)[0]

    @torch.no_grad()
    def target_scores(
        self, prompts: Sequence[str], targets: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``target_nll`` [n], and [n] bool whether every target token is the most probable one."""
        texts = [joined(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
        means: list[torch.Tensor] = []
        exact: list[torch.Tensor] = []
        for start in range(0, len(texts), _ROWS):
            nll, right, spans = self._nll(texts[start : start + _ROWS])
            lengths = torch.tensor([len(prompt) for prompt in prompts[start : start + _ROWS]])
            wanted = spans[:, :, 1] > lengths[:, None]
            wanted = wanted[:, 1:].to(nll.device) & nll.isfinite()
            means.append((nll.nan_to_num() * wanted).sum(1) / wanted.sum(1).clamp(min=1))
            exact.append((right | ~wanted).all(1))
        if not means:
            return torch.empty(0), torch.empty(0, dtype=torch.bool)
        return torch.cat(means).cpu(), torch.cat(exact).cpu()

    @torch.no_grad()
    def token_nll(self, texts: Sequence[str]) -> float:
        """Return the mean negative log-likelihood in nats of a token of the texts but their first ones."""
        total, count = 0.0, 0
        for start in range(0, len(texts), _ROWS):
            nll, _, _ = self._nll(texts[start : start + _ROWS])
            kept = nll[nll.isfinite()]
            total, count = total + float(kept.double().sum()), count + kept.numel()
        return total / max(count, 1)

    def _nll(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return NLL and argmax bool [n, T − 1] of the tokens after the first, and all spans [n, T, 2]."""
        batch = self.tokenizer(
            list(texts), padding=True, padding_side="right", return_offsets_mapping=True, return_tensors="pt"
        )
        spans = batch.pop("offset_mapping")
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        logits = self.lm(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].to(self.precise)
        nll = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        right = logits.argmax(-1) == ids[:, 1:]
        spans = spans * batch["attention_mask"][:, :, None]
        return nll.masked_fill(mask[:, 1:] == 0, float("nan")), right, spans


def load_model(path: Path, device: str = "auto", dtype: str = "auto") -> EditableModel:
    """Load a Hugging Face folder from safetensors only, running no code of it and going to no network.

    Raises ModelError if it cannot be read or the architecture is not known.
    """
    place = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    kind: str | torch.dtype = "auto" if dtype == "auto" else getattr(torch, dtype)
    options = {"local_files_only": True, "trust_remote_code": False}
    disable_progress_bar()  # loading takes a moment, and commands have bars of their own
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=kind, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model can be loaded from {path}: {error}", hint="errata prepare") from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {path} has no offsets", hint="convert it to a fast tokenizer")
    return EditableModel(model.to(place), tokenizer)


def _module(root: nn.Module, path: str) -> nn.Module:
    module: nn.Module = reduce(getattr, path.split("."), root)
    return module


def _first_line(text: str) -> str:
    """Return the text up to its first line break, skipping leading blank lines."""
    return text.lstrip("\n").split("\n", 1)[0]
