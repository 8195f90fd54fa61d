"""The judge: makes good revisions live, and rolls back those that are degraded."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection, RowMapping, func, select

from daemon.core.clock import to_text
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError, StaleHeadError
from daemon.core.ledger import audit
from daemon.core.ledger.chain import (
    find_revision,
    get_revision,
    head,
    path,
    promote_forebears,
    set_revision_state,
    went_back_by_itself,
)
from daemon.core.ledger.dates import settle_dates
from daemon.core.ledger.healing import begin_healing
from daemon.core.ledger.incidents import (
    accusations,
    close_answered,
    find_incident,
    freeze_incidents,
    open_incident,
)
from daemon.core.ledger.judgements import newest_judged, replace_judgements
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import judgements, probe_results
from daemon.core.ledger.switches import edits_switch, turn
from daemon.core.log import get_logger
from daemon.core.names import ALL_PROBES, ProbeResult, Reaction, RevisionState, RollbackCause, Subject
from daemon.watch.assessment import Verdict, assess, verdict_row
from daemon.watch.rollback import last_good_revision, roll_back

log = get_logger("errata.judge")
WHO = "judge"
_LOOKS = 5  # times; head may move between the look and the rollback


def judge(ledger: Ledger, config: Config) -> None:
    """Judge every revision with new measurements, and react to degradations.

    A revision whose probes are all ok becomes live, a degraded one is rejected and has an incident. A
    revision with a probe that is unknown stays a candidate. One that was taken back is judged too, and
    remembers the verdict in case a later rollback brings it back.
    """
    settle_dates(ledger)
    model = config.model.name
    with ledger.read() as connection:
        waiting = unjudged(connection, model)
    for number in waiting:
        _judge_one(ledger, config, number)
    if config.watch.auto_rollback:
        react(ledger, config, WHO)


def unjudged(connection: Connection, model: str) -> Sequence[int]:
    """The revisions of a model with a measurement that was not judged yet, oldest first."""
    newest = func.max(probe_results.c.id).label("newest")
    measured = select(probe_results.c.revision, newest).where(probe_results.c.model == model)
    by_revision = measured.group_by(probe_results.c.revision).subquery()
    seen = select(judgements.c.revision, func.max(judgements.c.measurement).label("newest"))
    judged = seen.where(judgements.c.model == model).group_by(judgements.c.revision).subquery()
    both = by_revision.outerjoin(judged, judged.c.revision == by_revision.c.revision)
    fresh = by_revision.c.newest > func.coalesce(judged.c.newest, 0)
    query = select(by_revision.c.revision).select_from(both).where(fresh)
    return connection.execute(query.order_by(by_revision.c.revision)).scalars().all()


def _judge_one(ledger: Ledger, config: Config, number: int) -> None:
    # the statistical tests take a while, so no write transaction is open meanwhile
    model = config.model.name
    with ledger.read() as connection:
        row = find_revision(connection, model, number)
        verdicts = [] if row is None else assess(connection, config.watch, row, ledger.clock.now())
    if not verdicts:
        return
    with ledger.write() as connection:
        row = get_revision(connection, model, number)
        newest = max(verdict.measurement for verdict in verdicts)
        if newest > newest_judged(connection, model, number):  # else another process was faster
            _conclude(connection, config, row, verdicts, ledger.clock.now())


def _conclude(
    connection: Connection, config: Config, row: RowMapping, verdicts: Sequence[Verdict], now: datetime
) -> None:
    """Record the verdicts on a revision, its incidents and its state."""
    model, number = row["model"], row["number"]
    known = [verdict.probe for verdict in verdicts if verdict.result is not ProbeResult.UNKNOWN]
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
        rejected = (row["state_before"] or row["state"]) == RevisionState.REJECTED
        if not rejected and (surveyed or not config.watch.full_before_live):
            _set_state(connection, row, RevisionState.LIVE)
        if surveyed:
            promote_forebears(connection, model, number)


def _set_state(connection: Connection, row: RowMapping, state: RevisionState) -> None:
    if (row["state_before"] or row["state"]) == state:
        return
    set_revision_state(connection, row["model"], row["number"], state)
    log.info("judged", model=row["model"], revision=row["number"], state=str(state))


def _open_incident(connection: Connection, row: RowMapping, verdict: Verdict, now: datetime) -> None:
    """Open an incident for a verdict, unless the probe of this revision has a degraded one already.

    One that a rollback answered opens again where a later rollback brought the revision back.
    """
    model, number = row["model"], row["number"]
    there = find_incident(connection, model, number, verdict.probe)
    if there is not None and there["result"] != ProbeResult.UNKNOWN:
        answered = there["rollback_revision"] is not None and row["taken_back_by"] is None
        if not answered or verdict.result is ProbeResult.UNKNOWN:
            return
    open_incident(
        connection, now, model, number, verdict.probe, verdict.message,
        subject=Subject.REVISION, result=verdict.result, since=verdict.since,
    )  # fmt: skip
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


def react(
    ledger: Ledger,
    config: Config,
    who: str,
    cause: RollbackCause = RollbackCause.JUDGE,
    accused: Collection[int] | None = None,
) -> Reaction:
    """Answer the open degradations of what head holds with one rollback, or with a freeze.

    A freeze follows where a rollback may not be: within the cooldown of another one, or where no good
    revision is near enough. Of several calls at the same time one acts, and the others find nothing open.
    With ``accused``, only the degradations of these revisions count.
    """
    settle_dates(ledger)
    model = config.model.name
    for _ in range(_LOOKS):
        with ledger.read() as connection:
            trouble = _trouble(connection, config, accused)
            cooldown = timedelta(seconds=config.watch.cooldown_seconds)
            lately = went_back_by_itself(connection, model, to_text(ledger.clock.now() - cooldown))
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
                ledger, model, config.store_path, to=trouble.target, who=who,
                reason=f"revision {trouble.first} is degraded", cause=cause, expected_head=trouble.head,
                in_transaction=partial(_heal, ledger, config),
            )  # fmt: skip
        except StaleHeadError:
            continue
        return Reaction.ROLLED_BACK
    return Reaction.NOTHING


def _heal(ledger: Ledger, config: Config, connection: Connection, number: int) -> None:
    """Let what the rollback ``number`` took back come back by itself where it does no harm."""
    if config.watch.auto_bisect:
        begin_healing(connection, ledger.clock.now(), config.model.name, number, config.edit.batch_size)


def _trouble(connection: Connection, config: Config, accused: Collection[int] | None) -> Trouble | None:
    """The open degradations of what head holds, where they lead back to, and how far."""
    model = config.model.name
    try:
        newest = head(connection, model)
    except NotFoundError:
        return None
    held = path(connection, model, newest["number"])
    meant = held if accused is None else [number for number in held if number in accused]
    rows = accusations(connection, model, set(meant))
    if not rows:
        return None
    first = min(int(row["revision"]) for row in rows)
    since = min(int(row["revision"]) - 1 if row["since"] is None else int(row["since"]) for row in rows)
    contents = {get_revision(connection, model, row["revision"])["content"] for row in rows}
    try:
        target = last_good_revision(connection, newest, config.store_path, since, contents)
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
        turn(connection, now, model, edits_switch(model), reason, on=True)
        audit.record(connection, now, who, "freeze", model, reason)
    log.critical("frozen", model=model, revision=trouble.first, hint="errata incidents, then errata resume")
    return Reaction.FROZEN
