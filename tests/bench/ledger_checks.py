"""What must hold in a ledger after a bench broke things: sums, single application, verdicts, newest wins."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from sqlalchemy import Connection, RowMapping, func, select

from daemon.core.ledger.audit import first_broken_row
from daemon.core.ledger.chain import active_tenures
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import (
    batches,
    corrections,
    feeds,
    judgements,
    probe_results,
    quarantine,
    revisions,
    tenures,
)
from daemon.core.names import (
    BatchState,
    CorrectionState,
    ProbeResult,
    RevisionKind,
    RevisionState,
    RollbackCause,
)
from tests.bench.stream import Written

MODEL = "default"
DONE = frozenset(CorrectionState) - {CorrectionState.PENDING, CorrectionState.QUEUED}


class Check(NamedTuple):
    """One thing that must hold, whether it does, and the figures that say so."""

    name: str
    holds: bool
    what: str


def sums(ledger: Ledger, written: Written, feed: str = "news") -> Iterator[Check]:
    """Every line of a feed was read once, and every accepted correction came to one end."""
    with ledger.read() as connection:
        rows = corrections.c.feed == feed
        states = Counter(connection.execute(select(corrections.c.state).where(rows)).scalars())
        read = int(connection.execute(select(feeds.c["items"]).where(feeds.c.name == feed)).scalar() or 0)
        refused = quarantine.c.correction_id.is_(None) & (quarantine.c.feed == feed)
        garbage = connection.execute(select(func.count()).select_from(quarantine).where(refused)).scalar_one()
        waits = batches.c.state.in_((BatchState.OPEN, BatchState.SENT))
        left = connection.execute(select(func.count()).select_from(batches).where(waits)).scalar_one()
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    lost = written.accepted() - states.total()
    yield Check("every line was read once", read == written.total(), f"{read} of {written.total()}")
    yield Check("nothing accepted was lost", lost == 0, f"{states.total()} accepted, {lost} lost")
    yield Check("every other line is accounted for", garbage == written.garbage, f"{garbage} refused lines")
    yield Check("all came to an end", states.keys() <= DONE and left == 0, f"{told}; {left} batches left")


def once(ledger: Ledger) -> Iterator[Check]:
    """Nothing was applied twice, the chain and the audit are whole, and applied is what head holds."""
    with ledger.read() as connection:
        chain = _chain(connection)
        spans = connection.execute(select(tenures).where(tenures.c.model == MODEL)).mappings().all()
        applied = set(
            connection.execute(
                select(corrections.c.id).where(corrections.c.state == CorrectionState.APPLIED)
            ).scalars()
        )
        active = active_tenures(connection, MODEL, chain[-1]["number"])
        broken = first_broken_row(connection)
    twice = applied_twice(chain, spans)
    edits = sum(row["kind"] == RevisionKind.EDIT for row in chain)
    yield Check("nothing was applied twice", not twice, f"{len(spans)} tenures by {edits} edits: {twice[:3]}")
    numbers = [row["number"] for row in chain]
    yield Check("the chain is whole", numbers == list(range(len(chain))), f"{len(chain)} revisions")
    held = {row["correction_id"] for row in active}
    yield Check("applied is what head holds", applied == held, f"{len(held)} facts, {len(applied)} applied")
    yield Check("the audit holds", broken is None, f"first broken row: {broken}")


def applied_twice(chain: Sequence[RowMapping], spans: Sequence[RowMapping]) -> list[str]:
    """The corrections that an edit wrote again although no rollback had taken them back.

    Two tenures of one correction may follow each other in one edit, which wrote its pair anew. So may two
    tenures of one fact; if they overlap, the fact has two values at once.
    """
    kinds = {row["number"]: row["kind"] for row in chain}
    by_correction: defaultdict[str, list[RowMapping]] = defaultdict(list)
    by_fact: defaultdict[str, list[RowMapping]] = defaultdict(list)
    for span in sorted(spans, key=lambda one: (one["since"], one["id"])):
        by_correction[span["correction_id"]].append(span)
        by_fact[span["fact_id"]].append(span)
    twice = []
    for name, mine in by_correction.items():
        for before, after in pairwise(mine):
            written = kinds[after["since"]] == RevisionKind.EDIT
            taken_back = before["until"] is not None and kinds[before["until"]] == RevisionKind.ROLLBACK
            if written and not taken_back and before["until"] != after["since"]:
                twice.append(f"{name} in {before['since']} and {after['since']}")
    for name, mine in by_fact.items():
        for before, after in pairwise(mine):
            if before["until"] is None or before["until"] > after["since"]:
                twice.append(f"fact {name} in {before['since']} and {after['since']}")
    return twice


def verdicts(ledger: Ledger) -> Iterator[Check]:
    """Every measured revision has a verdict, and what an automatic rollback took back is there again."""
    with ledger.read() as connection:
        waiting = unjudged(connection)
        automatic = left_reverted(connection)
        count = len(set(connection.execute(select(judgements.c.revision)).scalars()))
    yield Check("no revision is unjudged", not waiting, f"{count} judged, without a verdict: {waiting[:5]}")
    what = f"{len(automatic)} left by a rollback that nobody asked for"
    yield Check("only operators leave corrections reverted", not automatic, what)


def unjudged(connection: Connection) -> list[int]:
    """The revisions with a measurement that the judge has not answered, or that wait for a verdict."""
    measured: dict[int, set[str]] = defaultdict(set)
    rows = select(probe_results.c.revision, probe_results.c.probe).where(probe_results.c.model == MODEL)
    for row in connection.execute(rows):
        measured[row.revision].add(row.probe)
    judged: dict[int, dict[str, str]] = defaultdict(dict)
    rows = select(judgements.c.revision, judgements.c.probe, judgements.c.result).where(
        judgements.c.model == MODEL
    )
    for row in connection.execute(rows):
        judged[row.revision][row.probe] = row.result
    missing = {number for number, probes in measured.items() if probes - judged[number].keys()}
    for row in _chain(connection):
        unknown = ProbeResult.UNKNOWN in judged[row["number"]].values()
        if row["state"] == RevisionState.CANDIDATE and not unknown:
            missing.add(row["number"])
    return sorted(missing)


def left_reverted(connection: Connection) -> list[str]:
    """The corrections that are reverted although no human, and no verdict on them, took them back."""
    asked = (RollbackCause.OPERATOR, RollbackCause.BISECT)
    causes = {row["number"]: row["cause"] for row in _chain(connection)}
    reverted = select(corrections.c.id).where(corrections.c.state == CorrectionState.REVERTED)
    rows = select(tenures.c.correction_id, func.max(tenures.c.until).label("until")).where(
        tenures.c.model == MODEL, tenures.c.correction_id.in_(reverted)
    )
    ended = connection.execute(rows.group_by(tenures.c.correction_id)).all()
    return [row.correction_id for row in ended if causes.get(row.until) not in asked]


def newest_won(ledger: Ledger) -> Iterator[Check]:
    """Of facts that nobody interfered with, head holds the newest statement."""
    with ledger.read() as connection:
        rows = connection.execute(select(corrections).where(corrections.c.model == MODEL)).mappings().all()
        active = active_tenures(connection, MODEL, _chain(connection)[-1]["number"])
    touched = {CorrectionState.REVERTED, CorrectionState.QUARANTINED}
    disturbed = {row["fact_id"] for row in rows if row["state"] in touched}
    newest: dict[str, str] = {}
    for row in rows:
        newest[row["fact_id"]] = max(newest.get(row["fact_id"], ""), row["order_key"])
    keys = {row["id"]: row["order_key"] for row in rows}
    agreeing = {row["fact_id"]: row["order_key"] for row in rows if row["state"] == CorrectionState.CONFIRMED}
    late = [
        row["fact_id"] for row in active
        if row["fact_id"] not in disturbed
        and max(keys[row["correction_id"]], agreeing.get(row["fact_id"], "")) != newest[row["fact_id"]]
    ]  # fmt: skip
    what = f"{len(newest) - len(disturbed)} such facts"
    yield Check("newest won where nobody interfered", not late, what)


def _chain(connection: Connection) -> Sequence[RowMapping]:
    query = select(revisions).where(revisions.c.model == MODEL).order_by(revisions.c.number)
    return connection.execute(query).mappings().all()
