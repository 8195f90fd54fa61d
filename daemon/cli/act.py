"""The commands submit, retract, rollback, pause and resume, each of which leaves a row in the audit."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.cli.common import Reason, answer, answer_table, need_reason, open_ledger
from daemon.cli.feeds import paused_text, set_paused
from daemon.core.command import Json, load, needs, who
from daemon.core.names import Role

_MAX_BYTES = 64 << 20  # of one submission: it is held in memory


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (submit, retract, rollback, pause, resume):
        app.command(command.__name__)(command)


@needs(Role.SUBMIT)
def submit(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="JSON: one correction, a list, or one per line; - is stdin")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="what the fact is about, a part of the prompt")] = None,
    object_: Annotated[str | None, typer.Option("--object", help="the new value")] = None,
    prompt: Annotated[str | None, typer.Option(help="text that ends where the object follows")] = None,
    relation: Annotated[str | None, typer.Option(help="name of the relation; default the prompt")] = None,
    paraphrase: Annotated[list[str] | None, typer.Option(help="another wording; may be repeated")] = None,
    neighborhood: Annotated[
        list[str] | None, typer.Option(help="prompt that must not change; may be repeated")
    ] = None,
    source: Annotated[str | None, typer.Option(help="where this comes from")] = None,
    effective_at: Annotated[
        str | None, typer.Option(help="since when it is true, ISO 8601 with zone")
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit one correction by options, or any number as JSON.

    All are checked before the first one is admitted.

    Examples: errata submit --subject Bulgaria --prompt "The currency of Bulgaria is the" --object euro |
    errata submit corrections.jsonl | cat one.json | errata submit -
    """
    given = {
        "subject": subject,
        "object": object_,
        "prompt": prompt,
        "relation": relation,
        "paraphrases": paraphrase,
        "neighborhood": neighborhood,
        "effective_at": effective_at,
        "source": source,
    }
    item = {key: value for key, value in given.items() if value}
    if (file is None) is (not item):
        raise typer.BadParameter("give a file (- is stdin) or --subject, --prompt and --object")
    from daemon.admission.submission import Submission, read_items, submit_all

    items = read_items(_read(file)) if file is not None else [_complete(item)]
    config = load(context)
    with open_ledger(config) as ledger:
        rows = submit_all(ledger, config.model.name, items, Submission(who()))
    columns = ("correction", "fact", "outcome", "message")
    answer_table({"corrections": rows}, "corrections", columns, rows, as_json)


def retract(
    context: typer.Context,
    fact: Annotated[str, typer.Argument(help="id, a unique prefix of it, or the subject", metavar="FACT")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Take one fact out of the weights and keep all others.

    Example: errata retract Bulgaria --reason "the source withdrew it"
    """
    from daemon.admission.retraction import retract as act

    config = load(context)
    with open_ledger(config) as ledger:
        done = act(ledger, config.model.name, fact, who(), need_reason(reason))
    note = f" ({done['message']})" if done["message"] else ""
    answer(done, f"{done['fact']} {done['subject']}: retraction {done['outcome']}{note}", as_json)


def rollback(
    context: typer.Context,
    reason: Reason,
    to: Annotated[str | None, typer.Option(metavar="REV", help="revision whose content comes back")] = None,
    last_good: Annotated[
        bool, typer.Option("--last-good", help="the newest revision below head that passed its probes")
    ] = False,
    expected_head: Annotated[
        str | None, typer.Option(metavar="REV", help="refuse unless this revision is head")
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="then quarantine the culprits and queue the others again")
    ] = False,
    as_json: Json = False,
) -> None:
    """Append a revision with the content of an earlier one.

    Nothing is deleted, and a rollback can be rolled back.

    Examples: errata rollback --to 12 --reason "bad source" | errata rollback --last-good --reason "3 a.m."
    | errata rollback --last-good --bisect --reason "one of these is bad"
    """
    if (to is None) is not last_good:
        raise typer.BadParameter("give --to REV or --last-good")
    from daemon.core.ledger.chain import get_revision
    from daemon.core.ledger.revision import parse_revision
    from daemon.watch.rollback import roll_back, taken_back_warning

    config = load(context)
    then = _command(context, "bisect") if bisect else None
    number = None if to is None else parse_revision(to)
    expected = None if expected_head is None else parse_revision(expected_head)
    with open_ledger(config) as ledger:
        with ledger.read() as connection:
            warning = "" if number is None else taken_back_warning(connection, config.model.name, number)
        if warning:
            typer.echo(f"warning: {warning}", err=True)
        head = roll_back(
            ledger,
            config.model.name,
            config.store_path,
            to=number,
            last_good=last_good,
            who=who(),
            reason=need_reason(reason),
            expected_head=expected,
        )
        with ledger.read() as connection:
            content_of = get_revision(connection, config.model.name, head)["content_of"]
    if then is not None:
        arguments = [str(head), *(["--json"] if as_json else [])]
        with then.make_context("bisect", arguments, context.parent) as inner:
            then.invoke(inner)
        return
    document = {"model": config.model.name, "head": head, "content_of": content_of}
    document |= {"warning": warning} if warning else {}
    answer(document, f"head is {head}, with the content of revision {content_of}", as_json)


def _command(context: typer.Context, name: str) -> Any:
    """Another command of this installation, or ConfigError if the workers are not installed here."""
    from daemon.core.errors import ConfigError

    group = context.parent
    command = group.command.get_command(group, name) if group else None  # type: ignore[attr-defined]
    if command is None:
        raise ConfigError(f"errata {name} is not installed here", hint="run it on a host with the workers")
    return command


def pause(
    context: typer.Context,
    reason: Reason,
    feed: Annotated[str | None, typer.Option(help="only this feed")] = None,
    as_json: Json = False,
) -> None:
    """Pause all edits of the model, or one feed.

    Corrections that arrive meanwhile wait.

    Examples: errata pause --reason "maintenance" | errata pause --feed wikidata --reason "vandals"
    """
    _turn(context, feed, reason, as_json, on=True)


def resume(
    context: typer.Context,
    reason: Reason = "",
    feed: Annotated[str | None, typer.Option(help="only this feed")] = None,
    as_json: Json = False,
) -> None:
    """Resume the edits or one feed, also after a freeze by an incident.

    Examples: errata resume --reason "looked at it" | errata resume --feed wikidata
    """
    _turn(context, feed, reason, as_json, on=False)


def _turn(context: typer.Context, feed: str | None, reason: str, as_json: bool, *, on: bool) -> None:
    config = load(context)
    changed = set_paused(config, feed, need_reason(reason) if on else reason, on=on)
    document = {"model": config.model.name, "feed": feed, "paused": on, "changed": changed}
    what = f"feed {feed}" if feed else f"model {config.model.name}"
    answer(document, f"{what} is {paused_text(changed, on=on)}", as_json)


def _complete(item: dict[str, Any]) -> dict[str, Any]:
    """One correction from options, all of which are needed: without an object the fact would be retracted."""
    missing = [f"--{key}" for key in ("subject", "prompt", "object") if key not in item]
    if missing:
        raise typer.BadParameter(f"missing {', '.join(missing)} (to take a fact out: errata retract)")
    return {"source": "operator", **item}


def _read(file: Path) -> str:
    """The text of a file or of stdin."""
    from daemon.core.errors import FeedError

    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise FeedError(f"{file} is larger than {_MAX_BYTES >> 20} MiB", hint="configure it as a feed")
        return data.decode("utf-8")
    except OSError as error:
        raise FeedError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FeedError(f"{file} is not UTF-8", hint=f"byte {error.start}") from error
