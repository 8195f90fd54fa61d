"""The commands status, facts, revisions, show, incidents, metrics and audit."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from daemon.cli.common import (
    Limit,
    Reason,
    age,
    answer,
    answer_table,
    cell,
    lost_lines,
    moment,
    need_reason,
    object_text,
    open_ledger,
    print_table,
    say,
)
from daemon.core.command import Json, load, needs, print_json, require_role, who
from daemon.core.names import Role

_REVISION_KEYS = (
    "kind", "state", "parent", "content_of", "content", "recipe", "batch_id", "created_at", "reason",
)  # fmt: skip
audit_app = typer.Typer(help="Who did what, when and why.", no_args_is_help=True)


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (status, facts, revisions, show, incidents, metrics):
        app.command(command.__name__)(command)
    app.add_typer(audit_app, name="audit")


@needs(Role.READ)
def status(context: typer.Context, as_json: Json = False) -> None:
    """Show head, live, queue, corrections, probes, incidents, feeds and processes on one page.

    A process that is silent and did not end in order is shown as lost, with exit status 0: errata doctor is
    the check.

    Example: errata status
    """
    from daemon.views.status import status as view

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        page = view(connection, ledger.clock, config.model.name)
    print_json(page) if as_json else _print_status(page)


@needs(Role.READ)
def facts(
    context: typer.Context,
    fact: Annotated[
        str | None,
        typer.Argument(help="show the history of this fact: its id, a unique prefix of it, or its subject"),
    ] = None,
    state: Annotated[str | None, typer.Option(help="only facts in this state, such as applied")] = None,
    limit: Limit = 1000,
    as_json: Json = False,
) -> None:
    """List the facts with their wanted value and the one in the weights, or show the history of one.

    Examples: errata facts | errata facts --state reverted --json | errata facts Bulgaria
    """
    from daemon.views.facts import fact_list, fact_story, find_fact

    config = load(context)
    model = config.model.name
    with open_ledger(config) as ledger, ledger.read() as connection:
        if fact is not None:
            story = fact_story(connection, find_fact(connection, fact, model))
        else:
            rows = fact_list(connection, model, limit=limit, state=_state(state))
    if fact is not None:
        print_json(story) if as_json else _print_history(story)
    else:
        shown = [
            row
            | {"object": object_text(row["object"]), "in weights": row["in_weights"]}
            | {"since": moment(row["since"])}
            for row in rows
        ]
        columns = ("fact", "subject", "relation", "object", "state", "in weights", "revision", "since")
        answer_table({"model": model, "facts": rows}, "facts", columns, shown, as_json)


@needs(Role.READ)
def revisions(context: typer.Context, limit: Limit = 50, as_json: Json = False) -> None:
    """List the newest revisions with their probes, newest first.

    Examples: errata revisions | errata revisions --limit 500 --json
    """
    from daemon.views.chain import revision_list

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        rows = revision_list(connection, config.model.name, limit)
    shown = [
        {
            "revision": row["number"],
            "is": " ".join(name for name in ("head", "live") if row[f"is_{name}"]),
            "kind": row["kind"] if row["content_of"] is None else f"{row['kind']} to {row['content_of']}",
            "state": row["state"],
            "facts": row["active_facts"],
            "content": row["content"][:12],
            "created": moment(row["created_at"]),
            "probes": ", ".join(_probe(probe) for probe in row["probes"]),
            "why": row["reason"] or _taken_back(row),
        }
        for row in rows
    ]
    document, columns = {"model": config.model.name, "revisions": rows}, tuple(shown[0]) if shown else ()
    answer_table(document, "revisions", columns, shown, as_json)


def _taken_back(row: Mapping[str, Any]) -> str:
    return "" if row["taken_back_by"] is None else f"taken back by revision {row['taken_back_by']}"


@needs(Role.READ)
def show(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(help="revision, such as 17", metavar="REV")],
    as_json: Json = False,
) -> None:
    """Show one revision: what it wrote and ended, its probes, stages, norms and tensors.

    Examples: errata show 17 | errata show 17 --json
    """
    from daemon.core.ledger.revision import parse_revision
    from daemon.views.chain import revision_detail

    config = load(context)
    number = parse_revision(revision)
    with open_ledger(config) as ledger, ledger.read() as connection:
        detail = revision_detail(connection, config.model.name, number)
    print_json(detail) if as_json else _print_revision(detail)


@needs(Role.READ)
def incidents(
    context: typer.Context,
    unsettled: Annotated[bool, typer.Option("--open", help="only those that are not settled")] = False,
    close: Annotated[int | None, typer.Option(metavar="ID", help="close this incident by hand")] = None,
    reason: Reason = "",
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List the incidents: what each accuses, why, and what was done about it.

    Examples: errata incidents --open | errata incidents --close 3 --reason "floor was too high"
    """
    from daemon.core.ledger.incidents import close_incident
    from daemon.views.lists import accused, incident_list

    config = load(context)
    with open_ledger(config) as ledger:
        if close is not None:
            require_role(config, Role.OPERATE, "errata incidents --close")
            need_reason(reason)
            with ledger.write() as connection:
                close_incident(connection, ledger.clock.now(), close, who(), reason)
        with ledger.read() as connection:
            rows = incident_list(connection, limit=limit, model=config.model.name, unsettled=unsettled)
    columns = ("id", "accuses", "probe", "state", "message", "opened", "closed", "rolled back by")
    shown = [
        row
        | {"opened": moment(row["opened_at"]), "closed": moment(row["closed_at"])}
        | {"accuses": accused(row), "rolled back by": row["rollback_revision"]}
        for row in rows
    ]
    document = {"model": config.model.name, "incidents": rows}
    answer_table(document, "incidents", columns, shown, as_json)


@needs(Role.READ)
def metrics(context: typer.Context) -> None:
    """Print the metrics in the text format of Prometheus, as /metrics does.

    Example: errata metrics | promtool check metrics
    """
    from daemon.views.prometheus import render

    config = load(context)
    with open_ledger(config) as ledger:
        typer.echo(render(ledger, config).decode(), nl=False)


@audit_app.command("list")
@needs(Role.READ)
def audit_list(context: typer.Context, limit: Limit = 50, as_json: Json = False) -> None:
    """List the newest rows of the audit, newest first.

    Example: errata audit list --limit 20
    """
    from daemon.views.lists import audit_list as view

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        rows = view(connection, limit=limit)
    shown = [row | {"at": moment(row["at"])} for row in rows]
    columns = ("id", "at", "who", "action", "target", "reason")
    answer_table({"audit": rows}, "audit rows", columns, shown, as_json)


@audit_app.command("verify")
@needs(Role.READ)
def audit_verify(context: typer.Context, as_json: Json = False) -> None:
    """Check that no row of the audit was changed or removed.

    Exit status 1 when one was.

    Example: errata audit verify
    """
    from daemon.core.ledger.audit import first_broken_row

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        broken = first_broken_row(connection)
    problem = f"row {broken} of the audit does not match the hash chain: compare with a backup"
    line = "the audit is intact" if broken is None else problem
    answer({"ok": broken is None, "first_broken_row": broken}, line, as_json)
    if broken is not None:
        raise typer.Exit(1)


def _state(text: str | None) -> str | None:
    """The state if it is known, else a usage error."""
    from daemon.core.names import CorrectionState

    known = [str(state) for state in CorrectionState]
    if text is not None and text not in known:
        raise typer.BadParameter(f"no state {text!r}; one of {', '.join(known)}", param_hint="--state")
    return text


def _probe(probe: dict[str, Any]) -> str:
    """A probe's score, with its result unless that is ok."""
    result = "" if probe["result"] == "ok" else f" {probe['result']}"
    return f"{probe['probe']} {cell(probe['score'])}{result}"


def _print_status(page: dict[str, Any]) -> None:
    queue = page["queue"]
    say(f"model        {page['model']}{'  PAUSED' if page['paused'] else ''}")
    say(f"head         {cell(page['head'])}, live {cell(page['live'])}, {page['active_facts']} active facts")
    say(
        f"queue        {queue['pending']} pending, {queue['queued']} queued,"
        f" oldest {age(queue['oldest_age_seconds'])}"
    )
    say("corrections  " + (", ".join(f"{n} {state}" for state, n in page["corrections"].items()) or "none"))
    say(f"quarantine   {page['quarantine_held']} held")
    say(f"incidents    {page['incidents_open']} open")
    for line in lost_lines(page["processes"]):
        say(f"LOST         {line}")
    for switch in page["switches_on"]:
        say(f"switch       {switch['name']} since {moment(switch['at'])}: {switch['reason']}")
    print_table("probes of head", ("probe", "result", "score", "bound", "items"), page["probes"])
    feeds = [row | {"last pull": age(row["lag_seconds"])} for row in page["feeds"]]
    print_table("feeds", ("name", "items", "last pull", "paused", "error"), feeds)
    processes = [
        row | {"heartbeat": age(row["heartbeat_age_seconds"]), "MiB": row["memory_bytes"] >> 20}
        for row in page["processes"]
    ]
    print_table("processes", ("role", "name", "life", "state", "heartbeat", "device", "MiB"), processes)


def _print_history(story: dict[str, Any]) -> None:
    say(f"fact     {story['fact']}")
    say(f"subject  {story['subject']}")
    say(f"relation {story['relation']}")
    rows = [
        row
        | {
            "object": object_text(row["object"]),
            "admitted": moment(row["admitted_at"]),
            "in the weights": ", ".join(
                f"{h['since']}..{'' if h['until'] is None else h['until'] - 1}" for h in row["held"]
            ),
        }
        for row in story["corrections"]
    ]
    columns = ("id", "object", "state", "in the weights", "source", "feed", "admitted", "reason")
    print_table("corrections", columns, rows)


def _print_revision(detail: dict[str, Any]) -> None:
    flags = " ".join(name for name in ("head", "live") if detail[f"is_{name}"])
    say(f"revision {detail['number']} {flags}".rstrip())
    for key in _REVISION_KEYS:
        if detail[key] not in (None, ""):
            say(f"  {key:<12} {detail[key]}")
    say(f"  {'facts':<12} {detail['active_facts']}")
    measured = ("probe", "version", "result", "score", "bound", "items", "seconds")
    print_table("probes", measured, detail["probes"])
    columns = ("fact_id", "subject", "relation", "object", "correction_id")
    for name in ("written", "ended"):
        rows = [row | {"object": object_text(row["object"])} for row in detail[name]]
        print_table(f"corrections {name}", columns, rows)
    stages = [{"stage": stage, "seconds": seconds} for stage, seconds in detail["stages"].items()]
    print_table("stages", ("stage", "seconds"), stages)
    norms = [{"layer": layer, "change": norm} for layer, norm in detail["norms"].items()]
    print_table("norms", ("layer", "change"), norms)
    tensors = [{"tensor": name, "sha256": blob} for name, blob in detail["tensors"].items()]
    print_table("tensors", ("tensor", "sha256"), tensors)
