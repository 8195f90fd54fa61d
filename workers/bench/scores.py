"""The metrics of the field and greedy decoding, on one set of facts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import harmonic_mean

import torch

from workers.bench.facts import BenchFact
from workers.editing.editor import Editor
from workers.editing.model import EditableModel
from workers.probes.perplexity import heldout_texts


@dataclass(frozen=True)
class Scores:
    """Shares of facts, 0 to 1, and a ratio of perplexities.

    es, ps: the new object is more probable than the true one after the prompt, the paraphrase; ns: the true
    one after the neighborhood prompt (ROME, arXiv 2202.05262; mean NLL of a token); s: their harmonic mean.
    es_argmax, ps_argmax, ns_argmax: every token of that object is the argmax (teacher forcing).
    greedy: decoding with natural stop begins with the new object. perplexity: ratio to the base model.
    """

    es: float
    ps: float
    ns: float
    s: float
    es_argmax: float
    ps_argmax: float
    ns_argmax: float
    greedy: float
    perplexity: float


class Scorer:
    """Scores an editor's model against the base model's perplexity."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._texts = heldout_texts()
        with editor.base_weights():
            self._base_nll = editor.model.token_nll(self._texts)

    def perplexity(self) -> float:
        """Return the perplexity on held-out text as a ratio to the base model's."""
        return math.exp(self._editor.model.token_nll(self._texts) - self._base_nll)

    def score(self, facts: Sequence[BenchFact]) -> Scores:
        """Return all metrics of the facts on the weights that the model has now."""
        model = self._editor.model
        new, true = [fact.request.target for fact in facts], [fact.true for fact in facts]
        prompts = [fact.request.prompt for fact in facts]
        es, es_argmax = _preferred(model, prompts, new, true)
        ps, ps_argmax = _preferred(model, [fact.paraphrase for fact in facts], new, true)
        neighbors = [fact.neighbor for fact in facts]
        ns, ns_argmax = _preferred(model, neighbors, [fact.neighbor_true for fact in facts], new)
        greedy = self.greedy(facts)
        whole = harmonic_mean([es, ps, ns])
        return Scores(
            es, ps, ns, whole, es_argmax, ps_argmax, ns_argmax, sum(greedy) / len(facts), self.perplexity()
        )

    def greedy(self, facts: Sequence[BenchFact]) -> list[bool]:
        """Return for each fact whether greedy decoding begins with its new object."""
        return [reading.ok for reading in self._editor.verify([fact.request for fact in facts])]


def _preferred(
    model: EditableModel, prompts: Sequence[str], wanted: Sequence[str], other: Sequence[str]
) -> tuple[float, float]:
    """Return the shares of prompts after which ``wanted`` is likelier than ``other``, and is the argmax."""
    nll, exact = model.target_scores(prompts, wanted)
    against, _ = model.target_scores(prompts, other)
    return float((nll < against).double().mean()), float(exact.double().mean())


def base_scores(editor: Editor, scorer: Scorer, facts: Sequence[BenchFact]) -> Scores:
    """Return the scores of the unedited model."""
    with torch.no_grad(), editor.base_weights():
        return scorer.score(facts)
