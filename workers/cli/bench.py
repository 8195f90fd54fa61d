"""The commands of ``errata bench``."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from daemon.core.command import Json, load, needs
from daemon.core.names import Role
from daemon.core.terminal import make_console

if TYPE_CHECKING:
    from workers.bench.facts import BenchFact
    from workers.editing.recipes import Recipe
    from workers.progress import Step

app = typer.Typer(
    no_args_is_help=True,
    help="Measure editing on CounterFact and zsRE: tables, JSON lines and curves (extra bench). Run the same "
    "command again to resume an interrupted run; results of other runs move to the folder earlier.",
)

Count = Annotated[int, typer.Option("--n", min=1, help="facts")]
Batch = Annotated[int, typer.Option(min=1, help="facts in one batch")]

_METRICS = ("es", "ps", "ns", "s", "es_argmax", "ps_argmax", "ns_argmax", "greedy", "perplexity")
_SEQUENCE_CURVES = ("greedy", "first_100", "ps", "ns", "perplexity")


@dataclass(frozen=True)
class Common:
    """The options that every bench has."""

    context: typer.Context
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="recipe, may be repeated; 'all' for every one")
    ] = None
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="recipe setting as name=JSON, may be repeated")
    ] = None
    seed: Annotated[
        int | None, typer.Option(help="draw the facts from the whole file; without it, its first ones")
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(help="the data set's file; without it, the one beside the checkout or the hub's"),
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="folder of results; without it, bench/<name> in the data directory")
    ] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="start over instead of resuming")] = False
    as_json: Json = False

    def facts(self, name: str, n: int) -> "list[BenchFact]":
        """Return ``n`` facts of a data set."""
        from workers.bench.facts import load_facts

        return load_facts(name, n, self.seed, self.data)


def bench_command(work: Callable[..., None]) -> Callable[..., None]:
    """Register a command whose first parameter is a ``Common``, the others being options of its own."""
    own = list(inspect.signature(work).parameters.values())[1:]
    shared = list(inspect.signature(Common).parameters.values())
    every = (shared[0], *own, *shared[1:])
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in every]

    @wraps(work)
    def command(**values: Any) -> None:
        common = Common(**{one.name: values.pop(one.name) for one in shared})
        work(common, **values)

    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return app.command()(needs(Role.READ)(command))


class Bench:
    """One run of a bench: its recipes, its lab, and its results.

    It is the same run as an earlier one when its options, recipes, model and editing code are the same.
    """

    def __init__(self, common: Common, name: str, **options: Any) -> None:
        from workers.bench.baselines.registry import METHODS, resolve
        from workers.bench.lab import Lab, engine
        from workers.bench.report import Report
        from workers.models.open import open_model

        config = load(common.context)
        self.console, self._name, self._as_json = Console(stderr=True), name, common.as_json
        self.lab = Lab(open_model(config), config.data_dir / "statistics", config.model.corpus)
        names = common.recipe or [config.edit.recipe]
        overrides = dict(config.edit.recipe_overrides) | _settings(common.settings)
        self.recipes: list[Recipe] = [
            resolve(one, overrides, self.lab.model.n_layers)
            for one in (METHODS if "all" in names else dict.fromkeys(names))
        ]
        recipes = [one.model_dump() for one in self.recipes]
        same = {"bench": name, **options, "seed": common.seed, "data": common.data, "recipes": recipes}
        same |= {"model": config.model_path, "dtype": str(self.lab.model.dtype), "engine": engine()}
        self.report = Report(common.out or config.data_dir / "bench" / name, same, fresh=common.fresh)
        if self.report.resumed:
            self.console.print(
                f"resuming after {self.report.resumed} rows in {self.report.folder} (--fresh starts over)"
            )

    def run(self, work: "Callable[[Step], None]", columns: Sequence[str], curves: Sequence[str] = ()) -> None:
        """Do the work under a progress bar, then show the table and draw the curves against the edits."""
        from workers.progress import progress_bars

        with progress_bars(self.console) as step:
            self.lab.progress = lambda done, total: step("statistics", done, total)
            work(step)
        if self._as_json:
            typer.echo(json.dumps(self.report.rows))
        else:
            make_console().print(self.report.table(f"errata bench {self._name}", columns))
        if curves and self.report.curves("n", curves, f"errata bench {self._name}") is None:
            self.console.print("no curves: matplotlib is not installed (pip install 'errata\\[bench]')")
        self.report.finish()
        self.console.print(f"results: {self.report.folder}")


@bench_command
def counterfact(common: Common, n: Count = 24, batch: Batch = 24) -> None:
    """One table of all metrics, a row a recipe, the base model first.

    Examples: errata bench counterfact --n 24 --batch 24 | errata bench counterfact --recipe all
    """
    _table(common, "counterfact", n, batch)


@bench_command
def zsre(common: Common, n: Count = 24, batch: Batch = 24) -> None:
    """The same on zsRE's questions.

    The neighborhood is an unrelated question.

    Example: errata bench zsre --n 24 --recipe encore-blue
    """
    _table(common, "zsre", n, batch)


def _table(common: Common, name: str, n: int, batch: int) -> None:
    from workers.bench.runs import run_table

    facts = common.facts(name, n)
    bench = Bench(common, name, n=n, batch=batch)
    bench.run(
        lambda step: run_table(bench.lab, facts, bench.recipes, batch, bench.report, step),
        ("recipe", *_METRICS, "units_per_fact"),
    )


@bench_command
def sequence(
    common: Common,
    n: Count = 300,
    batch: Batch = 20,
    every: Annotated[int, typer.Option(min=1, help="measure after so many facts")] = 100,
    review: Annotated[
        int, typer.Option(min=0, help="old facts asked after each batch; those that slipped are mended")
    ] = 300,
) -> None:
    """Lifelong editing: batch after batch, measured on all facts so far, with curves.

    Run the same command again to resume after the last batch.

    Example: errata bench sequence --n 300 --batch 20 --recipe encore-blue --recipe memit
    """
    from workers.bench.runs import run_sequence

    facts = common.facts("counterfact", n)
    bench = Bench(common, "sequence", n=n, batch=batch, review=review, every=every)
    norms = _norms(bench)

    def work(step: "Step") -> None:
        for one in bench.recipes:
            run_sequence(bench.lab, facts, one, batch, review, every, bench.report, step)

    scores = ("greedy", "first_100", "es", "ps", "ns", "perplexity")
    counts = ("capacity", "mended", "refused", "units_per_fact")
    bench.run(work, ("recipe", "n", *scores, *norms, *counts), (*_SEQUENCE_CURVES, *norms, "capacity"))


@bench_command
def revisions(
    common: Common,
    facts: Annotated[int, typer.Option(min=2, help="facts that are revised")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="how often")] = 10,
) -> None:
    """Revise the same facts again and again, forgetting the old value first and by history alone.

    Example: errata bench revisions --facts 20 --rounds 10
    """
    from workers.bench.runs import run_revisions

    drawn = common.facts("counterfact", 2 * facts)
    bench = Bench(common, "revisions", facts=facts, rounds=rounds)
    norms = _norms(bench)
    bench.run(
        lambda step: run_revisions(bench.lab, drawn, bench.recipes[0], rounds, bench.report, step),
        ("recipe", "round", "n", "greedy", "others", "ps", "ns", *norms, "perplexity", "refused"),
        ("greedy", "others", "ps", "ns", "perplexity", *norms),
    )


@bench_command
def retract(
    common: Common,
    n: Count = 60,
    batch: Batch = 20,
    retract: Annotated[int, typer.Option(min=1, help="facts to take back, in random order")] = 20,
) -> None:
    """Retract some facts one by one in random order, then all of them.

    Example: errata bench retract --n 60 --retract 20
    """
    from workers.bench.runs import run_retract

    drawn, seed = common.facts("counterfact", n), common.seed
    bench = Bench(common, "retract", n=n, retract=retract, batch=batch)
    bench.run(
        lambda step: run_retract(
            bench.lab, drawn, bench.recipes[0], batch, retract, seed, bench.report, step
        ),
        ("what", "n", "greedy", "es", "ps", "ns", "perplexity", *_norms(bench), "bit_equal"),
    )


@bench_command
def cost(
    common: Common,
    batch: Batch = 16,
    shape: Annotated[
        str | None, typer.Option(help="llama-3-8b or small: random weights of that shape")
    ] = None,
) -> None:
    """Where the time of one batch goes, and whether the cost grows with the facts held.

    A forward unit is the time of one forward pass over 8 sequences of 125 tokens in the same process.

    Examples: errata bench cost --batch 16 | errata bench cost --shape llama-3-8b --batch 100
    """
    from workers.bench.cost import SHAPES, run_cost, run_shape

    if shape is not None and shape not in SHAPES:
        raise typer.BadParameter(f"one of {', '.join(SHAPES)}", param_hint="--shape")
    drawn = common.facts("counterfact", batch)
    bench = Bench(common, "cost", batch=batch, shape=shape)
    one = bench.recipes[0]

    def work(step: "Step") -> None:
        if shape is None:
            run_cost(bench.lab, drawn, one, bench.report, step)
        else:
            run_shape(shape, bench.lab.model.tokenizer, drawn, one, bench.report, step)

    bench.run(
        work, ("stage", "seconds", "units_per_fact", "facts_per_second", "growth", "tera_flops", "peak_gib")
    )


def _norms(bench: Bench) -> tuple[str, ...]:
    """Return the columns of the weights' norms at the first recipe's layers."""
    return tuple(f"norm_{layer}" for layer in bench.recipes[0].layers)


def _settings(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Parse options of the form name=JSON, or name=text."""
    settings = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not value:
            raise typer.BadParameter(f"{pair!r} is not name=value", param_hint="--set")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings
