"""``errata bench``: what an interrupted run goes on from, what it leaves behind, where facts come from."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from typer.testing import CliRunner

from daemon.cli.main import make_cli
from daemon.core.errors import ConfigError, EditError
from tests.tinymodel import TinyHouse
from workers.bench.baselines.registry import resolve
from workers.bench.facts import HUB_FILES, BenchFact, load_facts
from workers.bench.lab import Lab
from workers.bench.report import Report
from workers.bench.resume import Keeper
from workers.bench.runs import Sequencer, run_retract, run_revisions, run_sequence, run_table
from workers.editing.editor import Associations, Editor
from workers.editing.recipes import Recipe

EASY = {
    "lambda_prior": 1e-3, "lambda_norm": 1e-3, "clamp": 50.0, "decay": 0.0, "anchor_limit": 500.0,
    "learning_rate": 0.1, "steps": 6, "mends": 0, "kl_weight": 0.0,
}  # fmt: skip
TIMES = ("seconds_per_fact", "units_per_fact")
SIZE = 3


def records(count: int) -> list[dict[str, Any]]:
    return [
        {
            "subject": f"w{i} w{i + 7}", "prompt": f"the w30 of w{i} w{i + 7}",
            "target_new": f"w{20 + i % 5}", "target_true": f"w{26 + i % 3}",
            "paraphrase": f"a w31 w{i} w{i + 7}",
            "neighborhood_prompt": f"the w30 of w{i + 8}", "neighborhood_target": f"w{26 + i % 3}",
        }
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> TinyHouse:
    folder = tmp_path_factory.mktemp("house")
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, records(12))))
    return TinyHouse(folder, edit={"recipe_overrides": EASY | {"layers": [0, 1]}})


@pytest.fixture
def lab(house: TinyHouse) -> Lab:
    return Lab(house.model, house.folder / "statistics", None)


@pytest.fixture
def facts(house: TinyHouse) -> list[BenchFact]:
    return load_facts("counterfact", 12, None, house.folder / "facts.jsonl")


def recipe(name: str = "encore-blue") -> Recipe:
    return resolve(name, EASY | {"layers": (0, 1)}, 4)


def quiet(_what: str, _done: int, _total: int) -> None:
    """Nobody looks."""


def stop_at(what: str, done: int) -> Callable[[str, int, int], None]:
    """A step at which somebody presses Ctrl-C."""

    def step(name: str, at: int, _total: int) -> None:
        if (name, at) == (what, done):
            raise KeyboardInterrupt

    return step


class Writes:
    """Counts the facts that editors write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        write = Editor.write

        def counted(editor: Editor, requests: Any) -> Associations:
            self.count += len(requests)
            return write(editor, requests)

        monkeypatch.setattr(Editor, "write", counted)


def assert_same(rows: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert len(rows) == len(wanted)
    for row, other in zip(rows, wanted, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - set(TIMES):
            expected = pytest.approx(other[name], rel=1e-4) if isinstance(other[name], float) else other[name]
            assert row[name] == expected, name


def interrupted(lab: Lab, folder: Path, work: Callable[[Report, Any], None], step: Any) -> Report:
    """A run that is stopped, the weights put back as a new process finds them, and the report of the next."""
    before = {i: lab.model.stored_weight(i).clone() for i in range(lab.model.n_layers)}
    with pytest.raises(KeyboardInterrupt):
        work(Report(folder, {"a": 1}), step)
    for layer, weight in before.items():
        with torch.no_grad():
            lab.model.stored_weight(layer).copy_(weight)
    return Report(folder, {"a": 1})


# -- going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encore-blue", "memit-blue"])
def test_a_sequence_goes_on_where_it_was_stopped(
    lab: Lab, facts: list[BenchFact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def work(report: Report, step: Any) -> None:
        run_sequence(lab, facts, recipe(name), SIZE, 2, 2 * SIZE, report, step)

    whole = Report(tmp_path / "whole", {})
    work(whole, quiet)
    writes = Writes(monkeypatch)
    again = interrupted(lab, tmp_path / "cut", work, stop_at(name, 3 * SIZE))
    assert (again.resumed, writes.count) == (1, 3 * SIZE)
    work(again, quiet)
    assert writes.count == len(facts)  # nothing was written twice
    assert_same(again.rows, whole.rows)
    assert [row["n"] for row in again.rows] == [6, 12]
    work(again, quiet)
    assert (len(again.rows), writes.count) == (2, len(facts))


@pytest.mark.parametrize("mends", [0, 2])
def test_only_what_got_another_value_counts_as_mended(lab: Lab, facts: list[BenchFact], mends: int) -> None:
    editor = lab.editor(recipe().model_copy(update={"mends": mends, "learning_rate": 0.02}))
    sequencer = Sequencer(editor, review=len(facts))
    requests = [fact.request for fact in facts]
    sequencer.write(requests[:SIZE])
    before = [pair.values[1] for pair in sequencer.pairs]
    with torch.no_grad():  # later edits have spoilt what was written
        for layer in editor.layers:
            editor.model.set_weight(layer, editor.published()[editor.model.tensor_name(layer)] * 0.1)
    sequencer.write(requests[SIZE : 2 * SIZE])
    after = [pair.values[1] for pair in sequencer.pairs[:SIZE]]
    assert sequencer.mended == sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (sequencer.mended > 0) == (mends > 0)
    lab.release(editor)


def test_a_table_skips_recipes_that_have_their_row(
    lab: Lab, facts: list[BenchFact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [recipe(), recipe("memit-blue"), recipe("encore")]

    def work(report: Report, step: Any) -> None:
        run_table(lab, facts[:6], recipes, SIZE, report, step)

    again = interrupted(lab, tmp_path, work, stop_at("encore", SIZE))
    assert [row["recipe"] for row in again.rows] == ["(base)", "encore-blue", "memit-blue"]
    writes = Writes(monkeypatch)
    work(again, quiet)
    assert [row["recipe"] for row in again.rows][3:] == ["encore"]
    assert writes.count == 6


def test_revisions_go_on_in_the_round_and_the_column_where_they_were(
    lab: Lab, facts: list[BenchFact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(report: Report, step: Any) -> None:
        run_revisions(lab, facts[:6], recipe(), 3, report, step)

    whole = Report(tmp_path / "whole", {})
    work(whole, quiet)
    again = interrupted(lab, tmp_path / "cut", work, stop_at("history only", 2))
    assert [row["round"] for row in again.rows] == [1, 2, 3, 1, 2]
    writes = Writes(monkeypatch)
    work(again, quiet)
    assert writes.count == 3  # the last round alone
    assert_same(again.rows, whole.rows)
    assert [row["n"] for row in whole.rows[:3]] == [6, 9, 12]


def test_a_refused_fact_ends_no_bench(
    lab: Lab, facts: list[BenchFact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, unfit = Editor.write, facts[0].request.id

    def refusing(editor: Editor, requests: Any) -> Associations:
        if unfit in [request.id for request in requests]:
            raise EditError("too far", reason="norm", culprits=[unfit])
        return write(editor, requests)

    monkeypatch.setattr(Editor, "write", refusing)
    report = Report(tmp_path / "revisions", {})
    run_revisions(lab, facts, recipe(), 2, report, quiet)
    assert [(row["round"], row["refused"]) for row in report.rows] == [(1, 1), (2, 1)] * 2
    report = Report(tmp_path / "table", {})
    run_table(lab, facts[:4], [recipe()], SIZE, report, quiet)
    assert [row.get("refused") for row in report.rows] == [None, 1]
    report = Report(tmp_path / "retract", {})
    run_retract(lab, facts[:6], recipe(), SIZE, 3, 0, report, quiet)
    assert report.rows[0]["refused"] == 1
    assert report.rows[-1]["bit_equal"] is True


def test_retractions_go_on_from_what_was_written(
    lab: Lab, facts: list[BenchFact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(report: Report, step: Any) -> None:
        run_retract(lab, facts[:9], recipe(), SIZE, 3, 0, report, step)

    again = interrupted(lab, tmp_path, work, stop_at("retract", 2))
    writes = Writes(monkeypatch)
    work(again, quiet)
    assert writes.count == 0
    assert len({row["what"] for row in again.rows}) == len(again.rows) == 5
    assert again.rows[-1]["bit_equal"] is True


def test_a_state_that_is_damaged_or_of_other_weights_is_refused(
    lab: Lab, facts: list[BenchFact], tmp_path: Path
) -> None:
    editor, keeper = lab.editor(recipe()), Keeper(tmp_path)
    assert keeper.restore("x", editor) is None
    written = editor.write([fact.request for fact in facts[:3]])
    keeper.save("x", editor, [written.select([0]), written.select([1, 2])], round=7)
    norms = editor.delta_norms()
    lab.release(editor)
    saved = keeper.restore("x", editor)
    assert saved is not None
    assert ([part.ids for part in saved.parts], saved.about) == ([["0"], ["1", "2"]], {"round": 7})
    assert editor.delta_norms()[0][1] == pytest.approx(norms[0][1], rel=1e-9)
    lab.release(editor)
    stiff = Editor(lab.model, editor.statistics, recipe().model_copy(update={"lambda_prior": 50.0}))
    with pytest.raises(ConfigError, match="does not give its weights back"):
        keeper.restore("x", stiff)
    lab.release(stiff)
    path = tmp_path / "state-x.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="damaged"):
        keeper.restore("x", editor)


# -- the folder of results --------------------------------------------------------------------------


def test_only_the_same_unfinished_run_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a reader's own")
    report = Report(tmp_path, {"n": 1})
    report.add(recipe="a", greedy=1.0)
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + '{"recipe": "b", "gre')
    again = Report(tmp_path, {"n": 1})
    assert (again.resumed, again.rows) == (1, [{"recipe": "a", "greedy": 1.0}])  # the torn line is gone
    assert again.has(recipe="a")
    assert not again.has(recipe="a", greedy=0.5)
    again.add(recipe="b")
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert Report(tmp_path, {"n": 2}).resumed == 0  # another run
    assert Report(tmp_path, {"n": 1}).resumed == 0
    again = Report(tmp_path, {"n": 1})
    again.add(recipe="c")
    again.finish()
    assert Report(tmp_path, {"n": 1}).resumed == 0  # a finished one
    report = Report(tmp_path, {"n": 1})
    report.add(recipe="d")
    assert Report(tmp_path, {"n": 1}, fresh=True).resumed == 0
    kept = [path.read_text() for path in sorted((tmp_path / "earlier").glob("*/rows.jsonl"))]
    assert any('"b"' in text for text in kept)  # nothing was lost
    assert any('"c"' in text for text in kept)
    assert (tmp_path / "mine.txt").exists()


def test_curves_are_a_picture_where_matplotlib_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(tmp_path, {})
    report.add(recipe="a", n=1, greedy=1.0, norm_3=0.1)
    report.add(recipe="b", n=2, greedy=0.5)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "matplotlib.figure", None)
        assert report.curves("n", ["greedy"], "x") is None
    pytest.importorskip("matplotlib")
    path = report.curves("n", ["greedy", "norm_3", "absent"], "x")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_command_leaves_rows_and_curves_and_puts_older_results_aside(house: TinyHouse) -> None:
    words = ["--config", str(house.file), "bench", "sequence", "--n", "4", "--batch", "2", "--every", "2"]
    words += ["--review", "0", "--data", str(house.folder / "facts.jsonl"), "--json"]
    for _ in range(2):
        result = CliRunner().invoke(make_cli(), words)
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)
        assert [row["n"] for row in rows] == [2, 4]
        folder = house.config.data_dir / "bench" / "sequence"
        assert list(map(json.loads, (folder / "rows.jsonl").read_text().splitlines())) == rows
        assert json.loads((folder / "settings.json").read_text())["finished"] is True
        assert not list(folder.glob("state-*"))
    assert (folder / "earlier" / "1" / "rows.jsonl").exists()
    assert "resuming" not in result.stderr


# -- where facts come from --------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HUB_FILES))
def test_offline_and_without_a_file_the_error_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=HUB_FILES[name][0]) as caught:
        load_facts(name, 1, None, None)
    assert "--data" in caught.value.hint


def test_the_published_form_of_counterfact_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = [
        {
            "requested_rewrite": {
                "prompt": "{} is in", "subject": f"Place {i}",
                "target_new": {"str": "Rome"}, "target_true": {"str": "Oslo"},
            },
            "paraphrase_prompts": [f"Where Place {i} is:", "x"], "neighborhood_prompts": ["Fiord is in", "y"],
        }
        for i in range(3)
    ]  # fmt: skip
    plain = tmp_path / "facts.json"
    plain.write_text(json.dumps(published))
    read = load_facts("counterfact", 3, None, plain)
    assert read[1].request.prompt == "Place 1 is in"
    assert (read[1].true, read[1].neighbor, read[1].neighbor_true) == ("Oslo", "Fiord is in", "Oslo")
    table = tmp_path / "facts.parquet"
    table.write_bytes(b"PAR1")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(ConfigError, match="parquet") as caught:
            load_facts("counterfact", 3, None, table)
    assert "errata[bench]" in caught.value.hint
    parquet = pytest.importorskip("pyarrow.parquet")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_facts("counterfact", 3, None, table)
    arrow = pytest.importorskip("pyarrow")
    parquet.write_table(arrow.Table.from_pylist(published), table)
    assert load_facts("counterfact", 3, None, table) == read
