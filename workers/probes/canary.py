"""Canaries: what everybody knows and no feed should change. Of what the base model knows, what is left?"""

from daemon.core.outcomes import Outcomes
from workers.probes.base import Measurement, Probe, ProbeContext
from workers.probes.suites import Question, answer_all, shipped_suite

_FAST_ITEMS = 16


def _measure(context: ProbeContext, questions: tuple[Question, ...], key: str) -> Measurement:
    model = context.editor.model
    before = context.base.of((key,), lambda: answer_all(model, questions))
    known = [question for question, hit in zip(questions, before, strict=True) if hit]
    if not known:
        return Measurement(None, 0)
    hits = answer_all(model, known)
    lost = [question.prompt for question, hit in zip(known, hits, strict=True) if not hit]
    return Measurement(sum(hits) / len(hits), len(hits), {"lost": lost[:20]}, Outcomes.of_hits(key, hits))


def measure_canary(context: ProbeContext) -> Measurement:
    """The first canaries: short enough for every batch."""
    suite = shipped_suite("canary")
    return _measure(context, suite.questions[:_FAST_ITEMS], f"{suite.key}:{_FAST_ITEMS}")


def measure_all_canaries(context: ProbeContext) -> Measurement:
    """All of them."""
    suite = shipped_suite("canary")
    return _measure(context, suite.questions, suite.key)


CANARY = Probe("canary", 1, measure_canary, lambda watch: watch.canary_floor)
CANARY_ALL = Probe("canary_all", 1, measure_all_canaries, lambda watch: watch.canary_floor)
