"""The commands diff and top."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.common import age, moment, open_ledger, print_table, say
from daemon.core.command import Json, load, needs, print_json
from daemon.core.names import Role
from daemon.core.terminal import make_console

if TYPE_CHECKING:
    from rich.console import Group

    from daemon.core.config.settings import Config


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("diff")(diff)
    app.command("top")(top)


@needs(Role.READ)
def diff(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="revision before")],
    second: Annotated[str, typer.Argument(help="revision after")],
    as_json: Json = False,
) -> None:
    """Compare the facts, the norms of the edited layers and the probes of two revisions.

    Examples: errata diff 3 7 | errata diff 3 7 --json
    """
    from daemon.core.ledger.revision import parse_revision
    from daemon.views.difference import difference

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        delta = difference(connection, config.model.name, parse_revision(first), parse_revision(second))
    if as_json:
        print_json(delta)
        return
    if delta["same_content"]:
        say(f"revisions {delta['from']} and {delta['to']} have the same weights")
    print_table("changed facts", ("change", "subject", "relation", "before", "after", "fact"), delta["facts"])
    for title in ("norms", "probes"):
        rows = [{"name": name, **pair} for name, pair in delta[title].items()]
        print_table(title, ("name", "before", "after"), rows)


@needs(Role.READ)
def top(
    context: typer.Context,
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="seconds between refreshes")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="print one page and end")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON document per refresh, each on one line")
    ] = False,
) -> None:
    """Watch queue, revisions, probes, feeds, processes and places live.

    Ctrl-C ends it.

    Examples: errata top | errata top --every 10 | errata top --once --json
    """
    import time

    from rich.live import Live

    config = load(context)
    out = make_console()
    with open_ledger(config):  # fails at once when there is none
        pass
    live = Live(console=out, screen=True, auto_refresh=False) if out.is_terminal and not as_json else None
    try:
        if live and not once:
            live.start()
        while True:
            seen = _look(config)
            if as_json:
                typer.echo(json.dumps(seen, ensure_ascii=False, default=str))
            elif live and not once:
                live.update(_page(seen), refresh=True)
            else:
                out.print(_page(seen))
            if once:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return
    finally:
        if live:
            live.stop()


def _look(config: "Config") -> dict[str, Any]:
    from daemon.views.chain import revision_list
    from daemon.views.lists import publication_list
    from daemon.views.status import status

    with open_ledger(config) as ledger, ledger.read() as connection:
        return status(connection, ledger.clock, config.model.name) | {
            "revisions": revision_list(connection, config.model.name, 8),
            "places": publication_list(connection, config.model.name),
        }


def _page(seen: dict[str, Any]) -> "Group":
    """One screen with the queue, revisions, probes, feeds, processes and places."""
    from rich.console import Group
    from rich.text import Text

    queue = seen["queue"]
    head = f"{seen['model']}  head {seen['head']}  live {seen['live']}  {seen['active_facts']} facts"
    wait = (
        f"  {queue['pending']} pending, {queue['queued']} queued, oldest {age(queue['oldest_age_seconds'])}"
    )
    care = [f"{seen['incidents_open']} INCIDENTS OPEN"] if seen["incidents_open"] else []
    care += ["PAUSED"] if seen["paused"] else []
    care += [f"LOST: {', '.join(seen['lost'])}"] if seen["lost"] else []
    parts: list[Any] = [
        Text(f"{seen['at'][:19]}Z  ", style="dim") + Text(head, style="bold") + Text(wait),
        Text("  ".join(care), style="bold red"),
    ]
    revisions = [row | {"created": moment(row["created_at"])} for row in seen["revisions"]]
    feeds = [row | {"pulled": age(row["lag_seconds"])} for row in seen["feeds"]]
    processes = [
        row | {"heard": age(row["heartbeat_age_seconds"]), "MiB": row["memory_bytes"] >> 20}
        for row in seen["processes"]
    ]
    tables = (
        (("number", "kind", "state", "active_facts", "created"), revisions),
        (("probe", "result", "score", "bound", "items"), seen["probes"]),
        (("name", "items", "pulled", "error"), feeds),
        (("role", "name", "life", "state", "heard", "device", "MiB"), processes),
        (("place", "held", "revision", "attempts", "message"), seen["places"]),
    )
    return Group(*parts, *(_table(columns, rows) for columns, rows in tables if rows))


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from daemon.cli.common import cell

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for row in rows:
        not_ok = row.get("result") in ("degraded", "unknown")
        bad = not_ok or row.get("state") == "rejected" or row.get("error") or row.get("life") == "lost"
        table.add_row(*(Text(cell(row.get(key))) for key in columns), style="red" if bad else "")
    return table
