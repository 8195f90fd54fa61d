"""Perplexity on held-out text divided by the base model's, which shows damage to the language."""

import hashlib
import math
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean

from daemon.core.ledger.outcomes import Outcomes, Scale
from workers.editing.model import EditableModel
from workers.probes.base import Measurement, Probe, ProbeContext

_FAST_CHARACTERS, _CHARACTERS = 1_200, 6_000  # of the text: for every batch, and for a survey


@cache
def heldout_texts(characters: int = 3_000) -> tuple[str, ...]:
    """The first paragraphs of the shipped held-out text, up to a total length."""
    text = (resources.files("workers.probes") / "data" / "heldout.txt").read_text(encoding="utf-8")
    return _paragraphs(text, characters)


def _paragraphs(text: str, characters: int) -> tuple[str, ...]:
    chosen: list[str] = []
    for paragraph in (part.strip() for part in text.split("\n\n")):
        if paragraph and sum(map(len, chosen)) < characters:
            chosen.append(paragraph)
    return tuple(chosen)


def measure_texts(context: ProbeContext, texts: tuple[str, ...]) -> Measurement:
    """Perplexity of the texts divided by the base model's, with the nats of each paragraph as outcomes."""
    model = context.editor.model
    now = _nats(model, texts)
    before = context.base.of(("nats", texts), lambda: _nats(model, texts))
    suite = "texts@" + hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:12]
    score = math.exp(fmean(now) - fmean(before)) if all(map(math.isfinite, now)) else math.nan
    return Measurement(score, len(texts), {}, Outcomes(Scale.NATS, suite, tuple(now)))


def _nats(model: EditableModel, texts: tuple[str, ...]) -> list[float]:
    """The mean NLL of a token of each text, in nats."""
    fitting = [_cut(model, text) for text in texts]
    nats: list[float] = model.target_nll([""] * len(texts), fitting).double().tolist()
    return nats


def _cut(model: EditableModel, text: str) -> str:
    """The beginning of a text that fits into the model's window."""
    spans = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return text if len(spans) <= model.max_tokens else text[: spans[model.max_tokens - 2][1]]


def _probe(name: str, version: int, texts: Callable[[], tuple[str, ...]]) -> Probe:
    return Probe(
        name, version, lambda c: measure_texts(c, texts()), lambda w: w.perplexity_ceiling, ceiling=True
    )


def own_texts(path: Path) -> Probe:
    """The probe of an operator's own held-out text, whose file is read at each run."""
    return _probe(
        "perplexity_ratio_own", 1, lambda: _paragraphs(path.read_text(encoding="utf-8"), _CHARACTERS)
    )


PERPLEXITY = _probe("perplexity_ratio", 2, lambda: heldout_texts(_FAST_CHARACTERS))
PERPLEXITY_LONG = _probe("perplexity_ratio_long", 1, lambda: heldout_texts(_CHARACTERS))
