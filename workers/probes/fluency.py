"""Fluency: whether free text still varies or the model repeats itself."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from workers.probes.base import Measurement, Probe, ProbeContext

_PROMPTS = (
    "Yesterday morning the old man walked down to the harbour and",
    "The recipe is simple. First, take",
    "Scientists have found that",
    "Dear Mrs Brown, thank you for your letter. I",
    "The history of the village begins with",
    "When the music stopped, everyone",
)
_NEW_TOKENS = 40  # of a continuation: long enough for a model that repeats itself to do so
_WEIGHTS = ((2, 2 / 3), (3, 4 / 3))  # ROME's (arXiv 2202.05262, appendix): bigrams and trigrams


def entropy(words: Sequence[str], length: int) -> float:
    """Entropy in bits of the n-grams of a text, or 0 where there are none."""
    grams = Counter(zip(*(words[start:] for start in range(length)), strict=False))
    total = sum(grams.values())
    return -sum(n / total * math.log2(n / total) for n in grams.values()) if total else 0.0


def fluency(texts: Sequence[str]) -> float:
    """Mean over the texts of their weighted n-gram entropies."""
    if not texts:
        return 0.0
    return fmean(fmean(weight * entropy(text.split(), n) for n, weight in _WEIGHTS) for text in texts)


def repetition(texts: Sequence[str]) -> float:
    """The share of trigrams that occurred before in the same text."""
    grams = [list(zip(*(text.split()[start:] for start in range(3)), strict=False)) for text in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(mine)) for mine in grams) / total if total else 0.0


def measure_fluency(context: ProbeContext) -> Measurement:
    """Fluency of greedy continuations divided by the base model's, about 1 without damage."""
    model = context.editor.model
    before = context.base.of(("fluency",), lambda: model.greedy(_PROMPTS, _NEW_TOKENS))
    now = model.greedy(_PROMPTS, _NEW_TOKENS)
    details = {"repetition": repetition(now), "repetition_of_base": repetition(before)}
    base = fluency(before)
    return Measurement(fluency(now) / base if base else 1.0, len(_PROMPTS), details)


FLUENCY = Probe("fluency", 1, measure_fluency, lambda watch: watch.fluency_floor)
