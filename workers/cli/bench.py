"""The commands of ``errata bench``."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from daemon.core.command import Json, load, needs
from daemon.core.names import Role
from daemon.core.terminal import make_console

if TYPE_CHECKING:
    from workers.progress import Step

app = typer.Typer(
    no_args_is_help=True,
    help="Measure editing on CounterFact and zsRE: tables, JSON lines and curves (extra bench). A run that "
    "was interrupted is gone on with by the same command; results of other runs move to the folder earlier.",
)

Count = Annotated[int, typer.Option("--n", min=1, help="facts")]
Batch = Annotated[int, typer.Option(min=1, help="facts in one batch")]
Seed = Annotated[
    int | None, typer.Option(help="draw the facts from the whole file; without it, its first ones")
]
Data = Annotated[
    Path | None,
    typer.Option(help="the data set's file; without it, the one beside the checkout or the hub's"),
]
Out = Annotated[
    Path | None, typer.Option(help="folder of results; without it, bench/<name> in the data directory")
]
Presets = Annotated[
    list[str] | None, typer.Option("--recipe", help="preset, may be repeated; 'all' for every one")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="recipe setting as name=JSON, may be repeated")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="begin anew, even where a run was interrupted")]
_METRICS = ("es", "ps", "ns", "s", "es_argmax", "ps_argmax", "ns_argmax", "greedy", "perplexity")
_SEQUENCE_CURVES = ("greedy", "first_100", "ps", "ns", "perplexity")
_REVISION_CURVES = ("greedy", "others", "ps", "ns", "perplexity")


class Bench:
    """One run of a bench: its recipes, its lab, and what it leaves behind.

    It is the same run as an earlier one when its options, recipes, model and editing code are the same.
    """

    def __init__(
        self,
        context: typer.Context,
        name: str,
        options: dict[str, Any],
        recipes: Sequence[str] | None,
        settings: Sequence[str] | None,
        out: Path | None,
        *,
        fresh: bool,
    ) -> None:
        from workers.bench.lab import Lab, engine
        from workers.bench.report import Report
        from workers.models.open import open_model

        config = load(context)
        self.console = Console(stderr=True)
        self.lab = Lab(open_model(config), config.data_dir / "statistics", config.model.corpus)
        self.recipes = self._resolve(recipes or [config.edit.recipe], config.edit.recipe_overrides, settings)
        same = {
            "bench": name,
            **options,
            "recipes": [one.model_dump() for one in self.recipes],
            "model": config.model_path,
            "dtype": str(self.lab.model.dtype),
            "engine": engine(),
        }
        self.report = Report(out or config.data_dir / "bench" / name, same, fresh=fresh)
        self._name = name
        if self.report.resumed:
            self.console.print(
                f"going on behind {self.report.resumed} rows in {self.report.folder} (--fresh begins anew)"
            )

    def _resolve(
        self, names: Sequence[str], base: dict[str, Any], settings: Sequence[str] | None
    ) -> list[Any]:
        """The presets with settings changed."""
        from workers.editing.recipes import PRESETS, resolve

        chosen = list(PRESETS) if "all" in names else list(dict.fromkeys(names))
        overrides = dict(base) | _settings(settings)
        return [resolve(name, overrides, self.lab.model.n_layers) for name in chosen]

    def run(
        self,
        work: "Callable[[Step], None]",
        columns: Sequence[str],
        curves: Sequence[str],
        as_json: bool,
    ) -> None:
        """Do the work under a progress bar, then show the table and draw the curves against the edits."""
        from workers.progress import progress_bars

        with progress_bars(self.console) as step:
            self.lab.progress = lambda done, total: step("statistics", done, total)
            work(step)
        if as_json:
            typer.echo(json.dumps(self.report.rows))
        else:
            make_console().print(self.report.table(f"errata bench {self._name}", columns))
        if curves and self.report.curves("n", curves, f"errata bench {self._name}") is None:
            self.console.print("no curves: matplotlib is not installed (pip install 'errata\\[bench]')")
        self.report.finish()
        self.console.print(f"results: {self.report.folder}")


@app.command()
@needs(Role.READ)
def counterfact(
    context: typer.Context,
    n: Count = 24,
    batch: Batch = 24,
    recipe: Presets = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """One table of all metrics, a row a recipe, the base model first.

    Examples: errata bench counterfact --n 24 --batch 24 | errata bench counterfact --recipe all
    """
    _table(context, "counterfact", n, batch, recipe, settings, seed, data, out, fresh, as_json)


@app.command()
@needs(Role.READ)
def zsre(
    context: typer.Context,
    n: Count = 24,
    batch: Batch = 24,
    recipe: Presets = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """The same on zsRE's questions; the neighborhood is an unrelated question.

    Example: errata bench zsre --n 24 --recipe encore-blue
    """
    _table(context, "zsre", n, batch, recipe, settings, seed, data, out, fresh, as_json)


def _table(
    context: typer.Context,
    name: str,
    n: int,
    batch: int,
    recipe: list[str] | None,
    settings: list[str] | None,
    seed: int | None,
    data: Path | None,
    out: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_table

    facts = load_facts(name, n, seed, data)
    options = {"n": n, "batch": batch, "seed": seed, "data": data}
    bench = Bench(context, name, options, recipe, settings, out, fresh=fresh)
    bench.run(
        lambda step: run_table(bench.lab, facts, bench.recipes, batch, bench.report, step),
        ("recipe", *_METRICS, "units_per_fact"),
        (),
        as_json,
    )


@app.command()
@needs(Role.READ)
def sequence(
    context: typer.Context,
    n: Count = 300,
    batch: Batch = 20,
    recipe: Presets = None,
    settings: Settings = None,
    every: Annotated[int, typer.Option(min=1, help="measure after so many facts")] = 100,
    review: Annotated[
        int, typer.Option(min=0, help="old facts asked after each batch; those that slipped are mended")
    ] = 300,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Lifelong editing: batch after batch, measured on all facts so far, with curves.

    Stopped at any moment, the same command goes on from the last batch.

    Example: errata bench sequence --n 300 --batch 20 --recipe encore-blue --recipe memit
    """
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_sequence

    facts = load_facts("counterfact", n, seed, data)
    options = {"n": n, "batch": batch, "seed": seed, "review": review, "every": every, "data": data}
    bench = Bench(context, "sequence", options, recipe, settings, out, fresh=fresh)
    layers = bench.recipes[0].layers
    norms = [f"norm_{layer}" for layer in layers]

    def work(step: "Step") -> None:
        for one in bench.recipes:
            run_sequence(bench.lab, facts, one, batch, review, every, bench.report, step)

    columns = (
        "recipe",
        "n",
        "greedy",
        "first_100",
        "es",
        "ps",
        "ns",
        "perplexity",
        *norms,
        "capacity",
        "mended",
        "refused",
        "units_per_fact",
    )
    bench.run(work, columns, (*_SEQUENCE_CURVES, *norms, "capacity"), as_json)


@app.command()
@needs(Role.READ)
def revisions(
    context: typer.Context,
    facts: Annotated[int, typer.Option(min=2, help="facts that are revised")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="how often")] = 10,
    recipe: Presets = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Revise the same facts again and again, forgetting the old value first and by history alone.

    Example: errata bench revisions --facts 20 --rounds 10
    """
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_revisions

    drawn = load_facts("counterfact", 2 * facts, seed, data)
    options = {"facts": facts, "rounds": rounds, "seed": seed, "data": data}
    bench = Bench(context, "revisions", options, recipe, settings, out, fresh=fresh)
    one = bench.recipes[0]
    norms = tuple(f"norm_{layer}" for layer in one.layers)
    columns = ("recipe", "round", "n", "greedy", "others", "ps", "ns", *norms, "perplexity", "refused")
    bench.run(
        lambda step: run_revisions(bench.lab, drawn, one, rounds, bench.report, step),
        columns,
        (*_REVISION_CURVES, *norms),
        as_json,
    )


@app.command()
@needs(Role.READ)
def retract(
    context: typer.Context,
    n: Count = 60,
    batch: Batch = 20,
    retract: Annotated[int, typer.Option(min=1, help="facts to take back, in random order")] = 20,
    recipe: Presets = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Take facts back one by one, in random order; then all of them.

    Example: errata bench retract --n 60 --retract 20
    """
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_retract

    drawn = load_facts("counterfact", n, seed, data)
    options = {"n": n, "retract": retract, "batch": batch, "seed": seed, "data": data}
    bench = Bench(context, "retract", options, recipe, settings, out, fresh=fresh)
    one = bench.recipes[0]
    bench.run(
        lambda step: run_retract(bench.lab, drawn, one, batch, retract, seed, bench.report, step),
        (
            "what",
            "n",
            "greedy",
            "es",
            "ps",
            "ns",
            "perplexity",
            *(f"norm_{layer}" for layer in one.layers),
            "bit_equal",
        ),
        (),
        as_json,
    )


@app.command()
@needs(Role.READ)
def cost(
    context: typer.Context,
    batch: Batch = 16,
    recipe: Presets = None,
    settings: Settings = None,
    shape: Annotated[
        str | None, typer.Option(help="llama-3-8b or small: random weights of that shape")
    ] = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Where the time of one batch goes, in seconds and forward units; whether cost grows with history.

    A forward unit is the time of one forward pass over 8 sequences of 125 tokens in the same process.

    Examples: errata bench cost --batch 16 | errata bench cost --shape llama-3-8b --batch 100
    """
    from workers.bench.cost import SHAPES, run_cost, run_shape
    from workers.bench.facts import load_facts

    if shape is not None and shape not in SHAPES:
        raise typer.BadParameter(f"one of {', '.join(SHAPES)}", param_hint="--shape")
    drawn = load_facts("counterfact", batch, seed, data)
    options = {"batch": batch, "shape": shape, "seed": seed, "data": data}
    bench = Bench(context, "cost", options, recipe, settings, out, fresh=fresh)
    one = bench.recipes[0]

    def work(step: "Step") -> None:
        if shape is None:
            run_cost(bench.lab, drawn, one, bench.report, step)
        else:
            run_shape(shape, bench.lab.model.tokenizer, drawn, one, bench.report, step)

    columns = ("stage", "seconds", "units_per_fact", "facts_per_second", "growth", "tera_flops", "peak_gib")
    bench.run(work, columns, (), as_json)


def _settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """``name=JSON`` as a dictionary."""
    found = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
        if not sign or not value:
            raise typer.BadParameter(f"{pair!r} is not name=value", param_hint="--set")
    return found
