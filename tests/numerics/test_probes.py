"""Probes on a tiny model: what they measure, and that one that hangs, exits or lies is never ok."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daemon.core.clock import SystemClock
from daemon.core.config.watch import WatchConfig
from daemon.core.errors import ProbeError
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.metrics import CEILING_PROBES
from daemon.core.names import DEFAULT_MODEL
from daemon.views.chain import newest_probes
from daemon.watch.judge import judge
from tests.ledgers import found
from tests.numerics.models import SURE, WORDS, taught
from tests.watching import QUIET
from workers.editing.editor import Editor
from workers.editing.prompts import EditRequest
from workers.probes import FAST, SLOW, BaseAnswers, Measurement, Probe, ProbeContext, canary, full, run_probes
from workers.probes.canary import measure_canaries
from workers.probes.fluency import entropy, repetition
from workers.probes.internals import largest_singular_value, measure_delta, measure_spectral, measure_stream
from workers.probes.suites import (
    SHIPPED,
    Question,
    Suite,
    answer_all,
    margins,
    own_probe,
    read_suite,
    shipped_suite,
)
from workers.probes.survey import survey
from workers.revisions.facts import Fact

WATCH = WatchConfig(probe_seconds=0.3)


def facts(requests: list[EditRequest]) -> list[Fact]:
    return [Fact(r.id, r.id, r.subject, r.prompt, r.target) for r in requests]


@pytest.fixture
def context(editor: Editor) -> ProbeContext:
    return ProbeContext(editor, [], facts(taught()), WATCH, BaseAnswers(editor))


def probe(measure: Callable[[ProbeContext], Any], name: str = "mine") -> Probe:
    return Probe(name, 1, measure, lambda _watch: 0.5)


def measured(context: ProbeContext, measure: Callable[[ProbeContext], Any]) -> ProbeRow:
    (row,) = run_probes([probe(measure)], context, SystemClock())
    return row


def hang(_context: ProbeContext) -> Measurement:
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize(
    "measure",
    [
        hang,
        lambda _c: sys.exit(0),
        lambda _c: "score: 1.0",
        lambda _c: None,
        lambda _c: Measurement("1.0", 4),  # type: ignore[arg-type]
        lambda _c: Measurement(True, 4),
        lambda _c: Measurement(None, 4),
        lambda _c: 1 / 0,
    ],
    ids=["hangs", "exits", "text", "nothing", "text for a score", "yes", "no score", "raises"],
)
def test_what_gives_no_score_is_unknown(
    context: ProbeContext, measure: Callable[[ProbeContext], Any]
) -> None:
    began = time.monotonic()
    row = measured(context, measure)
    assert (row.result, row.score) == ("unknown", None)
    assert row.details["error"]
    assert time.monotonic() - began < 20  # what hangs would hang for good, whatever else the machine does


def test_a_broken_model_is_degraded_not_unknown(context: ProbeContext) -> None:
    row = measured(context, lambda _c: Measurement(math.nan, 4))
    assert (row.result, row.score, row.details["score"]) == ("degraded", None, "nan")


def test_the_next_probe_runs_after_one_that_hung(context: ProbeContext) -> None:
    rows = run_probes([probe(hang), probe(lambda _c: Measurement(1.0, 1), "next")], context, SystemClock())
    assert [row.result for row in rows] == ["unknown", "ok"]


def test_a_probe_that_ended_the_process_is_left_out_by_its_successor(
    context: ProbeContext, tmp_path: Path
) -> None:
    """In a repeated run the probe that killed the first one stays unknown and the rest is measured."""
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    found(ledger)
    probes = [
        probe(lambda _c: Measurement(1.0, 1), "first"),
        probe(lambda _c: os._exit(9), "killer"),
        probe(lambda _c: Measurement(1.0, 1), "last"),
    ]
    ledger.close()
    child = os.fork()
    if child == 0:
        survey(Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}"), DEFAULT_MODEL, 0, probes, context)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    ledger = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    survey(ledger, DEFAULT_MODEL, 0, probes, context)
    judge(ledger, QUIET)
    with ledger.read() as connection:
        rows = {row["probe"]: row["result"] for row in newest_probes(connection, DEFAULT_MODEL, [0])[0]}
    assert rows == {"all_probes": "ok", "first": "ok", "killer": "unknown", "last": "ok"}
    ledger.close()


def test_every_probe_answers_on_the_unedited_model(context: ProbeContext) -> None:
    """The base model is as good as itself, and suites of real words tell nothing of one with its own."""
    patient = replace(context, watch=WatchConfig())
    rows = {row.probe: row for row in run_probes(full(patient.watch), patient, SystemClock())}
    assert not [row for row in rows.values() if row.result == "unknown"], rows
    for name in ("perplexity_ratio", "perplexity_ratio_long", "stream_growth", "fluency"):
        assert rows[name].score == pytest.approx(1.0)
    for name in ("delta_ratio", "spectral_ratio"):
        assert rows[name].score == 0.0
    assert rows["retention"].score == 1.0
    assert {p.name for p in (*FAST, *SLOW) if p.ceiling} | {"perplexity_ratio_own"} == CEILING_PROBES


def test_internals_measure_what_they_say(editor: Editor) -> None:
    layer = editor.layers[0]
    weight = editor.model.weight(layer)
    with torch.no_grad():  # so small a part of the stream grows as the weights that make it
        weight.mul_(1e-2)
        editor.model.projection(layer).bias.zero_()
    small = Editor(editor.model, editor.statistics, editor.recipe)
    context = ProbeContext(small, [], [], WATCH, BaseAnswers(small))
    measure_delta(context), measure_stream(context), measure_spectral(context)
    with torch.no_grad():
        weight.mul_(3.0)
    assert measure_delta(context).score == pytest.approx(2.0)
    assert measure_spectral(context).score == pytest.approx(2.0, rel=1e-3)
    assert measure_stream(context).score == pytest.approx(3.0, rel=0.1)


def test_the_largest_singular_value_is_found() -> None:
    chance = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(n, 20, generator=chance)).Q for n in (32, 48))
    weight = (left * torch.linspace(4.0, 0.2, 20)) @ right.T
    assert largest_singular_value(weight) == pytest.approx(4.0, rel=0.02)
    assert largest_singular_value(torch.zeros(3, 4)) == 0.0


def test_a_sample_of_facts_takes_old_ones_in_and_stays_for_a_while(context: ProbeContext) -> None:
    many = [Fact(f"c{i:03}", f"f{i}", "s", "s is", "x") for i in range(200)]
    looks = [replace(context, older=many, seed=seed).sample_facts(20) for seed in (16, 17, 31, 32)]
    assert looks[0] == looks[1] == looks[2] != looks[3]
    for facts_ in looks:
        assert sum(int(fact.correction_id[1:]) < 100 for fact in facts_) == 10


def test_fluency_sees_a_model_that_repeats_itself() -> None:
    varied, stuck = "a b c d e f g h i j", "a b a b a b a b a b"
    assert entropy(varied.split(), 2) == pytest.approx(math.log2(9))
    assert entropy(stuck.split(), 2) < 1.0 < entropy(varied.split(), 2)
    assert repetition([varied]) == 0.0
    assert repetition([stuck]) == pytest.approx(6 / 8)


@pytest.mark.parametrize("name", [*SHIPPED, "canary"])
def test_shipped_suites_are_well_made(name: str) -> None:
    questions = shipped_suite(name).questions
    assert len(questions) >= 20
    for question in questions:
        assert len(set(question.choices)) == len(question.choices) >= 2
    answers = [question.answer for question in questions]
    assert max(answers.count(a) for a in set(answers)) <= 0.7 * len(answers), "always the same is no skill"


def test_an_operators_suite_is_scored_by_likelihood(context: ProbeContext, tmp_path: Path) -> None:
    """Two words for each fact that the model was taught: it picks the taught one."""
    file = tmp_path / "own.jsonl"
    known = [fact for fact in taught() if " " not in fact.target]
    lines = [{"prompt": f.prompt, "choices": ["w0", f.target], "answer": 1} for f in known]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    patient = replace(context, watch=WatchConfig())
    (row,) = run_probes([own_probe("own", file)], patient, SystemClock())
    assert row.result == "ok"
    assert row.score == 1.0
    assert row.bound == pytest.approx(0.9)
    assert row.outcomes is not None
    assert len(row.outcomes.values) == len(known)
    assert answer_all(context.editor.model, read_suite(file).questions) == [
        bool(value) for value in row.outcomes.values
    ]
    (row,) = run_probes([own_probe("own", tmp_path / "gone.jsonl")], patient, SystemClock())
    assert row.result == "unknown"


def test_a_canary_is_what_the_base_model_is_sure_of(
    context: ProbeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it only just prefers is lost to noise, and a rollback for that would be a false alarm."""
    known = [fact for fact in taught() if " " not in fact.target]
    model = context.editor.model
    asked = []
    for fact in known:
        nll = model.target_nll([fact.prompt] * len(WORDS), WORDS)
        leads = nll[None, :] - nll[:, None]
        right, other = divmod(int((leads - 0.5).abs().argmin()), len(WORDS))  # that much likelier: hardly
        asked.append(Question(fact.prompt, (WORDS[right], WORDS[other]), 0))
        wrong = WORDS[int(nll.argmax())]
        asked += [Question(fact.prompt, (wrong, fact.target), answer) for answer in (0, 1)]
    hardly, mistaken, sure = (margins(model, asked[place::3]) for place in (0, 1, 2))
    assert 0.3 < min(hardly) <= max(hardly) < 0.7
    assert max(mistaken) < -SURE
    assert min(sure) > SURE
    monkeypatch.setattr(canary, "shipped_suite", lambda _name: Suite("mine", tuple(asked)))
    measured_ = measure_canaries(context)
    assert (measured_.score, measured_.items) == (1.0, len(known))
    with torch.no_grad():  # whatever it was sure of it denies now
        for parameter in model.lm.transformer.ln_f.parameters():
            parameter.neg_()
    damaged = measure_canaries(context)
    assert (damaged.score, damaged.items) == (0.0, len(known))


@pytest.mark.parametrize(
    "line",
    ["", "no json", "[]", '{"prompt": "a"}', '{"prompt": "a", "choices": ["b"], "answer": 0}',
     '{"prompt": "a", "choices": ["b", "c"], "answer": 2}',
     '{"prompt": 1, "choices": ["b", "c"], "answer": 0}',
     '{"prompt": "a", "choices": ["b", ""], "answer": 0}',
     '{"prompt": "a", "choices": ["b", "c"], "answer": true}'],
)  # fmt: skip
def test_what_is_no_suite_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ProbeError, match="bad"):
        read_suite(file)
