"""The feeds as an operator asks about them: what is configured, what it brought, what holds it back."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from daemon.core.config.feeds import FeedSection
from daemon.core.ledger.schema import feed_outcomes, feeds
from daemon.core.ledger.switches import feed_switch, reasons_by_switch
from daemon.views.lists import feed_list

Row = dict[str, Any]


def feed_page(connection: Connection, now: datetime, sections: Iterable[FeedSection]) -> list[Row]:
    """Every feed that is configured or ever brought something, with outcomes and counted reasons."""
    seen = {row["name"]: row for row in feed_list(connection, now)}
    cursors = {row.name: row.cursor for row in connection.execute(select(feeds.c.name, feeds.c.cursor))}
    outcomes: dict[str, dict[str, int]] = {}
    for row in connection.execute(select(feed_outcomes).order_by(feed_outcomes.c.outcome)).mappings():
        outcomes.setdefault(row["feed"], {})[row["outcome"]] = int(row["count"])
    reasons = reasons_by_switch(connection)
    configured = {section.name: section for section in sections}
    nothing = {"items": 0, "error": "", "pulled_at": None, "lag_seconds": None}
    page = []
    for name in sorted(configured.keys() | seen.keys()):
        section, pause = configured.get(name), feed_switch(name)
        page.append(
            {"name": name, "kind": getattr(section, "kind", "-"), "trust": getattr(section, "trust", None)}
            | (seen.get(name) or nothing)
            | {"paused": pause in reasons, "pause_reason": reasons.get(pause, "")}
            | {"outcomes": outcomes.get(name, {}), "dropped": dict(cursors.get(name, {}).get("dropped", {}))}
        )
    return page
