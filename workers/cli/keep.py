"""The command ``rebuild``, which solves head again from its facts and compares."""

import json
from typing import Annotated

import typer

from daemon.core.command import Json, load, who


def add_commands(app: typer.Typer) -> None:
    """Add the command to ``errata``."""
    app.command("rebuild")(rebuild)


def rebuild(
    context: typer.Context,
    mend: Annotated[
        bool,
        typer.Option("--mend", help="write damaged tensors again, and a revision where head's differ"),
    ] = False,
    as_json: Json = False,
) -> None:
    """Solve head again from the base weights and its stored facts, and compare with its stored tensors.

    With --mend the damaged tensors of all kept revisions are solved and written again. The exit status is 1
    where head differs and was not mended, or where blobs stay damaged, which are listed.

    Examples: errata rebuild | errata rebuild --mend
    """
    from daemon.core.ledger.ledger import Ledger
    from workers.queue.assemble import make_editor
    from workers.revisions.loading import DRIFT
    from workers.revisions.recovery import mend_tensors
    from workers.revisions.recovery import rebuild as act
    from workers.revisions.store import Store

    config = load(context)
    ledger = Ledger.open_existing(config.ledger_url)
    store, editor, model = Store(config.store_path), make_editor(config), config.model.name
    damaged = mend_tensors(ledger, store, editor, model) if mend else []
    rebuilt = act(ledger, store, editor, model, who(), mend=mend)
    if as_json:
        answer = {"revision": rebuilt.revision, "agrees": rebuilt.agrees, "drift": rebuilt.drift}
        typer.echo(json.dumps({**answer, "head": rebuilt.number, "damaged": damaged}))
    else:
        for name, drift in rebuilt.drift.items():
            typer.echo(
                f"{name}: " + ("cannot be read" if drift is None else f"{drift:.2e} (limit {DRIFT:g})")
            )
        word = "equals" if rebuilt.agrees else "differs from"
        typer.echo(f"revision {rebuilt.revision} {word} what its facts give, head is {rebuilt.number}")
        for blob in damaged:
            typer.echo(f"blob {blob} stays damaged: errata restore FOLDER --blobs takes it from a backup")
    if damaged or (not rebuilt.agrees and rebuilt.number == rebuilt.revision):
        raise typer.Exit(1)
