"""Edit efficacy and retention: the share of facts that greedy decoding answers with their object."""

from collections.abc import Sequence

from daemon.core.ledger.outcomes import Outcomes
from workers.probes.base import Measurement, Probe, ProbeContext
from workers.revisions.facts import Fact


def _share_answered(context: ProbeContext, facts: Sequence[Fact]) -> Measurement:
    if not facts:
        return Measurement(None, 0)
    hits = [verdict.ok for verdict in context.editor.verify([fact.request() for fact in facts])]
    missed = [fact.correction_id for fact, hit in zip(facts, hits, strict=True) if not hit]
    ids = [fact.correction_id for fact in facts]
    score = 1 - len(missed) / len(facts)
    return Measurement(score, len(facts), {"missed": missed[:20]}, Outcomes.of_hits("facts", hits, ids))


def measure_efficacy(context: ProbeContext) -> Measurement:
    """The share of the batch's facts that are answered."""
    return _share_answered(context, context.written)


def measure_retention(context: ProbeContext) -> Measurement:
    """The share that is answered of a sample of all facts written before."""
    return _share_answered(context, context.sample_facts(context.watch.retention_sample))


EFFICACY = Probe("efficacy", 1, measure_efficacy, lambda watch: watch.efficacy_floor)
RETENTION = Probe("retention", 2, measure_retention, lambda watch: watch.retention_floor)
