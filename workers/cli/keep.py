"""The command that compares head with what its facts amount to: rebuild."""

import json
from typing import Annotated

import typer

from daemon.core.command import Json, load, who


def add_commands(app: typer.Typer) -> None:
    """Add this command."""
    app.command("rebuild")(rebuild)


def rebuild(
    context: typer.Context,
    mend: Annotated[bool, typer.Option("--mend", help="where they part, append the rebuilt tensors")] = False,
    as_json: Json = False,
) -> None:
    """Solve head anew from the base weights and its stored facts, and compare; exit 1 when they part.

    Examples: errata rebuild | errata rebuild --mend
    """
    from daemon.core.ledger.ledger import Ledger
    from workers.queue.assemble import make_editor
    from workers.revisions.loading import DRIFT
    from workers.revisions.recovery import rebuild as act
    from workers.revisions.store import Store

    config = load(context)
    ledger = Ledger.open_existing(config.ledger_url)
    found = act(ledger, Store(config.store_path), make_editor(config), config.model.name, who(), mend=mend)
    if as_json:
        answer = {"revision": found.revision, "agrees": found.agrees, "drift": found.drift}
        typer.echo(json.dumps({**answer, "head": found.number}))
    else:
        for name, drift in found.drift.items():
            typer.echo(
                f"{name}: " + ("cannot be read" if drift is None else f"{drift:.2e} (limit {DRIFT:g})")
            )
        word = "is" if found.agrees else "is not"
        typer.echo(f"revision {found.revision} {word} what its facts amount to; head is {found.number}")
    if not found.agrees and found.number == found.revision:
        raise typer.Exit(1)
