"""The commands of ``errata bench``."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from workers.bench.runs import Step

app = typer.Typer(
    no_args_is_help=True, help="Measure editing on CounterFact and zsRE: tables, JSON lines and curves."
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
Json = Annotated[bool, typer.Option("--json", help="print one JSON document instead of a table")]

_METRICS = ("es", "ps", "ns", "s", "es_argmax", "ps_argmax", "ns_argmax", "greedy", "perplexity")


class Bench:
    """One run of a bench: its facts, its lab, and what it leaves behind."""

    def __init__(self, context: typer.Context, name: str, out: Path | None, settings: dict[str, Any]) -> None:
        from workers.assemble import open_model
        from workers.bench.lab import Lab
        from workers.bench.report import Report

        self.config = context.obj["config"]()
        self.console = Console(stderr=True)
        self.report = Report(out or self.config.data_dir / "bench" / name, {"bench": name, **settings})
        self.lab = Lab(open_model(self.config), self.config.data_dir / "statistics", self.config.model.corpus)
        self._name = name

    def recipes(self, names: Sequence[str] | None, settings: Sequence[str] | None) -> list[Any]:
        """The presets with settings changed."""
        from workers.editing.recipes import PRESETS, resolve

        chosen = list(PRESETS) if names and "all" in names else list(names or [self.config.edit.recipe])
        overrides = dict(self.config.edit.recipe_overrides) | _settings(settings)
        return [resolve(name, overrides, self.lab.model.n_layers) for name in chosen]

    def run(
        self, work: "Callable[[Step], None]", columns: Sequence[str], x: str | None, as_json: bool
    ) -> None:
        """Do the work under a progress bar, then show the table and draw the curves."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        ) as bar:
            shown: dict[str, TaskID] = {}

            def step(what: str, done: int, total: int) -> None:
                if what not in shown:
                    shown[what] = bar.add_task(what, total=total)
                bar.update(shown[what], completed=done, total=total)

            self.lab.progress = lambda done, total: step("statistics", done, total)
            work(step)
        if as_json:
            typer.echo(json.dumps(self.report.rows))
        else:
            Console().print(self.report.table(f"errata bench {self._name}", columns))
        if x is not None:
            names = [name for name in columns if name not in (x, "recipe")]
            self.report.curves(x, names, f"errata bench {self._name}")
        self.console.print(f"results: {self.report.folder}")


@app.command()
def counterfact(
    context: typer.Context,
    n: Count = 24,
    batch: Batch = 24,
    recipe: Presets = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """One table of all metrics, a row a recipe, the base model first.

    Examples: errata bench counterfact --n 24 --batch 24 | errata bench counterfact --recipe all
    """
    _table(context, "counterfact", n, batch, recipe, settings, seed, data, out, as_json)


@app.command()
def zsre(
    context: typer.Context,
    n: Count = 24,
    batch: Batch = 24,
    recipe: Presets = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The same on zsRE's questions; the neighborhood is an unrelated question.

    Example: errata bench zsre --n 24 --recipe encore-blue
    """
    _table(context, "zsre", n, batch, recipe, settings, seed, data, out, as_json)


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
    as_json: bool,
) -> None:
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_table

    facts = load_facts(name, n, seed, data)
    bench = Bench(context, name, out, {"n": n, "batch": batch, "seed": seed, "set": settings})
    recipes = bench.recipes(recipe, settings)
    bench.run(
        lambda step: run_table(bench.lab, facts, recipes, batch, bench.report, step),
        ("recipe", *_METRICS, "units_per_fact"),
        None,
        as_json,
    )


@app.command()
def sequence(
    context: typer.Context,
    n: Count = 300,
    batch: Batch = 20,
    recipe: Presets = None,
    settings: Settings = None,
    every: Annotated[int, typer.Option(min=1, help="measure after so many facts")] = 100,
    review: Annotated[
        int, typer.Option(min=0, help="old facts asked after each batch; those that slipped are mended")
    ] = 100,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Lifelong editing: batch after batch, measured on all facts so far, with curves.

    Example: errata bench sequence --n 300 --batch 20 --recipe encore-blue --recipe memit
    """
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_sequence

    facts = load_facts("counterfact", n, seed, data)
    bench = Bench(
        context, "sequence", out, {"n": n, "batch": batch, "seed": seed, "review": review, "set": settings}
    )
    recipes = bench.recipes(recipe, settings)
    norms = tuple(f"norm_{layer}" for layer in (recipes[0].layers[0], recipes[0].layers[-1]))

    def work(step: "Step") -> None:
        for one in recipes:
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
    bench.run(work, columns, "n", as_json)


@app.command()
def revisions(
    context: typer.Context,
    facts: Annotated[int, typer.Option(min=2, help="facts that are revised")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="how often")] = 10,
    recipe: Presets = None,
    settings: Settings = None,
    seed: Seed = None,
    data: Data = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Revise the same facts again and again, forgetting the old value first and by history alone.

    Example: errata bench revisions --facts 20 --rounds 10
    """
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_revisions

    drawn = load_facts("counterfact", 2 * facts, seed, data)
    bench = Bench(
        context, "revisions", out, {"facts": facts, "rounds": rounds, "seed": seed, "set": settings}
    )
    one = bench.recipes(recipe, settings)[0]
    columns = (
        "recipe",
        "round",
        "greedy",
        "others",
        *(f"norm_{layer}" for layer in one.layers),
        "perplexity",
    )
    bench.run(
        lambda step: run_revisions(bench.lab, drawn, one, rounds, bench.report, step),
        columns,
        "round",
        as_json,
    )


@app.command()
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
    as_json: Json = False,
) -> None:
    """Take facts back one by one, in random order; then all of them.

    Example: errata bench retract --n 60 --retract 20
    """
    from workers.bench.facts import load_facts
    from workers.bench.runs import run_retract

    drawn = load_facts("counterfact", n, seed, data)
    bench = Bench(
        context, "retract", out, {"n": n, "retract": retract, "batch": batch, "seed": seed, "set": settings}
    )
    one = bench.recipes(recipe, settings)[0]
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
        None,
        as_json,
    )


@app.command()
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
    bench = Bench(context, "cost", out, {"batch": batch, "shape": shape, "seed": seed, "set": settings})
    one = bench.recipes(recipe, settings)[0]

    def work(step: "Step") -> None:
        if shape is None:
            run_cost(bench.lab, drawn, one, bench.report, step)
        else:
            run_shape(shape, bench.lab.model.tokenizer, drawn, one, bench.report, step)

    columns = ("stage", "seconds", "units_per_fact", "facts_per_second", "growth", "tera_flops", "peak_gib")
    bench.run(work, columns, None, as_json)


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
