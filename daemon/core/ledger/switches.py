"""Switches: one pauses the edits of a model, another one a feed.

Each belongs to a model. The name of a switch is made here alone; it is also the target of its audit rows, and
of a feed's incidents.
"""

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from daemon.core.clock import to_text
from daemon.core.ledger import audit
from daemon.core.ledger.database import no_later
from daemon.core.ledger.incidents import close_frozen, close_of_feed
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import switches


def edits_switch(model: str) -> str:
    """The name of the switch that pauses all edits of a model."""
    return f"paused:{model}"


def feed_switch(feed: str) -> str:
    """The name of the switch that pauses a feed."""
    return f"feed:{feed}"


def pause(ledger: Ledger, *, model: str, feed: str | None, who: str, reason: str) -> bool:
    """Pause the model's edits, or one feed, and return whether that changed anything."""
    return _turn_by_hand(ledger, model, feed, who, reason, on=True)


def resume(ledger: Ledger, *, model: str, feed: str | None, who: str, reason: str) -> bool:
    """Resume the model's edits, or one feed, and return whether that changed anything.

    To resume the edits also ends a freeze and closes its incidents, to resume a feed closes the feed's.
    """
    return _turn_by_hand(ledger, model, feed, who, reason, on=False)


def is_paused(connection: Connection, model: str) -> bool:
    """Whether the edits of a model are paused, by an operator or by the judge."""
    return edits_switch(model) in reasons_by_switch(connection, model)


def is_feed_paused(connection: Connection, model: str, feed: str) -> bool:
    """Whether a feed of a model is paused, by an operator or by itself."""
    return feed_switch(feed) in reasons_by_switch(connection, model)


def reasons_by_switch(connection: Connection, model: str) -> dict[str, str]:
    """The names of a model's switches that are on, each with its reason."""
    query = select(switches.c.name, switches.c.reason).where(switches.c.model == model, switches.c.is_on)
    return {row.name: row.reason for row in connection.execute(query)}


def turn(connection: Connection, now: datetime, model: str, name: str, reason: str, *, on: bool) -> None:
    """Turn a switch of a model on or off."""
    mine = (switches.c.model == model) & (switches.c.name == name)
    connection.execute(delete(switches).where(mine))
    row = {"model": model, "name": name, "is_on": on, "reason": reason, "at": to_text(now)}
    connection.execute(insert(switches).values(**row))


def _turn_by_hand(ledger: Ledger, model: str, feed: str | None, who: str, reason: str, *, on: bool) -> bool:
    name = edits_switch(model) if feed is None else feed_switch(feed)
    with ledger.write() as connection:
        now = ledger.clock.now()
        was_on = name in reasons_by_switch(connection, model)
        turn(connection, now, model, name, reason, on=on)
        if feed is None and not on:
            close_frozen(connection, now, model)
        elif feed is not None and not on:
            close_of_feed(connection, now, model, feed)
        action = "pause" if on else "resume"
        audit.record(connection, now, who, action, name, reason, {"was_on": was_on})
    return was_on is not on


def settle_dates(connection: Connection, now: datetime) -> None:
    """Date by now what is dated later, because the clock was set back."""
    no_later(connection, update(switches), switches.c.at, now)
