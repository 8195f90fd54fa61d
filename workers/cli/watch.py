"""The command that looks for what did the damage: bisect."""

import json
from typing import Annotated

import typer

from daemon.core.command import Json, load, who


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("bisect")(bisect)


def bisect(
    context: typer.Context,
    revision: Annotated[str | None, typer.Argument(help="a rollback; without it, the newest")] = None,
    as_json: Json = False,
) -> None:
    """Find the guilty among what a rollback took back, quarantine them, and let the rest be written again.

    Tries halves on a copy of head in this process, which needs the memory of one more model; no revision is
    made. Where a probe is not known nothing can be said: that is an error, and nothing has changed.

    Examples: errata bisect | errata bisect 14 --json
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from daemon.core.ledger.revision import parse_revision
    from workers.queue.assemble import SessionHolder
    from workers.session.bisect import bisect as act
    from workers.session.rehearsal import Rehearsal

    config = load(context)
    number = None if revision is None else parse_revision(revision)
    session = SessionHolder(config).session()
    columns = (TextColumn("corrections judged"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        rehearsal = Rehearsal(session.ledger, session.store, session.editor, config)
        found = act(
            rehearsal,
            number,
            who(),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps(found.__dict__))
        return
    typer.echo(
        f"revision {found.revision}: {len(found.guilty)} guilty, now in quarantine; "
        f"{len(found.waiting)} wait for a batch ({found.trials} trials)"
    )
    for one in found.guilty:
        typer.echo(f"guilty: {one}")
