"""Edit efficacy and retention: does greedy decoding, stopping by itself, answer the facts it was taught?"""

from collections.abc import Sequence

from workers.plan import Fact
from workers.probes.base import Measurement, Probe, ProbeContext


def _share_answered(context: ProbeContext, facts: Sequence[Fact]) -> Measurement:
    if not facts:
        return Measurement(None, 0)
    verdicts = context.editor.verify([fact.request() for fact in facts])
    missed = [f.correction_id for f, verdict in zip(facts, verdicts, strict=True) if not verdict.ok]
    return Measurement(1 - len(missed) / len(facts), len(facts), {"missed": missed[:20]})


def measure_efficacy(context: ProbeContext) -> Measurement:
    """The share of the batch's facts that are answered with their new object."""
    return _share_answered(context, context.written)


def measure_retention(context: ProbeContext) -> Measurement:
    """The same for a sample of all facts that were written before."""
    return _share_answered(context, context.sample(context.older, context.watch.retention_sample))


EFFICACY = Probe("efficacy", 1, measure_efficacy, lambda watch: watch.efficacy_floor)
RETENTION = Probe("retention", 1, measure_retention, lambda watch: watch.retention_floor)
