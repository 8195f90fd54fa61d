"""The judge: reads the probes of new revisions, lets the good ones live and takes the bad ones back."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update

from daemon.core.clock import to_text
from daemon.core.config.settings import Config
from daemon.core.errors import NotFoundError, StaleHeadError
from daemon.core.ledger import audit
from daemon.core.ledger.chain import find_revision, head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents, judgements, probe_results, revisions, switches
from daemon.core.log import get_logger
from daemon.core.names import ALL_PROBES, IncidentState, ProbeResult, Reaction, RevisionState
from daemon.watch.assessment import Verdict, assess, verdict_row
from daemon.watch.rollback import last_good_revision, roll_back

log = get_logger("errata.judge")
WHO = "judge"
_LOOKS = 5  # head may move between the look and the rollback


def judge(ledger: Ledger, config: Config) -> None:
    """Settle every candidate with new measurements: ok lives, degraded is an incident, perhaps a rollback.

    A revision with a probe that is unknown stays a candidate; unknown is never ok.
    """
    model = config.model.name
    with ledger.read() as connection:
        waiting = _unjudged(connection, model)
    for number in waiting:
        _judge_one(ledger, config, number)
    if config.watch.auto_rollback:
        react(ledger, config, WHO)


# -- one revision --------------------------------------------------------------------------------------


def _unjudged(connection: Connection, model: str) -> Sequence[int]:
    """Revisions with a measurement that no judgement has seen, oldest first; what is rejected stays so."""
    seen = select(func.coalesce(func.max(judgements.c.measurement), 0)).where(
        judgements.c.model == revisions.c.model, judgements.c.revision == revisions.c.number
    )
    fresh = select(probe_results.c.id).where(
        probe_results.c.model == revisions.c.model,
        probe_results.c.revision == revisions.c.number,
        probe_results.c.id > seen.scalar_subquery(),
    )
    query = select(revisions.c.number).where(
        revisions.c.model == model, revisions.c.state != RevisionState.REJECTED, fresh.exists()
    )
    return connection.execute(query.order_by(revisions.c.number)).scalars().all()


def _judge_one(ledger: Ledger, config: Config, number: int) -> None:
    with ledger.read() as connection:  # the tests take a while: nobody should wait for them to write
        row = find_revision(connection, config.model.name, number)
        verdicts = [] if row is None else assess(connection, config.watch, row, ledger.clock.now())
    if row is None or not verdicts:
        return
    with ledger.write() as connection:
        now = ledger.clock.now()
        _write_judgements(connection, row, verdicts, now)
        _close_answered(connection, row, verdicts, now)
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
                _promote_forebears(connection, row)


def _promote_forebears(connection: Connection, row: RowMapping) -> None:
    """What led to a revision that passed all probes, and passed its own, was good enough."""
    bad = select(judgements.c.revision).where(
        judgements.c.model == row["model"], judgements.c.result != ProbeResult.OK
    )
    judged = select(judgements.c.revision).where(judgements.c.model == row["model"])
    mine = (
        revisions.c.model == row["model"],
        revisions.c.number < row["number"],
        revisions.c.state == RevisionState.CANDIDATE,
        revisions.c.number.in_(judged),
        revisions.c.number.not_in(bad),
    )
    connection.execute(update(revisions).where(*mine).values(state=RevisionState.LIVE))


def _write_judgements(
    connection: Connection, row: RowMapping, verdicts: Sequence[Verdict], now: datetime
) -> None:
    mine = (judgements.c.model == row["model"]) & (judgements.c.revision == row["number"])
    connection.execute(delete(judgements).where(mine))
    same = {"model": row["model"], "revision": row["number"], "judged_at": to_text(now)}
    connection.execute(insert(judgements), [same | dict(verdict_row(verdict)) for verdict in verdicts])


def _close_answered(
    connection: Connection, row: RowMapping, verdicts: Sequence[Verdict], now: datetime
) -> None:
    """What was unknown and is known now needs nobody any more."""
    known = [verdict.probe for verdict in verdicts if verdict.result is not ProbeResult.UNKNOWN]
    answered = (
        incidents.c.model == row["model"],
        incidents.c.revision == row["number"],
        incidents.c.probe.in_(known),
        incidents.c.result == ProbeResult.UNKNOWN,
        incidents.c.state == IncidentState.OPEN,
    )
    values = {"state": IncidentState.CLOSED, "closed_at": to_text(now)}
    connection.execute(update(incidents).where(*answered).values(**values))


def _set_state(connection: Connection, row: RowMapping, state: RevisionState) -> None:
    if row["state"] == state:
        return
    mine = (revisions.c.model == row["model"]) & (revisions.c.number == row["number"])
    connection.execute(update(revisions).where(mine).values(state=state))
    log.info("judged", model=row["model"], revision=row["number"], state=str(state))


def _open_incident(connection: Connection, row: RowMapping, verdict: Verdict, now: datetime) -> None:
    """One incident for a probe of a revision; a later and worse result takes its place."""
    mine = (
        (incidents.c.model == row["model"])
        & (incidents.c.revision == row["number"])
        & (incidents.c.probe == verdict.probe)
    )
    values = {
        "state": IncidentState.OPEN, "result": verdict.result, "message": verdict.message,
        "opened_at": to_text(now), "closed_at": None, "since": verdict.since,
    }  # fmt: skip
    there = connection.execute(select(incidents).where(mine)).mappings().one_or_none()
    if there is None:
        key = {"model": row["model"], "revision": row["number"], "probe": verdict.probe}
        connection.execute(insert(incidents).values(**key, **values))
    elif there["result"] == ProbeResult.UNKNOWN:
        connection.execute(update(incidents).where(mine).values(**values))
    else:
        return
    level = log.error if verdict.result is ProbeResult.DEGRADED else log.warning
    level(str(verdict.result), model=row["model"], revision=row["number"], why=verdict.message)


# -- what follows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """What is open about head: its incidents, the last good revision below all of them, head's number."""

    ids: tuple[int, ...]
    first: int
    target: int | None
    head: int
    too_far: bool


def react(ledger: Ledger, config: Config, who: str, alert: str | None = None) -> Reaction:
    """Answer all open degradations at once: one rollback, or within the cooldown of another one a freeze.

    Whoever calls: the judge, or an alert (``alert`` names its episode). Of any number of calls at the same
    time one acts; the others find nothing open.
    """
    model = config.model.name
    for _ in range(_LOOKS):
        with ledger.read() as connection:
            trouble = _trouble(connection, config)
            lately = _rolled_back_lately(connection, ledger, config)
        if trouble is None:
            return Reaction.NOTHING
        if lately or trouble.target is None or trouble.too_far:
            why = (
                "degraded again within the cooldown" if lately
                else "degraded, and no good revision is near enough to go back to by itself"
            )  # fmt: skip
            return _freeze(ledger, model, trouble, why, who)

        def settle(connection: Connection, number: int, ids: tuple[int, ...] = trouble.ids) -> None:
            values: dict[str, object] = {
                "state": IncidentState.ROLLED_BACK,
                "closed_at": to_text(ledger.clock.now()),
            }
            values |= {"rollback_revision": number} | ({"alert": alert} if alert else {})
            connection.execute(update(incidents).where(incidents.c.id.in_(ids)).values(**values))

        try:
            roll_back(
                ledger, model, to=trouble.target, who=who, reason=f"revision {trouble.first} is degraded",
                expected_head=trouble.head, settle=settle,
            )  # fmt: skip
        except StaleHeadError:
            continue
        return Reaction.ROLLED_BACK
    return Reaction.NOTHING


def _trouble(connection: Connection, config: Config) -> Trouble | None:
    """The open degradations: all are in what head holds, for a rollback settles those that it leaves."""
    model = config.model.name
    bad = (
        incidents.c.model == model,
        incidents.c.state == IncidentState.OPEN,
        incidents.c.result == ProbeResult.DEGRADED,
    )
    rows = connection.execute(select(incidents).where(*bad)).mappings().all()
    if not rows:
        return None
    newest = head(connection, model)
    first = min(int(row["revision"]) for row in rows)
    since = min(int(row["revision"]) - 1 if row["since"] is None else int(row["since"]) for row in rows)
    try:
        target = last_good_revision(connection, newest, since)
    except NotFoundError:
        target = None
    too_far = first - since > config.watch.rollback_reach
    return Trouble(tuple(int(row["id"]) for row in rows), first, target, int(newest["number"]), too_far)


def _rolled_back_lately(connection: Connection, ledger: Ledger, config: Config) -> bool:
    since = to_text(ledger.clock.now() - timedelta(seconds=config.watch.cooldown_seconds))
    query = select(incidents.c.id).where(
        incidents.c.model == config.model.name,
        incidents.c.state == IncidentState.ROLLED_BACK,
        incidents.c.closed_at > since,
    )
    return connection.execute(query.limit(1)).scalar() is not None


def _freeze(ledger: Ledger, model: str, trouble: Trouble, why: str, who: str) -> Reaction:
    """Hold back all edits and say so; only ``errata resume`` ends it."""
    reason = f"revision {trouble.first} is {why}"
    with ledger.write() as connection:
        now = ledger.clock.now()
        mine = incidents.c.id.in_(trouble.ids) & (incidents.c.state == IncidentState.OPEN)
        frozen = connection.execute(update(incidents).where(mine).values(state=IncidentState.FROZEN)).rowcount
        if not frozen:
            return Reaction.NOTHING
        name = f"paused:{model}"
        connection.execute(switches.delete().where(switches.c.name == name))
        connection.execute(insert(switches).values(name=name, is_on=True, reason=reason, at=to_text(now)))
        audit.record(connection, now, who, "freeze", model, reason)
    log.critical("frozen", model=model, revision=trouble.first, hint="errata incidents, then errata resume")
    return Reaction.FROZEN
