"""Canaries: the share of common knowledge, known for sure by the base model, that is still answered."""

from functools import partial

from daemon.core.ledger.outcomes import Outcomes
from workers.probes.base import Measurement, Probe, ProbeContext
from workers.probes.suites import answer_all, margins, shipped_suite

_FAST_ITEMS = 16  # of a batch: they cost about as much as the other fast probes
_SURE = 1.0  # lead of the right choice in nats a token; a smaller one may be lost to noise without damage


def measure_canaries(context: ProbeContext, limit: int | None = None) -> Measurement:
    """The share that is still answered of the first ``limit`` canaries that the base model is sure of."""
    model, suite = context.editor.model, shipped_suite("canary")
    before = context.base.of((suite.key,), lambda: margins(model, suite.questions))
    sure = [question for question, margin in zip(suite.questions, before, strict=True) if margin >= _SURE]
    asked = sure[:limit]
    if not asked:
        return Measurement(None, 0)
    hits = answer_all(model, asked)
    lost = [question.prompt for question, hit in zip(asked, hits, strict=True) if not hit]
    outcomes = Outcomes.of_hits(f"{suite.key}:{len(asked)}", hits)
    return Measurement(sum(hits) / len(hits), len(hits), {"lost": lost[:20]}, outcomes)


CANARY = Probe("canary", 1, partial(measure_canaries, limit=_FAST_ITEMS), lambda watch: watch.canary_floor)
CANARY_ALL = Probe("canary_all", 1, measure_canaries, lambda watch: watch.canary_floor)
