"""The commands feeds list, test, pause, resume and replay, and approve and why."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.common import (
    Limit,
    Reason,
    age,
    answer,
    answer_table,
    moment,
    need_reason,
    object_text,
    open_ledger,
    print_table,
    say,
)
from daemon.core.command import Json, load, needs, print_json, who
from daemon.core.names import Role

if TYPE_CHECKING:
    from daemon.core.config.feeds import FeedSection
    from daemon.core.config.settings import Config

feeds_app = typer.Typer(help="List, test, pause, resume and replay feeds.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="name of the feed, see errata feeds list", metavar="FEED")]


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(feeds_app, name="feeds")
    app.command("approve")(approve)
    app.command("why")(why)


@feeds_app.command("list")
@needs(Role.READ)
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the feeds with their items, outcomes, drops, pauses and errors.

    Example: errata feeds list
    """
    from daemon.views.feeds import feed_page

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        rows = feed_page(connection, ledger.clock.now(), config.model.name, config.feeds)
    shown = [
        row
        | {"last pull": age(row["lag_seconds"]), "outcomes": _counts(row["outcomes"])}
        | {"dropped": _counts(row["dropped"]), "paused": row["pause_reason"] if row["paused"] else "no"}
        for row in rows
    ]
    columns = ("name", "kind", "trust", "items", "outcomes", "dropped", "last pull", "paused", "error")
    answer_table({"feeds": rows}, "feeds", columns, shown, as_json)


@feeds_app.command("test")
@needs(Role.READ)
def test(
    context: typer.Context,
    feed: Annotated[str, typer.Argument(help="name of a configured feed, or an https URL of JSON")],
    limit: Limit = 10,
    seconds: Annotated[float, typer.Option(min=0, help="how long to wait for items of a stream")] = 10.0,
    as_json: Json = False,
) -> None:
    """Read a feed without admitting anything, and show the decision on each item.

    Examples: errata feeds test wikidata | errata feeds test https://example.org/corrections.json
    """
    config = load(context)
    rows = _look(config, _section(config, feed, is_url="://" in feed), limit, seconds)
    columns = ("position", "verdict", "subject", "relation", "object", "prompt")
    answer_table({"feed": feed, "items": rows}, "items", columns, rows, as_json)


@feeds_app.command("pause")
def pause(context: typer.Context, feed: Name, reason: Reason, as_json: Json = False) -> None:
    """Pause a feed, which resumes later at its current position.

    Example: errata feeds pause wikidata --reason "vandals"
    """
    _turn(context, feed, need_reason(reason), as_json, on=True)


@feeds_app.command("resume")
def resume(context: typer.Context, feed: Name, reason: Reason = "", as_json: Json = False) -> None:
    """Resume a feed, also one that was paused automatically.

    Example: errata feeds resume wikidata --reason "looked at it"
    """
    _turn(context, feed, reason, as_json, on=False)


@feeds_app.command("replay")
def replay(
    context: typer.Context,
    feed: Name,
    since: Annotated[str, typer.Option("--from", help="start, a time with zone, or a cursor in JSON")],
    reason: Reason,
    as_json: Json = False,
) -> None:
    """Read a feed again from an earlier position.

    Items that the ledger has already are dropped as duplicates.

    Examples: errata feeds replay news --from start --reason "new rules" |
    errata feeds replay wikidata --from 2026-06-01T00:00:00Z --reason "was paused too long"
    """
    from daemon.feeds.replay import replay as act

    config = load(context)
    section = _section(config, feed)
    with open_ledger(config) as ledger:
        before = act(ledger, config.model.name, section, since, who(), need_reason(reason))
    line = f"feed {feed} is read again from {since}"
    answer({"feed": feed, "from": since, "before": before}, line, as_json)


def approve(
    context: typer.Context,
    entry: Annotated[
        int | None, typer.Argument(min=1, help="number of the entry; without it, list all", metavar="ID")
    ] = None,
    reason: Reason = "",
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List the corrections that wait for approval, or admit one of them.

    Examples: errata approve | errata approve 7 --reason "seen in the gazette"
    """
    config = load(context)
    with open_ledger(config) as ledger:
        if entry is not None:
            from daemon.admission.quarantine import approve as act

            decision = act(ledger, entry, who(), need_reason(reason))
            done = {"id": entry, "outcome": str(decision.outcome), "correction": decision.correction_id}
            answer(done, f"entry {entry}: {done['outcome']}, {done['correction']}", as_json)
            return
        from daemon.admission.quarantine import waiting

        with ledger.read() as connection:
            rows = waiting(connection, config.model.name, limit)
    shown = [row | {"at": moment(row["at"])} for row in rows]
    columns = ("id", "reason", "subject", "relation", "object", "feed", "source", "message", "at")
    answer_table({"waiting": rows}, "corrections that wait for approval", columns, shown, as_json)


@needs(Role.READ)
def why(
    context: typer.Context,
    fact: Annotated[str, typer.Argument(help="id, a unique prefix of it, or the subject", metavar="FACT")],
    as_json: Json = False,
) -> None:
    """Show the history of a fact: feed item, admission, batch, revision, probes, rollback.

    Example: errata why Bulgaria
    """
    from daemon.views.facts import find_fact
    from daemon.views.why import fact_timeline

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        story = fact_timeline(connection, find_fact(connection, fact, config.model.name))
    if as_json:
        print_json(story)
        return
    newest = story["newest"]
    say(f"fact       {story['fact']}  {story['subject']}: {story['relation']}")
    say(f"wanted     {object_text(newest['object'])} ({newest['state']})")
    say(f"in weights {story['in_weights'] or '-'}")
    print_table("events", ("at", "kind", "text"), [e | {"at": moment(e["at"])} for e in story["events"]])


def set_paused(config: "Config", feed: str | None, reason: str, *, on: bool) -> bool:
    """Pause or resume a feed, or the model's edits, and return whether that changed anything.

    Raises NotFoundError if no such feed is configured.
    """
    from daemon.core.ledger import switches

    if feed is not None:
        _section(config, feed)
    turn = switches.pause if on else switches.resume
    with open_ledger(config) as ledger:
        return turn(ledger, model=config.model.name, feed=feed, who=who(), reason=reason)


def _turn(context: typer.Context, feed: str, reason: str, as_json: bool, *, on: bool) -> None:
    changed = set_paused(load(context), feed, reason, on=on)
    line = f"feed {feed} is {paused_text(changed, on=on)}"
    answer({"feed": feed, "paused": on, "changed": changed}, line, as_json)


def paused_text(changed: bool, *, on: bool) -> str:
    """The state of a switch in words, such as ``paused already``."""
    return f"{'paused' if on else 'running'}{'' if changed else ' already'}"


def _section(config: "Config", name: str, *, is_url: bool = False) -> "FeedSection":
    from daemon.core.config.feeds import HttpFeedConfig
    from daemon.core.errors import NotFoundError

    if is_url:
        return HttpFeedConfig(kind="http", name="test", url=name)
    for feed in config.feeds:
        if feed.name == name:
            return feed
    known = ", ".join(feed.name for feed in config.feeds) or "none"
    raise NotFoundError(f"there is no feed {name!r}", hint=f"configured: {known}; see [[feeds]]")


def _look(config: "Config", section: Any, limit: int, seconds: float) -> list[dict[str, Any]]:
    """Items of a feed from its start, each with the decision of admission."""
    from daemon.admission.policy import Policy, verdict
    from daemon.feeds.base import make_feed

    feed, policy = make_feed(section), Policy.of(config.admission)
    rows: list[dict[str, Any]] = []
    cursor: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    while len(rows) < limit:
        pull = feed.pull(cursor, limit)
        cursor = pull.cursor
        rows += [verdict(item, section.trust, config.model.name, policy) for item in pull.items]
        if not pull.more and (section.kind != "wikidata" or time.monotonic() > deadline):
            break
    return rows[:limit]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "-"
