"""The judge: reads the probes of new revisions, lets the good ones live and takes the bad ones back."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, RowMapping, insert, select, update

from daemon.core import audit
from daemon.core.chain import head
from daemon.core.clock import to_text
from daemon.core.config import Config
from daemon.core.errors import NotFoundError
from daemon.core.ledger import Ledger
from daemon.core.log import get_logger
from daemon.core.names import IncidentState, ProbeResult, RevisionState
from daemon.core.schema import incidents, probe_results, revisions, switches
from daemon.rollback import roll_back

log = get_logger("errata.judge")
WHO = "judge"


def judge(ledger: Ledger, config: Config) -> None:
    """Look at every candidate once: ok becomes live, degraded becomes an incident and perhaps a rollback.

    A revision with a probe that is unknown stays a candidate; unknown is never ok.
    """
    model = config.model.name
    with ledger.write() as connection:
        worst = {row["number"]: _judge_one(connection, ledger, row) for row in _candidates(connection, model)}
        try:
            newest = head(connection, model)["number"]
        except NotFoundError:
            return
    if worst.get(newest) is ProbeResult.DEGRADED and config.watch.auto_rollback:
        _react(ledger, config, newest)


def _candidates(connection: Connection, model: str) -> Sequence[RowMapping]:
    mine = (revisions.c.model == model) & (revisions.c.state == RevisionState.CANDIDATE)
    return connection.execute(select(revisions).where(mine).order_by(revisions.c.number)).mappings().all()


def _judge_one(connection: Connection, ledger: Ledger, row: RowMapping) -> ProbeResult:
    """Settle one candidate by its newest measurements."""
    mine = (probe_results.c.model == row["model"]) & (probe_results.c.revision == row["number"])
    measured = (
        connection.execute(select(probe_results).where(mine).order_by(probe_results.c.id)).mappings().all()
    )
    newest = {m["probe"]: m for m in measured}
    results = {ProbeResult(m["result"]) for m in newest.values()}
    if ProbeResult.DEGRADED in results:
        _set_state(connection, row, RevisionState.REJECTED)
        bad = [m for m in newest.values() if m["result"] == ProbeResult.DEGRADED]
        _open_incidents(connection, ledger, row, bad)
        return ProbeResult.DEGRADED
    if not results or ProbeResult.UNKNOWN in results:
        return ProbeResult.UNKNOWN
    _set_state(connection, row, RevisionState.LIVE)
    return ProbeResult.OK


def _set_state(connection: Connection, row: RowMapping, state: RevisionState) -> None:
    mine = (revisions.c.model == row["model"]) & (revisions.c.number == row["number"])
    connection.execute(update(revisions).where(mine).values(state=state))
    log.info("judged", model=row["model"], revision=row["number"], state=str(state))


def _open_incidents(
    connection: Connection, ledger: Ledger, row: RowMapping, bad: Sequence[RowMapping]
) -> None:
    for measured in bad:
        message = f"{measured['probe']} is {measured['score']:.4g}, the bound is {measured['bound']:.4g}"
        connection.execute(
            insert(incidents).values(
                model=row["model"],
                revision=row["number"],
                probe=measured["probe"],
                state=IncidentState.OPEN,
                message=message,
                opened_at=to_text(ledger.clock.now()),
            )
        )
        log.error("degraded", model=row["model"], revision=row["number"], why=message)


def _react(ledger: Ledger, config: Config, number: int) -> None:
    """Roll back once; a second time within the cooldown freeze instead, until a human acts."""
    model = config.model.name
    if _rolled_back_lately(ledger, config):
        _freeze(ledger, model, number)
        return
    reason = f"revision {number} is degraded"
    back = roll_back(ledger, model, last_good=True, who=WHO, reason=reason, expected_head=number)
    with ledger.write() as connection:
        connection.execute(
            update(incidents)
            .where(incidents.c.model == model, incidents.c.revision == number)
            .values(
                state=IncidentState.ROLLED_BACK,
                closed_at=to_text(ledger.clock.now()),
                rollback_revision=back,
            )
        )


def _rolled_back_lately(ledger: Ledger, config: Config) -> bool:
    since = to_text(ledger.clock.now() - timedelta(seconds=config.watch.cooldown_seconds))
    query = select(incidents.c.id).where(
        incidents.c.model == config.model.name,
        incidents.c.state == IncidentState.ROLLED_BACK,
        incidents.c.closed_at > since,
    )
    with ledger.read() as connection:
        return connection.execute(query.limit(1)).scalar() is not None


def _freeze(ledger: Ledger, model: str, number: int) -> None:
    """Hold back all edits and say so; only ``errata resume`` ends it."""
    reason = f"revision {number} is degraded again within the cooldown"
    now = ledger.clock.now()
    with ledger.write() as connection:
        name = f"paused:{model}"
        connection.execute(switches.delete().where(switches.c.name == name))
        connection.execute(insert(switches).values(name=name, is_on=True, reason=reason, at=to_text(now)))
        mine = (incidents.c.model == model) & (incidents.c.revision == number)
        connection.execute(update(incidents).where(mine).values(state=IncidentState.FROZEN))
        audit.record(connection, now, WHO, "freeze", model, reason)
    log.critical("frozen", model=model, revision=number, hint="errata incidents, then errata resume")
