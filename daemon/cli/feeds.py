"""Commands about what comes in: feeds (list, test, pause, resume, replay), approve, why."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daemon.cli.common import Limit, Reason, age, moment, need_reason, open_ledger, print_table, say
from daemon.core.command import Json, load, needs, print_json, who
from daemon.core.names import Role

if TYPE_CHECKING:
    from daemon.core.config.feeds import FeedSection
    from daemon.core.config.settings import Config

feeds_app = typer.Typer(help="Where corrections come from, and how that goes.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="name of the feed, see errata feeds list", metavar="FEED")]


def add_commands(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(feeds_app, name="feeds")
    app.command("approve")(approve)
    app.command("why")(why)


@feeds_app.command("list")
@needs(Role.READ)
def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the feeds: what each has brought, what became of it, and what holds it back.

    Example: errata feeds list
    """
    from daemon.views.feeds import feed_page

    config = load(context)
    with open_ledger(config) as ledger, ledger.read() as connection:
        rows = feed_page(connection, ledger.clock.now(), config.feeds)
    if as_json:
        print_json({"feeds": rows})
        return
    shown = [
        row
        | {"last pull": age(row["lag_seconds"]), "outcomes": _counts(row["outcomes"])}
        | {"dropped": _counts(row["dropped"]), "paused": row["pause_reason"] if row["paused"] else "no"}
        for row in rows
    ]
    columns = ("name", "kind", "trust", "items", "outcomes", "dropped", "last pull", "paused", "error")
    print_table("feeds", columns, shown)


@feeds_app.command("test")
@needs(Role.READ)
def test(
    context: typer.Context,
    feed: Annotated[str, typer.Argument(help="name of a configured feed, or an https URL of JSON")],
    limit: Limit = 10,
    seconds: Annotated[float, typer.Option(min=0, help="how long to wait for a stream's items")] = 10.0,
    as_json: Json = False,
) -> None:
    """Read a feed without admitting anything, and show what admission would say to each item.

    Examples: errata feeds test wikidata | errata feeds test https://example.org/corrections.json
    """
    config = load(context)
    rows = _look(config, _section(config, feed, is_url="://" in feed), limit, seconds)
    if as_json:
        print_json({"feed": feed, "items": rows})
    else:
        print_table("items", ("position", "verdict", "subject", "relation", "object", "prompt"), rows)


@feeds_app.command("pause")
def pause(context: typer.Context, feed: Name, reason: Reason, as_json: Json = False) -> None:
    """Hold a feed back; it goes on later where it is now.

    Example: errata feeds pause wikidata --reason "vandals"
    """
    _turn(context, feed, need_reason(reason), as_json, on=True)


@feeds_app.command("resume")
def resume(context: typer.Context, feed: Name, reason: Reason = "", as_json: Json = False) -> None:
    """Let a feed go on, also one that paused itself.

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
    """Read a feed again from an earlier place; what the ledger has already is dropped as a duplicate.

    Examples: errata feeds replay news --from start --reason "new rules" |
    errata feeds replay wikidata --from 2026-06-01T00:00:00Z --reason "was paused too long"
    """
    from daemon.feeds.replay import replay as act

    config = load(context)
    section = _section(config, feed)
    with open_ledger(config) as ledger:
        before = act(ledger, section, since, who(), need_reason(reason))
    if as_json:
        print_json({"feed": feed, "from": since, "before": before})
    else:
        say(f"feed {feed} is read again from {since}")


def approve(
    context: typer.Context,
    entry: Annotated[
        int | None, typer.Argument(min=1, help="number of the entry; none: list them", metavar="ID")
    ] = None,
    reason: Reason = "",
    limit: Limit = 100,
    as_json: Json = False,
) -> None:
    """List what waits for a human, or let one of them in.

    Examples: errata approve | errata approve 7 --reason "seen in the gazette"
    """
    config = load(context)
    with open_ledger(config) as ledger:
        if entry is not None:
            from daemon.admission.quarantine import approve as act

            decision = act(ledger, entry, who(), need_reason(reason))
            done = {"id": entry, "outcome": str(decision.outcome), "correction": decision.correction_id}
            print_json(done) if as_json else say(f"entry {entry}: {done['outcome']}, {done['correction']}")
            return
        from daemon.admission.quarantine import waiting

        with ledger.read() as connection:
            rows = waiting(connection, config.model.name, limit)
    if as_json:
        print_json({"waiting": rows})
        return
    shown = [row | {"at": moment(row["at"])} for row in rows]
    columns = ("id", "reason", "subject", "relation", "object", "feed", "source", "message", "at")
    print_table("corrections that wait for a human", columns, shown)


@needs(Role.READ)
def why(
    context: typer.Context,
    fact: Annotated[str, typer.Argument(help="id, a unique prefix of it, or the subject", metavar="FACT")],
    as_json: Json = False,
) -> None:
    """Tell the whole story of a fact: feed item, admission, batch, revision, probes, rollback.

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
    say(f"wanted     {_object(newest['object'])} ({newest['state']})")
    say(f"in weights {story['in_weights'] or '-'}")
    print_table("events", ("at", "kind", "text"), [e | {"at": moment(e["at"])} for e in story["events"]])


def _turn(context: typer.Context, feed: str, reason: str, as_json: bool, *, on: bool) -> None:
    from daemon.core.ledger import switches

    config = load(context)
    _section(config, feed)
    turn = switches.pause if on else switches.resume
    with open_ledger(config) as ledger:
        changed = turn(ledger, model=config.model.name, feed=feed, who=who(), reason=reason)
    if as_json:
        print_json({"feed": feed, "paused": on, "changed": changed})
    else:
        say(f"feed {feed} is {'paused' if on else 'running'}{'' if changed else ' already'}")


def _section(config: "Config", name: str, *, is_url: bool = False) -> "FeedSection":
    from daemon.core.config.feeds import HttpFeedConfig
    from daemon.core.errors import NotFoundError

    if is_url:
        return HttpFeedConfig(kind="http", name="test", url=name)
    found = next((feed for feed in config.feeds if feed.name == name), None)
    if found is None:
        known = ", ".join(feed.name for feed in config.feeds) or "none"
        raise NotFoundError(f"there is no feed {name!r}", hint=f"configured: {known}; see [[feeds]]")
    return found


def _look(config: "Config", section: Any, limit: int, seconds: float) -> list[dict[str, Any]]:
    """Items of a feed from its start, each with the verdict that admission would give."""
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


def _object(value: str | None) -> str:
    return "(no longer true)" if value is None else value
