"""The commands quarantine list, release and drop."""

from typing import Annotated

import typer

from daemon.cli.common import Limit, Reason, answer, answer_table, moment, need_reason, open_ledger
from daemon.core.command import Json, load, needs, who
from daemon.core.names import Role

quarantine_app = typer.Typer(help="Items that were refused or reverted, and why.", no_args_is_help=True)
Entry = Annotated[
    int, typer.Argument(min=1, help="number of the entry, see errata quarantine list", metavar="ID")
]


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(quarantine_app, name="quarantine")


@quarantine_app.command("list")
@needs(Role.READ)
def quarantine_list(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="also released and dropped ones")] = False,
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List the quarantined items, newest first, with their origin and the reason.

    Examples: errata quarantine list | errata quarantine list --all --json
    """
    from daemon.core.names import QuarantineState
    from daemon.views.lists import quarantine_list as view

    state = None if everything else QuarantineState.HELD
    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        rows = view(connection, limit=limit, state=state, model=config.model.name)
    columns = ("id", "feed", "position", "reason", "message", "state", "correction_id", "at", "raw")
    shown = [row | {"at": moment(row["at"])} for row in rows]
    answer_table({"quarantine": rows}, "quarantine entries", columns, shown, as_json)


@quarantine_app.command("release")
def release(context: typer.Context, entry: Entry, reason: Reason, as_json: Json = False) -> None:
    """Admit an entry after all, under the same rules as any other item.

    Example: errata quarantine release 3 --reason "the source is right"
    """
    from daemon.admission.quarantine import release as act

    need_reason(reason)
    config = load(context)
    with open_ledger(config) as ledger:
        decision = act(ledger, entry, who(), reason)
    done = {"outcome": str(decision.outcome), "correction": decision.correction_id}
    line = f"entry {entry}: {decision.outcome}, correction {decision.correction_id}"
    answer({"id": entry, **done, "fact": decision.fact_id, "message": decision.message}, line, as_json)


@quarantine_app.command("drop")
def drop(context: typer.Context, entry: Entry, reason: Reason, as_json: Json = False) -> None:
    """Drop an entry, which stays refused.

    Example: errata quarantine drop 3 --reason "nonsense"
    """
    from daemon.admission.quarantine import drop as act

    need_reason(reason)
    config = load(context)
    with open_ledger(config) as ledger:
        act(ledger, entry, who(), reason)
    answer({"id": entry, "state": "dropped"}, f"entry {entry}: dropped", as_json)
