"""The judge: makes good revisions live, and rolls back those that are degraded."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, func, select

from daemon.core.clock import to_text
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError, StaleHeadError
from daemon.core.ledger import audit
from daemon.core.ledger.chain import find_revision, head, promote_forebears, set_revision_state
from daemon.core.ledger.dates import settle_dates
from daemon.core.ledger.incidents import (
    close_answered,
    find_incident,
    freeze_incidents,
    open_incident,
    was_rolled_back,
)
from daemon.core.ledger.judgements import replace_judgements
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents, judgements, probe_results, revisions
from daemon.core.ledger.switches import edits_switch, turn
from daemon.core.log import get_logger
from daemon.core.names import ALL_PROBES, IncidentState, ProbeResult, Reaction, RevisionState, RollbackCause
from daemon.watch.assessment import Verdict, assess, verdict_row
from daemon.watch.rollback import last_good_revision, roll_back

log = get_logger("errata.judge")
WHO = "judge"
_LOOKS = 5  # times; head may move between the look and the rollback


def judge(ledger: Ledger, config: Config) -> None:
    """Judge every revision with new measurements, and react to degradations.

    A revision whose probes are all ok becomes live, a degraded one is rejected and has an incident. A
    revision with a probe that is unknown stays a candidate.
    """
    settle_dates(ledger)
    model = config.model.name
    with ledger.read() as connection:
        waiting = _unjudged(connection, model)
    for number in waiting:
        _judge_one(ledger, config, number)
    if config.watch.auto_rollback:
        react(ledger, config, WHO)


def _unjudged(connection: Connection, model: str) -> Sequence[int]:
    """Revisions with a measurement that was not judged yet, oldest first, without rejected ones."""
    judged = (judgements.c.model == revisions.c.model) & (judgements.c.revision == revisions.c.number)
    seen = select(func.coalesce(func.max(judgements.c.measurement), 0)).where(judged)
    its = (probe_results.c.model == revisions.c.model) & (probe_results.c.revision == revisions.c.number)
    fresh = select(probe_results.c.id).where(its, probe_results.c.id > seen.scalar_subquery())
    mine = (revisions.c.model == model) & (revisions.c.state != RevisionState.REJECTED)
    query = select(revisions.c.number).where(mine, fresh.exists()).order_by(revisions.c.number)
    return connection.execute(query).scalars().all()


def _judge_one(ledger: Ledger, config: Config, number: int) -> None:
    # the statistical tests take a while, so no write transaction is open meanwhile
    with ledger.read() as connection:
        row = find_revision(connection, config.model.name, number)
        verdicts = [] if row is None else assess(connection, config.watch, row, ledger.clock.now())
    if row is None or not verdicts:
        return
    with ledger.write() as connection:
        now = ledger.clock.now()
        model, known = row["model"], [v.probe for v in verdicts if v.result is not ProbeResult.UNKNOWN]
        replace_judgements(connection, now, model, number, [verdict_row(verdict) for verdict in verdicts])
        close_answered(connection, now, model, number, known)
        results = {verdict.result for verdict in verdicts}
        for verdict in verdicts:
            if verdict.result is not ProbeResult.OK:
                _open_incident(connection, row, verdict, now)
        if ProbeResult.DEGRADED in results:
            _set_state(connection, row, RevisionState.REJECTED)
        elif ProbeResult.UNKNOWN not in results:
            surveyed = any(verdict.probe == ALL_PROBES for verdict in verdicts)
            if surveyed or not config.watch.full_before_live:
                _set_state(connection, row, RevisionState.LIVE)
            if surveyed:
                promote_forebears(connection, model, number)


def _set_state(connection: Connection, row: RowMapping, state: RevisionState) -> None:
    if row["state"] == state:
        return
    set_revision_state(connection, row["model"], row["number"], state)
    log.info("judged", model=row["model"], revision=row["number"], state=str(state))


def _open_incident(connection: Connection, row: RowMapping, verdict: Verdict, now: datetime) -> None:
    """Open an incident for a verdict, unless the probe of this revision has a degraded one already."""
    model, number = row["model"], row["number"]
    there = find_incident(connection, model, number, verdict.probe)
    if there is not None and there["result"] != ProbeResult.UNKNOWN:
        return
    open_incident(
        connection, now, model, number, verdict.probe, verdict.message, verdict.result, verdict.since
    )
    level = log.error if verdict.result is ProbeResult.DEGRADED else log.warning
    level(str(verdict.result), model=model, revision=number, why=verdict.message)


@dataclass(frozen=True)
class Trouble:
    """Open degradations, the target of a rollback, and head's number."""

    ids: tuple[int, ...]
    first: int
    target: int | None
    head: int
    too_far: bool


def react(ledger: Ledger, config: Config, who: str, cause: RollbackCause = RollbackCause.JUDGE) -> Reaction:
    """Answer all open degradations with one rollback, or with a freeze where a rollback may not be.

    A freeze follows within the cooldown of another rollback, or where no good revision is near enough. Of
    several calls at the same time one acts, and the others find nothing open.
    """
    settle_dates(ledger)
    model = config.model.name
    for _ in range(_LOOKS):
        with ledger.read() as connection:
            trouble = _trouble(connection, config)
            cooldown = timedelta(seconds=config.watch.cooldown_seconds)
            lately = was_rolled_back(connection, model, to_text(ledger.clock.now() - cooldown))
        if trouble is None:
            return Reaction.NOTHING
        if lately or trouble.target is None or trouble.too_far:
            why = (
                "degraded again within the cooldown" if lately
                else "degraded, and no good revision is near enough to go back to by itself"
            )  # fmt: skip
            return _freeze(ledger, model, trouble, why, who)
        try:
            roll_back(
                ledger, model, to=trouble.target, who=who, reason=f"revision {trouble.first} is degraded",
                cause=cause, expected_head=trouble.head,
            )  # fmt: skip
        except StaleHeadError:
            continue
        return Reaction.ROLLED_BACK
    return Reaction.NOTHING


def _trouble(connection: Connection, config: Config) -> Trouble | None:
    """The open degradations, all of revisions that led to head: a rollback closes the others."""
    model = config.model.name
    bad = (incidents.c.state == IncidentState.OPEN) & (incidents.c.result == ProbeResult.DEGRADED)
    rows = connection.execute(select(incidents).where(incidents.c.model == model, bad)).mappings().all()
    if not rows:
        return None
    newest = head(connection, model)
    accused = connection.execute(
        select(revisions.c.content).where(
            revisions.c.model == model, revisions.c.number.in_({row["revision"] for row in rows})
        )
    )
    first = min(int(row["revision"]) for row in rows)
    since = min(int(row["revision"]) - 1 if row["since"] is None else int(row["since"]) for row in rows)
    try:
        target = last_good_revision(connection, newest, since, set(accused.scalars()))
    except NotFoundError:
        target = None
    too_far = first - since > config.watch.rollback_reach
    return Trouble(tuple(int(row["id"]) for row in rows), first, target, int(newest["number"]), too_far)


def _freeze(ledger: Ledger, model: str, trouble: Trouble, why: str, who: str) -> Reaction:
    """Pause all edits until ``errata resume``, and record why."""
    reason = f"revision {trouble.first} is {why}"
    with ledger.write() as connection:
        now = ledger.clock.now()
        if not freeze_incidents(connection, trouble.ids):
            return Reaction.NOTHING
        turn(connection, now, edits_switch(model), reason, on=True)
        audit.record(connection, now, who, "freeze", model, reason)
    log.critical("frozen", model=model, revision=trouble.first, hint="errata incidents, then errata resume")
    return Reaction.FROZEN
