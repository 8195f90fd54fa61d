"""The command ``locate``, which chooses layers."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from daemon.core.command import Json, load, needs
from daemon.core.fsio import write_durably
from daemon.core.names import Role
from daemon.core.terminal import make_console

if TYPE_CHECKING:
    from daemon.core.config.settings import Config
    from workers.locate.run import Located, Options
    from workers.locate.sweep import Pair


def add_commands(app: typer.Typer) -> None:
    """Add the command."""
    app.command("locate")(locate)


@needs(Role.READ)
def locate(
    context: typer.Context,
    against: Annotated[
        list[str] | None, typer.Option(help="pair of layers that competes too, as 3,8; may be repeated")
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines: relation, subject, prompt, answer, paraphrase; without it, the shipped ones"
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="known facts that are traced, at most")] = 24,
    noises: Annotated[int, typer.Option(min=1, help="draws of noise for each")] = 4,
    edits: Annotated[int, typer.Option(min=1, help="facts edited at each pair, at most")] = 12,
    batch: Annotated[int, typer.Option(min=1, help="facts in one batch")] = 8,
    pairs: Annotated[int, typer.Option(min=1, max=5, help="pairs that the trace proposes, at most")] = 3,
    recipe: Annotated[str | None, typer.Option(help="recipe that is tried; without it, edit.recipe")] = None,
    seed: Annotated[int, typer.Option(help="draws facts, noise and edits")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder of results; without it, locate in the data directory")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over instead of resuming")] = False,
    picture: Annotated[bool, typer.Option(help="draw locate.png (extra bench)")] = True,
    as_json: Json = False,
) -> None:
    """Choose the layers to edit in a model and write them to a recipe file.

    Facts that the model knows are traced: their subject becomes noise, and one layer's state at the subject's
    last token is restored. The part of the answer's probability that returns shows where facts are recalled.
    The pairs of boundary layers that follow are tried by real edits, the best ones again on other facts. The
    model's files are not touched. Ends with an error where less than half of the edits succeed at any pair.
    Run the same command again to resume an interrupted run.

    Examples: errata locate | errata locate --against 3,8 --seed 1 | errata locate --facts mine.jsonl --json
    """
    from workers.bench.lab import engine
    from workers.bench.report import Report
    from workers.locate.report import require_pictures
    from workers.locate.run import Options, locate_layers
    from workers.progress import progress_bars

    config, start = load(context), time.monotonic()
    if picture:
        require_pictures()
    rivals = tuple(_pair(text) for text in against or ())
    options = Options(recipe or config.edit.recipe, facts, n, noises, edits, batch, pairs, rivals, seed)
    console, folder = Console(stderr=True), out or config.data_dir / "locate"
    same = {"plan": asdict(options), "edit": config.edit.recipe_overrides, "model": config.model_path}
    kept = Report(folder, {**same, "dtype": config.model.dtype, "engine": engine()}, fresh=fresh)
    if kept.resumed:
        console.print(f"resuming after {kept.resumed} results in {folder} (--fresh starts over)")
    with progress_bars(console) as step:
        located = locate_layers(config, options, kept, step)
    kept.finish()
    _show(config, options, located, folder, time.monotonic() - start, picture=picture, as_json=as_json)
    console.print(f"results: {folder}")


def _show(
    config: "Config",
    options: "Options",
    located: "Located",
    folder: Path,
    seconds: float,
    *,
    picture: bool,
    as_json: bool,
) -> None:
    """Write and print the results of a run that took ``seconds``."""
    from workers.locate import report

    model, overrides = config.model_path.name, config.edit.recipe_overrides
    document = report.document(options, located, model, seconds)
    write_durably(folder / "locate.json", json.dumps(document, indent=1).encode())
    if picture:
        report.draw(folder / "locate.png", located.trace, located.choice)
    located.require_useful()
    recipe_text = report.recipe_text(options, overrides, located.layers, model)
    write_durably(folder / "recipe.toml", recipe_text.encode())
    if as_json:
        typer.echo(json.dumps(document))
        return
    screen = make_console()
    screen.print(report.trace_table(located))
    screen.print(report.choice_table(located.choice, options.edits))
    for line in report.comparison(located.choice):
        screen.print(line, highlight=False)
    screen.print(recipe_text, highlight=False, markup=False)


def _pair(text: str) -> "Pair":
    """Parse ``3,8`` as two layers."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not a pair of layers such as 3,8", param_hint="--against")
    return int(parts[0]), int(parts[1])
