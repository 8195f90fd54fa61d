"""Causal tracing finds the layers that recover the answer once the subject's tokens are noise.

ROME (arXiv 2202.05262, section 2.1): p is the probability of the right answer, p* after noise of 3σ was added
to the embeddings of the subject's tokens, σ being their standard deviation over the facts. With one state of
the clean run restored at the subject's last token it is p': either the output of one layer, or the MLP
outputs of a window of layers. A layer's share is the mean of p' − p* over facts and noises, as a part of the
mean of p − p*. The first layer's MLP reads little but the token itself, so its output tells the upper layers
which token the noise hid. So it is no part of any window.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from daemon.core.errors import ModelError
from workers.editing.model import EditableModel
from workers.editing.partial import Hook, PrefixCache, first_of, hooked, run_above
from workers.editing.prompts import EditRequest, encode_fact, joined
from workers.editing.statistics import Progress
from workers.locate.facts import KnownFact
from workers.locate.layout import Layout, attention_bias, lay_out

NOISE = 3.0
"""Noise in standard deviations of the subjects' embeddings (ROME)."""
_ROWS = 64  # texts in one pass, noisy copies of some facts: memory grows with them
_LEAST = 1e-3  # share of the answers' probability that noise must take: less may be rounding alone


@dataclass(frozen=True)
class Trace:
    """Shares of clean − corrupted that layers recover, ``hidden`` and ``mlp`` [n_layers]."""

    hidden: list[float]
    mlp: list[float]
    clean: float  # mean probability of the answer
    corrupted: float  # the same under noise
    window: int  # number of layers whose MLP outputs are restored together


def trace(
    model: EditableModel,
    facts: Sequence[KnownFact],
    noises: int,
    seed: int,
    progress: Progress | None = None,
    noise: float = NOISE,
) -> Trace:
    """Trace the facts, each under ``noises`` draws of noise.

    Raises ModelError if noise hardly lowers the answers' probability, EditError if a prompt does not fit.
    """
    sigma = noise * subject_deviation(model, facts)
    generator = torch.Generator().manual_seed(seed)
    size = max(1, _ROWS // noises)
    total = torch.zeros(2, model.n_layers, dtype=torch.float64)
    clean = corrupted = 0.0
    for start in range(0, len(facts), size):
        some = facts[start : start + size]
        traced = Traced(model, some, noises, sigma, generator)
        clean += float(traced.clean.sum())
        corrupted += float(traced.corrupted.sum()) / noises
        for layer in range(model.n_layers):
            total[0, layer] += traced.with_hidden(layer).sum() / noises
            total[1, layer] += traced.with_mlp(window_at(layer, model.n_layers)).sum() / noises
            if progress is not None:
                done = start * model.n_layers + (layer + 1) * len(some)
                progress(done, len(facts) * model.n_layers)
    if not clean - corrupted > _LEAST * clean:
        raise ModelError("noise on the subjects does not lower the answers' probability", hint="more facts")
    shares = (total - corrupted) / (clean - corrupted)
    count = len(facts)
    width = _reach(model.n_layers) * 2 + 1
    return Trace(shares[0].tolist(), shares[1].tolist(), clean / count, corrupted / count, width)


def window_at(layer: int, n_layers: int) -> range:
    """Return the layers whose MLP outputs are restored with this one's, about a sixth of the model."""
    if layer == 0:
        return range(1)
    return range(max(1, layer - _reach(n_layers)), min(n_layers, layer + _reach(n_layers) + 1))


def _reach(n_layers: int) -> int:
    return n_layers // 12


@torch.no_grad()
def subject_deviation(model: EditableModel, facts: Sequence[KnownFact]) -> float:
    """Return σ, the standard deviation of the embeddings of the subjects' tokens over all numbers."""
    embed = model.lm.get_input_embeddings()
    subjects = (_subject(model, fact) for fact in facts)
    embedded = [embed(torch.tensor(ids, device=model.device)[at]) for ids, at in subjects]
    return float(torch.cat(embedded).double().std())


def _subject(model: EditableModel, fact: KnownFact) -> tuple[list[int], list[int]]:
    """Return the tokens of prompt and answer and the subject's columns among them."""
    start = fact.prompt.find(fact.subject)
    end = start + len(fact.subject)
    encoded = model.tokenizer(joined(fact.prompt, fact.answer), return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    return encoded["input_ids"], [i for i, (a, b) in enumerate(spans) if a < end and b > max(a, start)]


@dataclass(frozen=True)
class _Run:
    """States of one pass."""

    hidden: dict[int, torch.Tensor]  # [rows, T − anchor, d_model] by layer, the embeddings as layer −1
    values: dict[int, torch.Tensor]  # [rows, d_out] by layer: outputs of the projections at the anchor
    cache: PrefixCache  # attention's keys and values before the anchor


class Traced:
    """Some facts run clean and under noise, in rows of facts × noises, a fact's noises together.

    clean [facts], corrupted [rows]: the probability of the whole answer, fp64 on the CPU.
    """

    def __init__(
        self,
        model: EditableModel,
        facts: Sequence[KnownFact],
        noises: int,
        sigma: float,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        requests = [EditRequest(fact.subject, fact.subject, fact.prompt, fact.answer) for fact in facts]
        encoded = [encode_fact(model.tokenizer, (), request, model.max_tokens)[0] for request in requests]
        layout = lay_out(encoded, model.pad, model.device)
        self.fact = torch.arange(len(facts), device=model.device).repeat_interleave(noises)
        self.layout = layout.rows(self.fact)
        embeddings = self._embed(layout)
        self._clean = self._run(layout, embeddings)
        self.clean = self._probability(layout, self._clean, model.n_layers - 1)
        noisy = embeddings[self.fact]
        for row, fact in enumerate(facts):
            shift = layout.anchor - encoded[row].anchor
            columns = [column + shift for column in _subject(model, fact)[1]]
            drawn = torch.randn(noises, len(columns), noisy.shape[2], generator=generator) * sigma
            rows = slice(row * noises, (row + 1) * noises)
            noisy[rows, columns] += drawn.to(noisy)
        self._noisy = self._run(self.layout, noisy)
        self.corrupted = self._probability(self.layout, self._noisy, model.n_layers - 1)

    def with_hidden(self, layer: int, columns: int = 1) -> torch.Tensor:
        """Return p' [rows] with the layer's clean output restored in some columns from the anchor on."""
        hidden = self._noisy.hidden[layer].clone()
        hidden[:, :columns] = self._clean.hidden[layer][self.fact, :columns]
        return self._probability(self.layout, self._noisy, layer, hidden)

    def with_mlp(self, window: Sequence[int]) -> torch.Tensor:
        """Return p' [rows] with these consecutive layers' clean MLP outputs restored at the anchor."""
        values = {layer: self._clean.values[layer][self.fact] for layer in window}
        with _outputs_at_anchor(self.model, values):
            return self._probability(self.layout, self._noisy, window[0] - 1)

    @torch.no_grad()
    def _embed(self, layout: Layout) -> torch.Tensor:
        embedded: torch.Tensor = self.model.lm.get_input_embeddings()(layout.ids)
        return embedded

    @torch.no_grad()
    def _run(self, layout: Layout, embeddings: torch.Tensor) -> _Run:
        """Run whole rows for the states from the anchor on, and the columns before it for the cache."""
        model, anchor, before = self.model, layout.anchor, slice(0, layout.anchor)
        bias, cache = attention_bias(model, layout, start=0), PrefixCache()
        hidden, values = {-1: embeddings[:, anchor:]}, dict[int, torch.Tensor]()
        with _recorded(model, anchor, hidden, values):
            run_above(model, embeddings, bias, layout.positions, -1, PrefixCache())
        if anchor:
            positions = layout.positions[:, before]
            run_above(model, embeddings[:, before], bias[:, :, before, before], positions, -1, cache)
        return _Run(hidden, values, cache.finished())

    @torch.no_grad()
    def _probability(
        self, layout: Layout, run: _Run, layer: int, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the answers' probability [rows] with ``hidden``, or the run's own, as the layer's output."""
        model, anchor = self.model, layout.anchor
        normed = run_above(
            model,
            run.hidden[layer] if hidden is None else hidden,
            attention_bias(model, layout, start=anchor),
            layout.positions[:, anchor:],
            layer,
            run.cache,
        )
        at, tokens = layout.wanted()
        logs = model.logits(normed[at]).log_softmax(-1).gather(1, tokens[:, None])[:, 0].double()
        found = torch.zeros(len(layout.ids), dtype=torch.float64, device=model.device)
        return found.index_add_(0, at[0], logs).exp().cpu()


def _recorded(
    model: EditableModel, anchor: int, hidden: dict[int, torch.Tensor], values: dict[int, torch.Tensor]
) -> AbstractContextManager[None]:
    """Record the outputs of layers and projections during a block."""

    def hooks(layer: int) -> Iterator[Hook]:
        yield (
            model.layers[layer],
            lambda _m, _in, out: hidden.update({layer: first_of(out)[:, anchor:].clone()}),
        )
        yield model.projection(layer), lambda _m, _in, out: values.update({layer: out[:, anchor].clone()})

    return hooked(*(hook for layer in range(model.n_layers) for hook in hooks(layer)))


def _outputs_at_anchor(model: EditableModel, values: dict[int, torch.Tensor]) -> AbstractContextManager[None]:
    """Make projections return ``values`` {layer: [rows, d_out]} in the first column during a block."""

    def hook(layer: int, value: torch.Tensor) -> Hook:
        return (
            model.projection(layer),
            lambda _m, _in, out: torch.cat([value[:, None], out[:, 1:]], dim=1),
        )

    return hooked(*(hook(layer, value) for layer, value in values.items()))
