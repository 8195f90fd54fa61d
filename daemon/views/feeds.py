"""The feeds with their configuration, outcomes and pauses."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Connection, select

from daemon.core.config.feeds import FeedSection
from daemon.core.ledger.schema import feed_outcomes, feeds
from daemon.core.ledger.switches import feed_switch, reasons_by_switch
from daemon.views.lists import feed_list
from daemon.views.rows import Row, fetch


def feed_page(
    connection: Connection, now: datetime, model: str, sections: Iterable[FeedSection]
) -> list[Row]:
    """Return every feed of a model that is configured or was ever pulled, with counted outcomes."""
    seen = {row["name"]: row for row in feed_list(connection, now, model)}
    places = select(feeds.c.name, feeds.c.cursor).where(feeds.c.model == model)
    cursors = {row.name: row.cursor for row in connection.execute(places)}
    outcomes: dict[str, dict[str, int]] = {}
    counted = select(feed_outcomes).where(feed_outcomes.c.model == model)
    for row in fetch(connection, counted.order_by(feed_outcomes.c.outcome)):
        outcomes.setdefault(row["feed"], {})[row["outcome"]] = int(row["count"])
    reasons = reasons_by_switch(connection, model)
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
