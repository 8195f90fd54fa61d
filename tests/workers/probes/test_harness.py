"""Tasks of lm-evaluation-harness as probes. Where the package is absent a stand-in answers in its form."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.core.clock import SystemClock
from daemon.core.config.settings import Config
from daemon.core.config.watch import HarnessConfig, WatchConfig
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.names import ProbeResult
from tests.toy import ToyEditor, prompt_of
from workers.editing.prompts import EditRequest
from workers.probes import BaseAnswers, ProbeContext, full, run_probes
from workers.probes.harness import harness_probe

TASK = HarnessConfig(name="capitals", task="toy_capitals", limit=3)
SUBJECTS = ("Peru", "Chad", "Fiji")


class StandIn(ModuleType):
    """Asks the model itself, and returns documents in another order, twice, by two filters."""

    metric = "acc"

    def simple_evaluate(self, *, model: Any, tasks: list[str], limit: int, **_: Any) -> dict[str, Any]:
        hits = [float(model.answer(prompt_of(one)) == "City 1") for one in SUBJECTS[:limit]]
        said = [{"doc_id": i, "filter": "none", self.metric: hit} for i, hit in enumerate(hits)]
        again = [{**one, "filter": "strict", self.metric: 0.0} for one in said]
        return {"samples": {tasks[0]: [*reversed(said), *again]}}

    def HFLM(self, pretrained: Any, **_: Any) -> Any:  # noqa: N802  # the package's name
        return pretrained


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn("lm_eval")
    for name in ("lm_eval", "lm_eval.models", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("tests.toy.ToyModel.lm", property(lambda model: model), raising=False)
    return module


def context(*known: str) -> ProbeContext:
    """A toy whose base model knows some capitals."""
    editor = ToyEditor()
    editor.write([EditRequest(one, one, prompt_of(one), "City 1") for one in known])
    editor._base = {layer: editor.model.stored_weight(layer).clone() for layer in editor.layers}
    return ProbeContext(editor, [], [], WatchConfig(), BaseAnswers(editor))


def measure(where: ProbeContext) -> ProbeRow:
    (row,) = run_probes([harness_probe(TASK)], where, SystemClock())
    return row


def test_a_task_is_scored_item_by_item(stand_in: StandIn) -> None:
    where = context("Peru", "Chad")
    row = measure(where)
    assert (row.result, row.items) == (ProbeResult.OK, 3)
    assert row.score == pytest.approx(2 / 3)
    assert row.outcomes is not None
    assert row.outcomes.values == (1.0, 1.0, 0.0), "in the order of the documents, by one filter"
    where.editor.write([EditRequest("x", "Peru", prompt_of("Peru"), "City 2")])
    worse = measure(where)
    assert worse.result == ProbeResult.DEGRADED
    assert worse.outcomes is not None
    assert worse.outcomes.losses(row.outcomes) == [1.0, 0.0, 0.0]


def test_an_answer_without_the_metric_is_unknown(stand_in: StandIn) -> None:
    stand_in.metric = "word_perplexity"
    row = measure(context("Peru"))
    assert row.result == ProbeResult.UNKNOWN
    assert "has no acc" in row.details["error"]


def test_without_the_package_it_is_unknown_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    row = measure(context("Peru"))
    assert row.result == ProbeResult.UNKNOWN
    assert "pip install lm-eval" in row.details["error"]


def test_the_configuration_adds_it_to_the_full_set(tmp_path: Path) -> None:
    watch = Config.model_validate({"watch": {"harness": [{"name": "boolq", "task": "boolq"}]}}).watch
    assert "boolq" in {probe.name for probe in full(watch)}
    suite, task = {"name": "boolq", "path": str(tmp_path)}, {"name": "boolq", "task": "b"}
    with pytest.raises(ValidationError, match="the same name"):
        WatchConfig.model_validate({"suites": [suite], "harness": [task]})
