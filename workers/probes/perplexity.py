"""Perplexity on held-out text against the base model's: how much of the language was paid for the facts?"""

import math
from functools import cache
from importlib import resources

from workers.probes.base import Measurement, Probe, ProbeContext

_CHARACTERS = 3_000  # about 650 tokens: one forward pass of a few seconds on two cores


@cache
def heldout_texts(characters: int = _CHARACTERS) -> tuple[str, ...]:
    """Paragraphs of the shipped held-out text, from its beginning, up to a total length."""
    text = (resources.files("workers.probes") / "data" / "heldout.txt").read_text(encoding="utf-8")
    chosen: list[str] = []
    for paragraph in (part.strip() for part in text.split("\n\n")):
        if paragraph and sum(map(len, chosen)) < characters:
            chosen.append(paragraph)
    return tuple(chosen)


def measure_perplexity(context: ProbeContext) -> Measurement:
    """Perplexity of the held-out text divided by the base model's; 1 is no harm."""
    texts = heldout_texts()
    ratio = math.exp(context.editor.model.token_nll(texts) - context.base.token_nll(texts))
    return Measurement(ratio, len(texts))


PERPLEXITY = Probe(
    "perplexity_ratio", 1, measure_perplexity, lambda watch: watch.perplexity_ceiling, ceiling=True
)
