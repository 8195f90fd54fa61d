"""The command ``bisect``, which finds the corrections that did damage."""

import json
from functools import partial
from typing import Annotated

import typer

from daemon.core.command import Json, load, who


def add_commands(app: typer.Typer) -> None:
    """Add the command to ``errata``."""
    app.command("bisect")(bisect)


def bisect(
    context: typer.Context,
    revision: Annotated[str | None, typer.Argument(help="rollback (default: the newest)")] = None,
    as_json: Json = False,
) -> None:
    """Find the corrections of a rollback that did the damage, quarantine them and queue the others again.

    Tries halves of what the rollback reverted on a copy of head in this process, which needs the memory of
    one more model. No revision is made. A probe that cannot be measured is an error, and nothing changes.

    Examples: errata bisect | errata bisect 14 --json
    """
    from rich.console import Console

    from daemon.core.ledger.revision import parse_revision
    from workers.progress import progress_bars
    from workers.queue.assemble import SessionHolder
    from workers.session.bisect import bisect as act
    from workers.session.rehearsal import Rehearsal

    config = load(context)
    number = None if revision is None else parse_revision(revision)
    rehearsal = Rehearsal(SessionHolder(config).session().copy)
    with progress_bars(Console(stderr=True), transient=True) as step:
        result = act(rehearsal, number, who(), partial(step, "corrections judged"))
    if as_json:
        document = {"revision": result.revision, "guilty": result.culprits, "waiting": result.waiting}
        typer.echo(json.dumps(document | {"trials": result.trials}))
        return
    typer.echo(
        f"revision {result.revision}: {len(result.culprits)} culprits, now in quarantine; "
        f"{len(result.waiting)} wait for a batch ({result.trials} trials)"
    )
    for one in result.culprits:
        typer.echo(f"culprit: {one}")
