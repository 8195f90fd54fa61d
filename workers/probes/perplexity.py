"""Perplexity on held-out text against the base model's: how much of the language was paid for the facts?"""

import hashlib
import math
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean

from daemon.core.ledger.outcomes import Outcomes, Scale
from workers.editing.model import EditableModel
from workers.probes.base import Measurement, Probe, ProbeContext

_FAST_CHARACTERS, _CHARACTERS = 1_200, 6_000


@cache
def heldout_texts(characters: int = 3_000) -> tuple[str, ...]:
    """Paragraphs of the shipped held-out text, from its beginning, up to a total length."""
    text = (resources.files("workers.probes") / "data" / "heldout.txt").read_text(encoding="utf-8")
    return _paragraphs(text, characters)


def _paragraphs(text: str, characters: int) -> tuple[str, ...]:
    chosen: list[str] = []
    for paragraph in (part.strip() for part in text.split("\n\n")):
        if paragraph and sum(map(len, chosen)) < characters:
            chosen.append(paragraph)
    return tuple(chosen)


def measure_texts(context: ProbeContext, texts: tuple[str, ...]) -> Measurement:
    """Perplexity of the texts divided by the base model's; 1 is no harm. Outcomes: nats a paragraph."""
    model = context.editor.model
    now = _nats(model, texts)
    before = context.base.of(("nats", texts), lambda: _nats(model, texts))
    suite = "texts@" + hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:12]
    score = math.exp(fmean(now) - fmean(before)) if all(map(math.isfinite, now)) else math.nan
    return Measurement(score, len(texts), {}, Outcomes(Scale.NATS, suite, tuple(now)))


def _nats(model: EditableModel, texts: tuple[str, ...]) -> list[float]:
    """Mean NLL in nats of a token of each text."""
    fitting = [_cut(model, text) for text in texts]
    found: list[float] = model.target_nll([""] * len(texts), fitting).double().tolist()
    return found


def _cut(model: EditableModel, text: str) -> str:
    """As much of a text as the model can read."""
    spans = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return text if len(spans) <= model.max_tokens else text[: spans[model.max_tokens - 2][1]]


def measure_perplexity(context: ProbeContext) -> Measurement:
    """The beginning of the shipped text: short enough for every batch."""
    return measure_texts(context, heldout_texts(_FAST_CHARACTERS))


def measure_long(context: ProbeContext) -> Measurement:
    """More of it."""
    return measure_texts(context, heldout_texts(_CHARACTERS))


def own_texts(path: Path) -> Probe:
    """A probe of the operator's own held-out text."""

    def measure(context: ProbeContext) -> Measurement:
        return measure_texts(context, _paragraphs(path.read_text(encoding="utf-8"), _CHARACTERS))

    return Probe("perplexity_ratio_own", 1, measure, lambda watch: watch.perplexity_ceiling, ceiling=True)


PERPLEXITY = Probe(
    "perplexity_ratio", 2, measure_perplexity, lambda watch: watch.perplexity_ceiling, ceiling=True
)
PERPLEXITY_LONG = Probe(
    "perplexity_ratio_long", 1, measure_long, lambda watch: watch.perplexity_ceiling, ceiling=True
)
