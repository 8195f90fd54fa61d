"""Self-healing: what an automatic rollback took back and did no harm is written again.

The rollback's transaction lets the retractions of operators wait again and puts a first portion of the rest
up for bisect: a batch with the number of the rollback, whose corrections stay reverted. Each portion that a
worker has tried is followed by the next one, so nothing of this is lost when a process dies.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, RowMapping, select

from daemon.core.ledger import audit, batches
from daemon.core.ledger.corrections import note_return, set_state
from daemon.core.ledger.database import in_chunks
from daemon.core.ledger.incidents import add_to_story, open_incident
from daemon.core.ledger.proposals import Refusal
from daemon.core.ledger.schema import batches as batch_table
from daemon.core.ledger.schema import corrections, quarantine, revisions, tenures
from daemon.core.ledger.settlement import quarantine_refused, reverted_by, wait_again
from daemon.core.ledger.switches import is_paused
from daemon.core.names import (
    BISECT_PROBE,
    OPERATOR,
    BatchState,
    CorrectionState,
    ProbeResult,
    QuarantineReason,
    QuarantineState,
    RollbackCause,
    Subject,
)

WHO = "healing"
_TRY_AGAIN = "to try them again: errata bisect"


def begin_healing(connection: Connection, now: datetime, model: str, rollback: int, size: int) -> None:
    """Write operators' retractions again, and put the first portion of the rest up for bisect.

    A retraction that came back before is tried like all others, so that it cannot come and go for ever.
    """
    rows = _rows(connection, reverted_by(connection, model, rollback))
    first = [row["id"] for row in rows if _is_retraction(row) and row["came_back"] is None]
    why = f"the retraction of an operator, which revision {rollback} took back by itself"
    _write_again(connection, now, model, rollback, first, why)
    if first:
        add_to_story(connection, model, rollback, f"{len(first)} retractions of operators written again")
    put_up_next(connection, now, model, rollback, size)


def put_up_next(connection: Connection, now: datetime, model: str, rollback: int, size: int) -> str | None:
    """Put the next portion up for bisect and return the id of its batch, or None where nothing is left.

    What an operator approved comes first, and last what came back before and was taken back once more.
    """
    ranks = _ranks(connection, model, rollback)
    if not ranks:
        return None
    lowest = min(ranks.values())
    portion = [one for one, rank in ranks.items() if rank == lowest][:size]
    return batches.create_bisect(connection, now, model, rollback, portion)


def is_overruled(connection: Connection, model: str, rollback: int) -> bool:
    """Whether somebody rolled back after ``rollback``: what was taken back is theirs to judge since then."""
    by_hand = revisions.c.cause.in_((RollbackCause.OPERATOR, RollbackCause.BISECT))
    later = (revisions.c.model == model) & (revisions.c.number > rollback) & by_hand
    return connection.execute(select(revisions.c.number).where(later).limit(1)).first() is not None


def conclude(
    connection: Connection,
    now: datetime,
    batch: RowMapping,
    culprits: Sequence[Refusal],
    harmless: Sequence[str],
    trials: int,
    size: int,
) -> tuple[list[str], list[str]]:
    """Quarantine the culprits of a portion, write the harmless again, and put the next portion up.

    Where no correction of the whole rollback is a culprit, what came back before stays reverted, because it
    would come back for ever. Returns the culprits and what is written again.
    """
    model, rollback = batch["model"], batch["rollback"]
    rows = {row["id"]: row for row in batches.up_for_bisect(connection, batch["id"])}
    refusals = [refusal for refusal in culprits if refusal.correction_id in rows]
    quarantine_refused(connection, now, refusals)
    stays = _would_repeat(connection, model, rollback, [rows[one] for one in harmless if one in rows])
    why = f"did no harm when what revision {rollback} took back was tried again"
    again = [one for one in harmless if one in rows and one not in stays]
    waiting = _write_again(connection, now, model, rollback, again, why)
    guilty = [refusal.correction_id for refusal in refusals]
    if stays:
        _leave_reverted(connection, now, model, rollback, stays)
    details = {"guilty": guilty, "waiting": waiting, "stays": sorted(stays), "trials": trials}
    reason = "; ".join(refusal.message for refusal in refusals)[:500] or "nothing of it did harm"
    audit.record(connection, now, WHO, "bisect", f"{model}@{rollback}", reason, details)
    story = f"bisect: {len(guilty)} in quarantine, {len(waiting)} written again"
    add_to_story(connection, model, rollback, story)
    batches.close_batch(connection, now, batch["id"])
    put_up_next(connection, now, model, rollback, size)
    return guilty, waiting


def give_up(connection: Connection, now: datetime, batch: RowMapping, why: str, size: int) -> list[str]:
    """Cut a portion that keeps failing in two, or quarantine the only correction that is left of it.

    Returns the ids of the new batches in the outbox.
    """
    ids = [row["id"] for row in batches.up_for_bisect(connection, batch["id"])]
    model, rollback = batch["model"], batch["rollback"]
    batches.close_batch(connection, now, batch["id"], BatchState.SPLIT)
    if len(ids) > 1:
        middle = len(ids) // 2
        parts = (ids[:middle], ids[middle:])
        return [batches.create_bisect(connection, now, model, rollback, part) for part in parts]
    quarantine_refused(connection, now, [Refusal(one, QuarantineReason.CRASHED_WORKER, why) for one in ids])
    following = put_up_next(connection, now, model, rollback, size)
    return [following] if following else []


def end_healing(connection: Connection, now: datetime, batch: RowMapping, why: str) -> None:
    """End the healing of a rollback. What it took back and no portion brought back stays reverted."""
    model, rollback = batch["model"], batch["rollback"]
    batches.close_batch(connection, now, batch["id"])
    add_to_story(connection, model, rollback, f"healing ended: {why}")
    audit.record(connection, now, WHO, "bisect", f"{model}@{rollback}", why, {})


def fail_healing(connection: Connection, now: datetime, batch: RowMapping, why: str) -> None:
    """End the healing of a rollback with an incident, because it cannot be measured who did the harm."""
    end_healing(connection, now, batch, why)
    model, rollback = batch["model"], batch["rollback"]
    message = f"the rest of what revision {rollback} took back stays reverted: {why}; {_TRY_AGAIN} {rollback}"
    _open_incident(connection, now, model, rollback, message)


def _ranks(connection: Connection, model: str, rollback: int) -> dict[str, int]:
    """The order in which the corrections of a rollback that no portion holds yet are tried, by id."""
    rows = _rows(connection, _taken_back_last(connection, model, rollback))
    tried = set(_portions(connection, model, rollback))
    approved = _approved(connection, [row["id"] for row in rows])
    return {
        row["id"]: 2 if row["came_back"] is not None else 0 if row["id"] in approved else 1
        for row in rows
        if row["batch_id"] not in tried
    }


def _taken_back_last(connection: Connection, model: str, rollback: int) -> list[str]:
    """The corrections that no later rollback took back once more: those are tried as part of that one."""
    ids = reverted_by(connection, model, rollback)
    again: set[str] = set()
    for some in in_chunks(ids):
        later = (tenures.c.model == model) & (tenures.c.until > rollback)
        query = select(tenures.c.correction_id).where(later, tenures.c.correction_id.in_(some))
        again |= set(connection.execute(query).scalars())
    return [one for one in ids if one not in again]


def _would_repeat(
    connection: Connection, model: str, rollback: int, harmless: Sequence[RowMapping]
) -> set[str]:
    """The harmless corrections that came back before, where no culprit explains that they went again.

    The retraction of an operator is one of them only where the rollback took nothing else back.
    """
    again = [row for row in harmless if row["came_back"] is not None]
    if not again or _has_culprit(connection, model, rollback):
        return set()
    ids = select(tenures.c.correction_id).where(tenures.c.model == model)
    restored = set(connection.execute(ids.where(tenures.c.since == rollback)).scalars())
    taken = set(connection.execute(ids.where(tenures.c.until == rollback)).scalars()) - restored
    alone = taken <= {row["id"] for row in again if _is_retraction(row)}
    return {row["id"] for row in again if alone or not _is_retraction(row)}


def _leave_reverted(
    connection: Connection, now: datetime, model: str, rollback: int, ids: Collection[str]
) -> None:
    why = f"came back by itself before, and revision {rollback} took it back again"
    set_state(connection, ids, CorrectionState.REVERTED, why)
    message = (
        f"{len(ids)} corrections stay reverted: revision {rollback} took them back though they had come back "
        f"before, and no culprit was found; {_TRY_AGAIN} {rollback}"
    )
    _open_incident(connection, now, model, rollback, message)


def _open_incident(connection: Connection, now: datetime, model: str, rollback: int, message: str) -> None:
    """Open the incident of corrections that stay out: nothing but an operator closes it."""
    subject, result = Subject.CORRECTIONS, ProbeResult.UNKNOWN
    open_incident(connection, now, model, rollback, BISECT_PROBE, message, subject=subject, result=result)


def _write_again(
    connection: Connection, now: datetime, model: str, rollback: int, ids: Sequence[str], why: str
) -> list[str]:
    """Let reverted corrections wait, in a batch of their own where edits are not paused."""
    waiting = wait_again(connection, ids, why)
    note_return(connection, waiting, rollback)
    if waiting and not is_paused(connection, model):
        batches.create(connection, now, model, waiting)
    return waiting


def _is_retraction(row: RowMapping) -> bool:
    return row["object"] is None and row["feed"] == OPERATOR


def _rows(connection: Connection, ids: Sequence[str]) -> list[RowMapping]:
    rows: list[RowMapping] = []
    for some in in_chunks(ids):
        rows += connection.execute(select(corrections).where(corrections.c.id.in_(some))).mappings()
    return sorted(rows, key=lambda row: int(row["seq"]))


def _approved(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Those of the corrections that were in quarantine and were let out."""
    released = quarantine.c.state == QuarantineState.RELEASED
    approved: set[str] = set()
    for some in in_chunks(ids):
        query = select(quarantine.c.correction_id).where(quarantine.c.correction_id.in_(some), released)
        approved |= set(connection.execute(query).scalars())
    return approved


def _portions(connection: Connection, model: str, rollback: int) -> Sequence[str]:
    """The ids of all batches in which corrections of a rollback are or were up for bisect."""
    mine = (batch_table.c.model == model) & (batch_table.c.rollback == rollback)
    return connection.execute(select(batch_table.c.id).where(mine)).scalars().all()


def _has_culprit(connection: Connection, model: str, rollback: int) -> bool:
    """Whether a portion of the rollback held a culprit."""
    ids = list(_portions(connection, model, rollback))
    held = corrections.c.state == CorrectionState.QUARANTINED
    query = select(corrections.c.id).where(corrections.c.batch_id.in_(ids), held)
    return connection.execute(query.limit(1)).first() is not None
