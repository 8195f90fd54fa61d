"""Choosing layers: what is proposed, what is edited to compare, and the command on a tiny model."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from daemon.cli.main import make_cli
from daemon.core.config.settings import load_config
from daemon.core.errors import ConfigError, ModelError
from tests.tinymodel import TinyHouse
from workers.bench.scores import Scores
from workers.locate.facts import KnownFact, make_trial, read_known
from workers.locate.sweep import Candidate, Choice, Sweep, Tried, critical_layers, propose
from workers.locate.tracing import Trace, trace
from workers.queue.assemble import chosen_recipe

HUMP = [0.1, 0.2, 0.6, 0.8, 1.0, 0.7, 0.3, 0.6, 0.1, 0.0]
FREE = {"lambda_prior": 1e-3, "lambda_norm": 1e-3, "clamp": 50.0, "decay": 0.0, "anchor_limit": 500.0}
WAY = {"learning_rate": 0.2, "steps": 30, "mends": 0, "kl_weight": 0.0}


def trace_of(mlp: list[float]) -> Trace:
    return Trace(mlp, mlp, 0.9, 0.1, 3)


def scores(greedy: float, ns: float = 1.0, perplexity: float = 1.0) -> Scores:
    return Scores(1, 1, ns, 1, 1, 1, 1, greedy, perplexity)


def facts(relation: str, count: int, answers: int = 3) -> list[KnownFact]:
    return [
        KnownFact(relation, f"{relation}{i}", f"the {relation}{i} is", f"a{i % answers}", f"{relation}{i}:")
        for i in range(count)
    ]


# -- proposing and choosing -------------------------------------------------------------------------


def test_critical_layers_lie_around_the_peak_without_a_gap() -> None:
    assert critical_layers(HUMP, 0.5) == (2, 5)  # layer 7 is high again, but 6 is not
    assert critical_layers(HUMP, 0.75) == (3, 4)
    assert critical_layers(HUMP, 1.0) == (4, 4)
    assert critical_layers([1.0, 0.9, 0.1, 0.2, 0.1], 0.8) == (1, 1)  # the first layer's is the token itself


def test_pairs_are_proposed_once_and_rivals_compete() -> None:
    found = propose(trace_of(HUMP), 4, [(0, 9), (2, 5)])
    pairs = [one.layers for one in found]
    assert len(set(pairs)) == len(pairs)
    assert pairs[0] == (2, 5)
    assert "--against" in found[0].source
    assert found[-1].layers == (0, 9)
    assert all(0 <= first < last < len(HUMP) for first, last in pairs)
    assert len(propose(trace_of(HUMP), 1)) == 1
    for curve in ([0.0, 0.0, 0.0, 1.0], [1.0, 0.0], [1.0, 1.0, 1.0]):
        assert all(0 <= a < b < len(curve) for a, b in (one.layers for one in propose(trace_of(curve), 5)))


def test_the_merit_falls_with_each_harm_and_both_sets_count() -> None:
    best = Tried((1, 2), "x", scores(1.0), 0.1, 0)
    worse = [Tried((1, 2), "x", scores(*harm), 0.1, 0) for harm in ((0.5,), (1.0, 0.5), (1.0, 1.0, 1.5))]
    assert best.merit == 1.0
    assert all(row.merit < 0.8 for row in worse)
    assert Tried((1, 2), "x", scores(0.0), 0.1, 0).merit == 0.0
    assert Choice([best], [worse[0]], (1, 2)).overall((1, 2)) == (best.merit + worse[0].merit) / 2


# -- facts ------------------------------------------------------------------------------------------


def test_edits_and_their_neighbors_are_different_facts() -> None:
    known = [*facts("r", 12), *facts("s", 9), *facts("t", 2, answers=1)]
    trial = make_trial(known, 6, seed=3)
    edited = [one.request.subject for one in (*trial.sweep, *trial.check)]
    assert len(trial.sweep) == len(trial.check) == 6
    assert len(set(edited)) == 12
    assert {subject[0] for subject in edited} == {"r", "s"}  # of t all answers are the same
    answers = {fact.prompt: fact.answer for fact in known}
    for one in (*trial.sweep, *trial.check):
        assert one.true == answers[one.request.prompt] != one.request.target
        assert one.neighbor_true == answers[one.neighbor] != one.request.target
        assert not any(one.neighbor == f"the {subject} is" for subject in edited)
    assert make_trial(known, 6, seed=3) == trial
    assert make_trial(known, 6, seed=4) != trial
    with pytest.raises(ConfigError, match="no relation"):
        make_trial(facts("t", 12, answers=1), 6, seed=0)


def test_the_shipped_facts_are_facts() -> None:
    shipped = read_known(None)
    assert len(shipped) > 80
    assert len({fact.prompt for fact in shipped}) == len(shipped)
    assert all(fact.subject in fact.paraphrase for fact in shipped)
    assert not any(fact.answer.casefold() in fact.prompt.casefold().split() for fact in shipped)


LINE = {"relation": "r", "subject": "x", "prompt": "of x is", "answer": "y", "paraphrase": "x:"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no facts"),
        ("nonsense", "line 1"),
        (json.dumps(LINE) + "\n" + json.dumps(LINE | {"subject": "z"}), "line 2"),
        (json.dumps(LINE | {"answer": " "}), "line 1"),
        (json.dumps(LINE | {"answer": 7}), "line 1"),
        (json.dumps({"subject": "x"}), "line 1"),
        ("[1]", "line 1"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_known(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_known(tmp_path / "missing.jsonl")


# -- the command ------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path: Path) -> TinyHouse:
    return TinyHouse(tmp_path, edit={"recipe_overrides": {**FREE, **WAY}})


def own_facts(house: TinyHouse) -> Path:
    """Facts that the random model answers anyway, and edits behind the subject, where they are easy."""
    prompts = {f"w{i} w{j}": f"the w30 of w{i} w{j}" for i in range(6) for j in range(10, 14)}
    said = house.model.greedy(list(prompts.values()), 1)
    lines = [
        {"relation": "r", "subject": s, "prompt": p, "answer": answer, "paraphrase": f"a w31 is {s}"}
        for (s, p), answer in zip(prompts.items(), said, strict=True)
        if answer
    ]
    path = house.folder / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(house: TinyHouse, *words: str) -> Result:
    return CliRunner().invoke(make_cli(), ["--config", str(house.file), "locate", *words])


def fingerprint(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_locate_chooses_writes_a_recipe_and_leaves_the_model_alone(house: TinyHouse) -> None:
    pytest.importorskip("matplotlib")
    before, out = fingerprint(house.base), house.folder / "out"
    words = ["--facts", str(own_facts(house)), "--n", "6", "--noises", "2", "--edits", "3", "--batch", "3"]
    result = run(house, *words, "--against", "0,3", "--pairs", "1", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert fingerprint(house.base) == before
    rows = {tuple(row["layers"]): row for row in found["check"]}
    best = rows[tuple(found["layers"])]
    assert (0, 3) in rows  # the rival is always checked
    assert best["overall"] == max(row["overall"] for row in rows.values())
    assert {tuple(row["layers"]) for row in found["sweep"]} >= rows.keys()
    assert len(found["trace"]["mlp"]) == house.model.n_layers
    assert json.loads((out / "locate.json").read_text()) == found
    assert (out / "locate.png").read_bytes().startswith(b"\x89PNG")
    usable = load_config(out / "recipe.toml")
    recipe = chosen_recipe(usable, house.model)
    assert list(recipe.layers) == found["layers"]
    assert recipe.clamp == FREE["clamp"]  # what was configured stays


def test_an_interrupted_run_keeps_its_trace_and_its_pairs(
    house: TinyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--facts", str(own_facts(house)), "--n", "4", "--noises", "1", "--edits", "2", "--no-picture"]
    words += ["--against", "0,3", "--pairs", "1", "--json"]
    attempt, tried, traced = Sweep.attempt, [], []

    def stopped(self: Sweep, one: Candidate, *others: Any) -> Tried:
        tried.append(one.layers)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return attempt(self, one, *others)

    def watched(*arguments: Any) -> Trace:
        traced.append(1)
        return trace(*arguments)

    monkeypatch.setattr(Sweep, "attempt", stopped)
    monkeypatch.setattr("workers.locate.run.trace", watched)
    assert run(house, *words).exit_code != 0
    result = run(house, *words)
    assert result.exit_code == 0, result.output
    assert "resuming after 2 results" in " ".join(result.stderr.split())
    assert len(traced) == 1
    assert tried[1] == tried[2] != tried[0]  # the pair that was interrupted; the first one is not tried again
    monkeypatch.setattr(Sweep, "attempt", attempt)
    again = json.loads(run(house, *words, "--fresh").stdout)
    cut = json.loads(result.stdout)
    assert [row["layers"] for row in cut["sweep"]] == [row["layers"] for row in again["sweep"]]
    assert cut["layers"] == again["layers"]


def test_the_table_says_how_the_choice_stands_against_a_rival(house: TinyHouse) -> None:
    words = ["--facts", str(own_facts(house)), "--n", "4", "--noises", "1", "--edits", "2", "--no-picture"]
    result = run(house, *words, "--against", "0,3", "--pairs", "1")
    assert result.exit_code == 0, result.output
    assert "0, 3" in result.stdout
    assert "layers 0, 3, which were" in result.stdout or "against 0, 3: merit" in result.stdout
    assert "[edit.recipe_overrides]" in result.stdout
    assert not (house.config.data_dir / "locate" / "locate.png").exists()


def test_a_model_that_knows_nothing_or_takes_nothing_is_an_error(house: TinyHouse) -> None:
    result = run(house, "--no-picture")  # shipped facts: the tiny model's words are others
    assert result.exit_code == 2
    assert "--facts" in result.output
    stiff = house.folder / "stiff.toml"
    stiff.write_text(house.file.read_text().replace("clamp = 50.0", "clamp = 1e-6"))
    words = ["--config", str(stiff), "locate", "--facts", str(own_facts(house)), "--no-picture"]
    result = CliRunner().invoke(
        make_cli(), [*words, "--n", "4", "--noises", "1", "--edits", "2", "--pairs", "1"]
    )
    assert result.exit_code == ModelError.exit_code
    assert "no pair of layers" in result.output


@pytest.mark.parametrize("pair", ["3", "a,b", "3,1", "2,2", "0,99", "-1,2"])
def test_a_rival_that_is_no_pair_is_refused(house: TinyHouse, pair: str) -> None:
    assert run(house, f"--against={pair}", "--no-picture").exit_code == 2


def test_a_picture_without_matplotlib_is_refused_before_the_work(
    house: TinyHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(house)
    assert result.exit_code == 2
    assert "errata[bench]" in " ".join(result.output.split())
