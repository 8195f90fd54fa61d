"""Edit efficacy and retention: the share of facts that greedy decoding answers with their object."""

from collections.abc import Sequence

from daemon.core.ledger.outcomes import Outcomes
from workers.probes.base import Measurement, Probe, ProbeContext
from workers.revisions.facts import Fact


def _share_answered(context: ProbeContext, facts: Sequence[Fact]) -> Measurement:
    """The share of facts that greedy decoding, which must stop by itself, answers with their object."""
    if not facts:
        return Measurement(None, 0)
    hits = [verdict.ok for verdict in context.editor.verify([fact.request() for fact in facts])]
    missed = [fact.correction_id for fact, hit in zip(facts, hits, strict=True) if not hit]
    ids = [fact.correction_id for fact in facts]
    score = 1 - len(missed) / len(facts)
    return Measurement(score, len(facts), {"missed": missed[:20]}, Outcomes.of_hits("facts", hits, ids))


def _retention(context: ProbeContext) -> Measurement:
    return _share_answered(context, context.sample_facts(context.watch.retention_sample))


EFFICACY = Probe(
    "efficacy",
    1,
    lambda context: _share_answered(context, context.written),
    lambda watch: watch.efficacy_floor,
)
RETENTION = Probe("retention", 2, _retention, lambda watch: watch.retention_floor)
