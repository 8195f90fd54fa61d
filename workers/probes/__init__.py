"""Probes, which measure what an edit did to the model.

Each subject has a file. A probe is added to one of the two sets here.
"""

from daemon.core.config.watch import WatchConfig
from workers.probes.base import BaseAnswers, Measurement, Probe, ProbeContext, run_probes
from workers.probes.canary import CANARY, CANARY_ALL
from workers.probes.efficacy import EFFICACY, RETENTION
from workers.probes.fluency import FLUENCY
from workers.probes.harness import harness_probe
from workers.probes.internals import CAPACITY, DELTA, SPECTRAL, STREAM, VALUES
from workers.probes.neighborhood import NEIGHBORHOOD
from workers.probes.paraphrase import PARAPHRASE
from workers.probes.perplexity import PERPLEXITY, PERPLEXITY_LONG, own_texts
from workers.probes.suites import SHIPPED, own_probe, shipped_probe

FAST = (EFFICACY, RETENTION, NEIGHBORHOOD, PERPLEXITY, CANARY, DELTA, CAPACITY)
SLOW = (
    PARAPHRASE, PERPLEXITY_LONG, CANARY_ALL, FLUENCY, SPECTRAL, STREAM, VALUES,
    *(shipped_probe(name) for name in SHIPPED),
)  # fmt: skip

__all__ = [
    "FAST",
    "SLOW",
    "BaseAnswers",
    "Measurement",
    "Probe",
    "ProbeContext",
    "fast",
    "full",
    "run_probes",
]


def fast(watch: WatchConfig) -> tuple[Probe, ...]:
    """The probes of every batch."""
    return (*FAST, *(own_probe(suite.name, suite.path) for suite in watch.suites if suite.fast))


def full(watch: WatchConfig) -> tuple[Probe, ...]:
    """All probes, run on a schedule, by ``errata probe``, and if configured before a revision is live."""
    own = [own_probe(suite.name, suite.path) for suite in watch.suites if not suite.fast]
    own += [harness_probe(task) for task in watch.harness]
    if watch.texts is not None:
        own.append(own_texts(watch.texts))
    return (*fast(watch), *SLOW, *own)
