"""Admit raw feed items to the ledger: parse, date, drop known ones and place the rest.

A chunk is admitted in one transaction with bulk statements, and every item ends in exactly one outcome: a
malformed one in quarantine with its position and reason, where it holds up no other.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, func, select

from daemon.admission.newest_wins import WAITING
from daemon.admission.policy import OPEN, Policy, apply_fact_rules
from daemon.admission.record import Arrival, Decision, arrive, quarantine, store_arrivals
from daemon.core.clock import from_text
from daemon.core.corrections import parse_item
from daemon.core.errors import InvalidCorrectionError
from daemon.core.ledger.feeds import count_items, find_feed, note_pull
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import corrections
from daemon.core.names import DEFAULT_MODEL, AdmissionOutcome
from daemon.core.relations.table import complete
from daemon.feeds.base import Cursor, Feed, RawItem

_IDLE_NOTE = timedelta(seconds=5)  # an idle feed's row is not written more often than this


@dataclass(frozen=True)
class AdmissionReport:
    """What became of each item of a chunk, and whether the feed has more to read."""

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
    first: datetime | None = None,
) -> AdmissionReport:
    """Admit a chunk of a feed's items in the transaction of ``connection``.

    Items that bear no time are dated by their place in the chunk, from ``first`` or now on, so that the later
    line wins.
    """
    decisions: dict[int, Decision] = {}
    arrivals: dict[int, Arrival] = {}
    for index, item in enumerate(items):
        moment = (first or clock_now) + timedelta(microseconds=index)
        try:
            correction = parse_item(item.raw, model, complete)
            arrivals[index] = arrive(correction, item.position, trust, clock_now, moment)
        except InvalidCorrectionError as error:
            decisions[index] = Decision.refusal(item, error)
    refused = [(items[index].raw, decision) for index, decision in decisions.items()]
    quarantine(connection, clock_now, model, feed, refused)
    count_items(connection, model, feed, Counter(decision.outcome for decision in decisions.values()))
    placed = admit_arrivals(connection, clock_now, model, feed, trust, list(arrivals.values()), policy)
    decisions |= dict(zip(arrivals, placed, strict=True))
    return AdmissionReport(tuple(decisions[index] for index in range(len(items))))


def admit_arrivals(
    connection: Connection,
    now: datetime,
    model: str,
    feed: str,
    trust: int,
    arrivals: Sequence[Arrival],
    policy: Policy = OPEN,
) -> list[Decision]:
    """Store valid corrections of a model's feed, count their outcomes and return the decisions."""
    placed = store_arrivals(connection, now, model, feed, trust, arrivals, policy.objection)
    changed = apply_fact_rules(connection, now, policy, placed)
    if changed:
        placed = [replace(changed.get(one.correction_id or "", one), position=one.position) for one in placed]
    count_items(connection, model, feed, Counter(decision.outcome for decision in placed))
    return placed


def pull_feed(
    ledger: Ledger, feed: Feed, limit: int, model: str = DEFAULT_MODEL, policy: Policy = OPEN
) -> AdmissionReport:
    """Read at most ``limit`` items and admit them together with the cursor behind them, all or nothing.

    If another scheduler moved the cursor meanwhile, the items are dropped; the next pull reads on from there.
    A feed that cannot be read now raises FeedError, and nothing is changed.
    """
    with ledger.read() as connection:
        before = find_feed(connection, model, feed.name)
    cursor = _cursor(before)
    pull = feed.pull(cursor, limit)
    if not pull.items and pull.cursor == cursor and _is_fresh(ledger, before):
        return AdmissionReport(more=pull.more)
    with ledger.write() as connection:
        if _cursor(find_feed(connection, model, feed.name)) != cursor:
            return AdmissionReport()
        now = ledger.clock.now()
        note_pull(connection, now, model, feed.name, pull.cursor)
        first = ledger.dating.first_of(len(pull.items))
        report = admit(connection, now, feed.name, feed.trust, pull.items, model, policy, first)
    return replace(report, more=pull.more)


def backlog(connection: Connection, model: str) -> int:
    """How many corrections of ``model`` wait for the worker."""
    query = select(func.count()).where(corrections.c.model == model, corrections.c.state.in_(WAITING))
    return int(connection.execute(query).scalar_one())


def _cursor(row: RowMapping | None) -> Cursor:
    return dict(row["cursor"]) if row is not None else {}


def _is_fresh(ledger: Ledger, row: RowMapping | None) -> bool:
    """Whether an empty pull need not be recorded: no error to clear, and one was recorded just now."""
    if row is None or row["error"] or row["pulled_at"] is None:
        return False
    return abs(ledger.clock.now() - from_text(row["pulled_at"])) < _IDLE_NOTE
