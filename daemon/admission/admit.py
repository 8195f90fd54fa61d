"""From raw feed items to the ledger: parse, date, dedupe, place; one transaction and bulk statements a chunk.

Every item ends in exactly one outcome. What is malformed goes to quarantine with its position and reason and
holds nothing else up.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from daemon.admission.newest_wins import WAITING
from daemon.admission.policy import OPEN, Policy, settle
from daemon.admission.record import Arrival, Decision, arrive, hold, register
from daemon.core.clock import from_text, to_text
from daemon.core.corrections import from_mapping, parse_item
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger import audit
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections, feed_outcomes, feeds
from daemon.core.names import DEFAULT_MODEL, OPERATOR, AdmissionOutcome
from daemon.core.relations.table import complete
from daemon.feeds.base import Cursor, Feed, RawItem

OPERATOR_TRUST = 100
_IDLE_NOTE = timedelta(seconds=5)  # an idle feed's row is not written more often than this


@dataclass(frozen=True)
class AdmissionReport:
    """What became of a chunk, item by item in its order; ``more`` says that the feed has more at once."""

    decisions: tuple[Decision, ...] = ()
    more: bool = False

    @property
    def counts(self) -> Counter[AdmissionOutcome]:
        """How many items ended in each outcome."""
        return Counter(decision.outcome for decision in self.decisions)


def admit(
    connection: Connection,
    clock_now: datetime,
    feed: str,
    trust: int,
    items: Sequence[RawItem],
    model: str = DEFAULT_MODEL,
    policy: Policy = OPEN,
) -> AdmissionReport:
    """Take a chunk of a feed's items into the ledger, in the transaction of ``connection``.

    Items that bear no time are dated by their place in the chunk, so that the later line wins.
    """
    decisions: dict[int, Decision] = {}
    arrivals: dict[int, Arrival] = {}
    for index, item in enumerate(items):
        moment = clock_now + timedelta(microseconds=index)
        try:
            arrivals[index] = arrive(
                parse_item(item.raw, model, complete), item.position, trust, clock_now, moment
            )
        except InvalidCorrectionError as error:
            decisions[index] = Decision.refusal(item, error)
    hold(connection, clock_now, feed, [(items[index].raw, decision) for index, decision in decisions.items()])
    refused = Counter(decision.outcome for decision in decisions.values())
    _count(connection, feed, refused)
    placed = admit_arrivals(connection, clock_now, feed, trust, list(arrivals.values()), policy)
    decisions |= dict(zip(arrivals, placed, strict=True))
    return AdmissionReport(tuple(decisions[index] for index in range(len(items))))


def admit_arrivals(
    connection: Connection,
    now: datetime,
    feed: str,
    trust: int,
    arrivals: Sequence[Arrival],
    policy: Policy = OPEN,
) -> list[Decision]:
    """Store well-formed corrections under the rules, and count what became of them, in their order."""
    placed = register(connection, now, feed, trust, arrivals, policy.objection)
    settled = settle(connection, now, policy, placed)
    if settled:
        placed = [replace(settled.get(one.correction_id or "", one), position=one.position) for one in placed]
    _count(connection, feed, Counter(decision.outcome for decision in placed))
    return placed


def submit(
    ledger: Ledger,
    correction: Mapping[str, Any],
    who: str,
    feed: str = OPERATOR,
    trust: int = OPERATOR_TRUST,
) -> Decision:
    """Admit one correction that somebody hands in, with an audit row; without times it is true from now on.

    Raises:
        InvalidCorrectionError: it is no correction, or is dated in the future; nothing was stored.
    """
    wanted = from_mapping(complete(dict(correction)))
    with ledger.write() as connection:
        now = ledger.clock.now()
        if wanted.effective_at is None and wanted.observed_at is None:
            wanted = wanted.model_copy(update={"effective_at": now})
        arrival = arrive(wanted, f"by {who}", trust, now, now)
        (decision,) = register(connection, now, feed, trust, [arrival])
        _count(connection, feed, Counter([decision.outcome]))
        details = {"outcome": decision.outcome, "fact": decision.fact_id, "feed": feed}
        audit.record(connection, now, who, "submit", arrival.id, decision.message, details)
    return decision


def pull_feed(
    ledger: Ledger, feed: Feed, limit: int, model: str = DEFAULT_MODEL, policy: Policy = OPEN
) -> AdmissionReport:
    """Read at most ``limit`` items and admit them together with the cursor behind them, all or nothing.

    Where another scheduler moved the cursor meanwhile, what was read is dropped; the next pull goes on there.

    Raises:
        FeedError: the feed cannot be read now; nothing was changed.
    """
    with ledger.read() as connection:
        before = _feed_row(connection, feed.name)
    cursor: Cursor = dict(before["cursor"]) if before is not None else {}
    pull = feed.pull(cursor, limit)
    if not pull.items and pull.cursor == cursor and _is_fresh(ledger, before):
        return AdmissionReport(more=pull.more)
    with ledger.write() as connection:
        row = _feed_row(connection, feed.name)
        if (dict(row["cursor"]) if row is not None else {}) != cursor:
            return AdmissionReport()
        now = ledger.clock.now()
        values = {"cursor": pull.cursor, "error": "", "pulled_at": to_text(now)}
        if row is None:
            connection.execute(insert(feeds).values(name=feed.name, items=0, **values))
        else:
            connection.execute(update(feeds).where(feeds.c.name == feed.name).values(**values))
        report = admit(connection, now, feed.name, feed.trust, pull.items, model, policy)
    return AdmissionReport(report.decisions, pull.more)


def backlog(connection: Connection, model: str) -> int:
    """How many corrections of ``model`` wait for the worker."""
    query = select(func.count()).where(corrections.c.model == model, corrections.c.state.in_(WAITING))
    return int(connection.execute(query).scalar_one())


def _feed_row(connection: Connection, name: str) -> RowMapping | None:
    return connection.execute(select(feeds).where(feeds.c.name == name)).mappings().one_or_none()


def _is_fresh(ledger: Ledger, row: RowMapping | None) -> bool:
    """Whether a pull that found nothing need not be noted: no error to clear, and noted moments ago."""
    if row is None or row["error"] or row["pulled_at"] is None:
        return False
    return abs(ledger.clock.now() - from_text(row["pulled_at"])) < _IDLE_NOTE


def _count(connection: Connection, feed: str, counts: Counter[AdmissionOutcome]) -> None:
    """Add a chunk to the feed's totals; write transactions are serial, so update-or-insert is safe."""
    if not counts:
        return
    more = {"items": feeds.c["items"] + counts.total()}
    if not connection.execute(update(feeds).where(feeds.c.name == feed).values(**more)).rowcount:
        connection.execute(insert(feeds).values(name=feed, cursor={}, items=counts.total()))
    for outcome, count in counts.items():
        mine = (feed_outcomes.c.feed == feed) & (feed_outcomes.c.outcome == outcome)
        total = {"count": feed_outcomes.c.count + count}
        if not connection.execute(update(feed_outcomes).where(mine).values(**total)).rowcount:
            connection.execute(insert(feed_outcomes).values(feed=feed, outcome=outcome, count=count))
