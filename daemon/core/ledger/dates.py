"""Dates of the ledger from which intervals are counted, settled when the clock is set back.

A cooldown, an hourly budget, the age of a heartbeat: each is counted from a date in the ledger. What is dated
later than now would last until the clock comes there again, so it is dated by now, and lasts one interval at
most. Where the clock is set forward, an interval ends early, which is less than one interval too.
"""

from daemon.core.ledger import (
    batches,
    chain,
    corrections,
    deliveries,
    feeds,
    heartbeats,
    incidents,
    probe_results,
    publications,
    quarantine,
    scrubs,
    switches,
)
from daemon.core.ledger.ledger import Ledger
from daemon.core.log import get_logger

log = get_logger("errata.clock")
_DATED = (
    batches, chain, corrections, deliveries, feeds, heartbeats,
    incidents, probe_results, publications, quarantine, scrubs, switches,
)  # fmt: skip


def settle_dates(ledger: Ledger) -> None:
    """Settle the dates of a ledger at the first call, and where the clock was set back since the last one."""
    watch = ledger.step_watch
    was_settled, step = watch.has_looked, watch.look()
    if step:
        log.warning("the clock was set", seconds=round(step, 1))
    if was_settled and step >= 0:
        return
    with ledger.write() as connection:
        now = ledger.clock.now()
        for module in _DATED:
            module.settle_dates(connection, now)
