"""The commands that need the model, which join ``errata`` by the entry point group ``errata.commands``."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from daemon.core.command import Json, config_file, load, needs
from daemon.core.names import ProcessRole, Role
from daemon.core.terminal import make_console
from workers.cli import bench, keep, locate, publish, serve, watch
from workers.progress import progress_bars


def add_commands(app: typer.Typer) -> None:
    """Add the workers' commands to ``errata``."""
    app.command("prepare")(prepare)
    app.command("probe")(probe)
    app.command("worker")(worker)
    app.command("recipes")(recipes)
    app.command("tour")(tour)
    app.add_typer(bench.app, name="bench")
    keep.add_commands(app)
    locate.add_commands(app)
    publish.add_commands(app)
    serve.add_commands(app)
    watch.add_commands(app)


def prepare(context: typer.Context) -> None:
    """Download the default model if it is missing, compute its statistics and write revision 0.

    Example: errata prepare
    """
    from workers.cli.prepare import prepare_model

    console = Console(stderr=True)
    with progress_bars(console) as step:
        prepare_model(load(context), step)
    console.print("the model is ready, revision 0 is the unedited model")


def worker(
    context: typer.Context,
    targets: Annotated[
        bool, typer.Option("--targets", help="find targets for the editing worker (needs edit.fan_out)")
    ] = False,
) -> None:
    """Edit batches from the queue, with one Celery worker of one process.

    SIGTERM ends it within 10 seconds; its batch is given back to the queue.

    Examples: errata worker | errata worker --targets
    """
    import os
    import sys

    from daemon.core.broker import ROLE_VARIABLE, worker_arguments
    from daemon.core.config.settings import CONFIG_VARIABLE

    config = load(context)
    if targets:
        os.environ[ROLE_VARIABLE] = ProcessRole.TARGETS
    else:
        prepare(context)
    file = config_file(context)
    if file is not None:
        os.environ[CONFIG_VARIABLE] = str(file.resolve())
    os.execv(sys.executable, [sys.executable, *worker_arguments(config, targets=targets)])  # noqa: S606  # no shell


def probe(
    context: typer.Context,
    revision: Annotated[str | None, typer.Argument(help="revision (default: head)")] = None,
    as_json: Json = False,
) -> None:
    """Run all probes on a revision and record the results in the ledger.

    Examples: errata probe | errata probe 12 --json
    """
    from workers.cli.probe import probe_revision

    number, rows = probe_revision(load(context), revision)
    if as_json:
        keys = ("probe", "result", "score", "bound", "items")
        results = [{key: getattr(row, key) for key in keys} for row in rows]
        typer.echo(json.dumps({"revision": number, "probes": results}))
        return
    table = Table("probe", "result", "score", "bound", "items", "seconds", title=f"revision {number}")
    for row in rows:
        score, bound = _decimals(row.score, 4), _decimals(row.bound, 3)
        table.add_row(row.probe, row.result, score, bound, str(row.items), f"{row.seconds:.1f}")
    make_console().print(table)


@needs(Role.READ)
def recipes(as_json: Json = False) -> None:
    """List the editing recipes that ``edit.recipe`` may name.

    Example: errata recipes --json
    """
    from workers.bench.baselines.registry import METHODS

    if as_json:
        typer.echo(json.dumps({name: one.recipe.model_dump() for name, one in METHODS.items()}))
        return
    table = Table("recipe", "layers", "what it is")
    for name, one in METHODS.items():
        table.add_row(name, str(one.recipe.layers), one.recipe.summary)
    make_console().print(table)


def tour(
    context: typer.Context,
    once: Annotated[
        bool, typer.Option("--once", help="end when all corrections of the feeds are settled")
    ] = False,
) -> None:
    """Show everything once: prepare, edit from the feeds, answers before and after, a rollback and back.

    Example: errata tour --once
    """
    from workers.cli.tour import run_tour

    run_tour(load(context), config_file(context), once=once)


def _decimals(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
