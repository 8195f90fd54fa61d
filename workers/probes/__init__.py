"""Probes: what an edit did to the model. One file a probe; it joins a suite here."""

from workers.probes.base import BaseAnswers, Measurement, Probe, ProbeContext, run_probes
from workers.probes.efficacy import EFFICACY, RETENTION
from workers.probes.neighborhood import NEIGHBORHOOD
from workers.probes.perplexity import PERPLEXITY

FAST = (EFFICACY, RETENTION, NEIGHBORHOOD, PERPLEXITY)

__all__ = ["FAST", "BaseAnswers", "Measurement", "Probe", "ProbeContext", "run_probes"]
