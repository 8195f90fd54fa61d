"""Pause a feed that fills the quarantine, and open an incident that accuses it alone."""

from datetime import timedelta

from sqlalchemy import func, select

from daemon.core.clock import to_text
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit, chain
from daemon.core.ledger.incidents import open_incident
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import quarantine, switches
from daemon.core.ledger.switches import feed_switch, turn
from daemon.core.log import get_logger
from daemon.core.names import ProbeResult, Subject

log = get_logger("errata.admission")
WHO = "admission"
_WINDOW = timedelta(hours=1)  # the span of ``quarantine_limit``


def pause_if_poisoned(ledger: Ledger, model: str, feed: str, limit: int) -> bool:
    """Pause a feed with ``limit`` items in quarantine within an hour, or since it was last resumed."""
    if limit <= 0:
        return False
    name = feed_switch(feed)
    with ledger.write() as connection:
        now = ledger.clock.now()
        mine = (switches.c.model == model) & (switches.c.name == name)
        switch = connection.execute(select(switches).where(mine)).mappings().one_or_none()
        if switch is not None and switch["is_on"]:
            return False
        since = max(to_text(now - _WINDOW), switch["at"] if switch is not None else "")
        refused = select(func.count()).select_from(quarantine)
        of_feed = (quarantine.c.model == model) & (quarantine.c.feed == feed)
        refused = refused.where(of_feed, quarantine.c.at >= since)
        count = int(connection.execute(refused).scalar_one())
        if count < limit:
            return False
        reason = f"{count} items of it went to quarantine since {since}"
        turn(connection, now, model, name, reason, on=True)
        try:
            head_number = int(chain.head(connection, model)["number"])
        except NotFoundError:
            head_number = 0
        open_incident(
            connection, now, model, head_number, name, reason,
            subject=Subject.FEED, result=ProbeResult.DEGRADED, name=feed,
        )  # fmt: skip
        audit.record(connection, now, WHO, "pause", name, reason)
    log.error("feed paused itself", feed=feed, why=reason)
    return True
