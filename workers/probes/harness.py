"""Tasks of lm-evaluation-harness as probes, where that package is installed.

The package's own code runs a task on the weights under test and the first ``limit`` documents, so that each
revision is measured on the same items. The floor is a share of the base model's score.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from daemon.core.config.watch import HarnessConfig
from daemon.core.errors import ProbeError
from daemon.core.ledger.outcomes import Outcomes
from workers.editing.model import EditableModel
from workers.probes.base import Measurement, Probe, ProbeContext

_PACKAGE = "lm_eval"


def harness_probe(task: HarnessConfig) -> Probe:
    """The probe of a configured task."""

    def measure(context: ProbeContext) -> Measurement:
        model = context.editor.model
        before = context.base.of(("harness", task.task, task.limit, task.metric), lambda: _hits(model, task))
        now = _hits(model, task)
        suite = f"{task.task}:{task.metric}@{task.limit}"
        floor = context.watch.suite_share * sum(before) / len(before)
        return Measurement(sum(now) / len(now), len(now), {}, Outcomes.of_hits(suite, now), floor)

    return Probe(task.name, 1, measure, lambda watch: watch.suite_share)


def _hits(model: EditableModel, task: HarnessConfig) -> list[bool]:
    """Whether each document was answered correctly, in the task's order."""
    package, models = _load(_PACKAGE), _load(f"{_PACKAGE}.models.huggingface")
    wrapped = models.HFLM(pretrained=model.lm, tokenizer=model.tokenizer)
    results: Mapping[str, Any] = package.simple_evaluate(
        model=wrapped, tasks=[task.task], limit=task.limit, log_samples=True, bootstrap_iters=0
    )
    samples = results.get("samples", {}).get(task.task) or []
    samples = [sample for sample in samples if sample.get("filter") == samples[0].get("filter")]
    if not samples or any(task.metric not in sample for sample in samples):
        raise ProbeError(
            f"task {task.task} has no {task.metric} for each document",
            hint="set watch.harness.metric to a metric that is 0 or 1, such as acc or exact_match",
        )
    in_order = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    return [float(sample[task.metric]) >= 1.0 for sample in in_order]


def _load(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ProbeError(
            f"lm-evaluation-harness is not installed ({error})",
            hint="pip install lm-eval, or remove watch.harness",
        ) from error
