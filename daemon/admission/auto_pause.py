"""A feed that fills the quarantine is paused, and somebody is told."""

from datetime import timedelta

from sqlalchemy import Connection, delete, func, insert, select

from daemon.core.clock import to_text
from daemon.core.errors import NotFoundError
from daemon.core.ledger import audit, chain
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents, quarantine, switches
from daemon.core.log import get_logger
from daemon.core.names import IncidentState

log = get_logger("errata.admission")
WHO = "admission"
_WINDOW = timedelta(hours=1)


def pause_if_poisoned(ledger: Ledger, model: str, feed: str, limit: int) -> bool:
    """Pause a feed with ``limit`` items in quarantine within an hour, or since it was last resumed."""
    if limit <= 0:
        return False
    name = f"feed:{feed}"
    with ledger.write() as connection:
        now = ledger.clock.now()
        switch = connection.execute(select(switches).where(switches.c.name == name)).mappings().one_or_none()
        if switch is not None and switch["is_on"]:
            return False
        since = max(to_text(now - _WINDOW), switch["at"] if switch is not None else "")
        refused = select(func.count()).select_from(quarantine)
        refused = refused.where(quarantine.c.feed == feed, quarantine.c.at >= since)
        count = int(connection.execute(refused).scalar_one())
        if count < limit:
            return False
        reason = f"{count} items of it went to quarantine since {since}"
        connection.execute(delete(switches).where(switches.c.name == name))
        connection.execute(insert(switches).values(name=name, is_on=True, reason=reason, at=to_text(now)))
        _open_incident(connection, to_text(now), model, name, reason)
        audit.record(connection, now, WHO, "pause", name, reason)
    log.error("feed paused itself", feed=feed, why=reason)
    return True


def _open_incident(connection: Connection, at: str, model: str, name: str, reason: str) -> None:
    """One incident a feed and head; a second one at the same head opens the first again."""
    try:
        number = int(chain.head(connection, model)["number"])
    except NotFoundError:
        number = 0
    mine = (incidents.c.model == model) & (incidents.c.revision == number) & (incidents.c.probe == name)
    connection.execute(delete(incidents).where(mine))
    values = {"model": model, "revision": number, "probe": name, "state": IncidentState.OPEN}
    connection.execute(insert(incidents).values(**values, message=reason, opened_at=at))
