"""The history of one fact as a timeline from its feed items to the weights and out of them."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, select

from daemon.core.clock import to_text
from daemon.core.corrections import effective_time
from daemon.core.ledger.schema import (
    attempts,
    audit,
    batches,
    corrections,
    incidents,
    probe_results,
    quarantine,
    revisions,
    tenures,
)
from daemon.core.names import RevisionKind, Subject
from daemon.views.facts import fact_story
from daemon.views.rows import Row, fetch

_ORDER = (
    "said",
    "held",
    "decided",
    "batch",
    "attempt",
    "written",
    "probe",
    "incident",
    "ended",
    "bisect",
    "audit",
)


def fact_timeline(connection: Connection, fact_id: str) -> Row:
    """Return a fact's events, oldest first, each with time, kind and a line of text, or NotFoundError."""
    story = fact_story(connection, fact_id)
    mine = corrections.c.fact_id == fact_id
    stated = fetch(connection, select(corrections).where(mine).order_by(corrections.c.seq))
    ids = [row["id"] for row in stated]
    events = [_stated(row) for row in stated]
    events += _quarantine(connection, ids)
    events += _batches(connection, {row["batch_id"] for row in stated if row["batch_id"]})
    events += _revisions(connection, fact_id, {row["id"]: row for row in stated})
    events += _bisects(connection, fact_id)
    events += _audit(connection, [fact_id, *ids])
    events.sort(key=lambda event: (event["at"], _ORDER.index(event["kind"])))
    newest = max(stated, key=lambda row: row["order_key"])
    rows = story["corrections"]
    in_weights = [row for row in rows if any(tenure["until"] is None for tenure in row["held"])]
    return {
        "fact": fact_id,
        "model": story["model"],
        "subject": story["subject"],
        "relation": story["relation"],
        "newest": {"object": newest["object"], "state": newest["state"], "reason": newest["reason"]},
        "in_weights": in_weights[-1]["object"] if in_weights else None,
        "events": events,
    }


def _event(at: str, kind: str, text: str, **more: Any) -> Row:
    return {"at": at, "kind": kind, "text": text, **more}


def _value(row: Row) -> str:
    return "no longer true" if row["object"] is None else repr(row["object"])


def _stated(row: Row) -> Row:
    since = to_text(effective_time(row["order_key"]))
    text = f"{row['feed']} (trust {row['trust']}) says {_value(row)}, true since {since}"
    note = f" ({row['reason']})" if row["reason"] else ""
    text += f", source {row['source']}; now {row['state']}{note}"
    return _event(row["admitted_at"], "said", text, correction=row["id"])


def _quarantine(connection: Connection, ids: list[str]) -> list[Row]:
    events = []
    for row in _where(connection, quarantine, quarantine.c.correction_id.in_(ids)):
        text = f"quarantine entry {row['id']}: {row['reason']}, {row['message']}; {row['state']}"
        events.append(_event(row["at"], "held", text, correction=row["correction_id"], entry=row["id"]))
    return events


def _batches(connection: Connection, ids: set[str]) -> list[Row]:
    events = []
    for row in _where(connection, batches, batches.c.id.in_(ids)):
        sent = f", sent {row['sends']} times, last at {row['sent_at']}" if row["sent_at"] else ", not sent"
        text = f"batch {row['id']} {row['state']}{sent}"
        events.append(_event(row["created_at"], "batch", text, batch=row["id"]))
    for row in _where(connection, attempts, attempts.c.batch_id.in_(ids)):
        outcome = ": ".join(filter(None, (row["outcome"], row["error"])))
        ending = f"{outcome} at {row['ended_at']}" if row["ended_at"] else "has not ended, or died"
        text = f"attempt {row['number']} of batch {row['batch_id']} by {row['worker']}: {ending}"
        events.append(_event(row["started_at"], "attempt", text, batch=row["batch_id"]))
    return events


def _revisions(connection: Connection, fact_id: str, stated: dict[str, Row]) -> list[Row]:
    """Return when the fact entered and left the weights, and the measurements of these revisions."""
    events: list[Row] = []
    spans = _where(connection, tenures, tenures.c.fact_id == fact_id)
    numbers = {row["since"] for row in spans} | {row["until"] for row in spans if row["until"] is not None}
    model = next(iter(stated.values()))["model"]
    mine = (revisions.c.model == model) & revisions.c.number.in_(numbers)
    by_number = {row["number"]: row for row in _where(connection, revisions, mine)}
    for row in spans:
        correction = stated[row["correction_id"]]
        is_absent = correction["object"] is None
        began = "the weights hold nothing of it" if is_absent else f"the weights hold {_value(correction)}"
        events.append(_revision(by_number[row["since"]], "written", began))
        if row["until"] is not None:
            gone = "its absence ends" if is_absent else f"{_value(correction)} leaves the weights"
            events.append(_revision(by_number[row["until"]], "ended", gone))
    events += _measured(connection, model, numbers)
    return events


def _bisects(connection: Connection, fact_id: str) -> list[Row]:
    """Return what bisect found about the rollbacks that took the fact out of the weights."""
    events: list[Row] = []
    ended = (tenures.c.fact_id == fact_id) & tenures.c.until.is_not(None)
    query = select(tenures.c.model, tenures.c.until).where(ended).distinct()
    for model, number in connection.execute(query).all():
        about = (audit.c.target == f"{model}@{number}") & (audit.c.action == "bisect")
        for row in _where(connection, audit, about):
            found = row["details"]
            counts = f"{len(found.get('guilty', ()))} culprits, {len(found.get('waiting', ()))} written again"
            text = f"bisect of rollback {number} by {row['who']}: {counts}; {row['reason']}"
            events.append(_event(row["at"], "bisect", text, revision=number))
    return events


def _revision(row: Row, kind: str, text: str) -> Row:
    how = str(row["kind"])
    if row["kind"] == RevisionKind.ROLLBACK:
        how += f" to {row['content_of']} ({row['reason']})"
    where = f"revision {row['number']}, {how}, recipe {row['recipe']}, now {row['state']}"
    return _event(row["created_at"], kind, f"{text}: {where}", revision=row["number"])


def _measured(connection: Connection, model: str, numbers: set[int]) -> list[Row]:
    events = []
    probed = (probe_results.c.model == model) & probe_results.c.revision.in_(numbers)
    for row in _where(connection, probe_results, probed):
        score = "no score" if row["score"] is None else f"{row['score']:.4g}"
        bound = "" if row["bound"] is None else f", bound {row['bound']:.4g}"
        text = f"probe {row['probe']} of revision {row['revision']}: {row['result']}, {score}{bound}"
        events.append(_event(row["measured_at"], "probe", text, revision=row["revision"]))
    accused = incidents.c.subject.in_((Subject.REVISION, Subject.STORE, Subject.CORRECTIONS))
    noticed = (incidents.c.model == model) & incidents.c.revision.in_(numbers) & accused
    for row in _where(connection, incidents, noticed):
        text = f"incident {row['id']} at revision {row['revision']}: {row['message']}; {row['state']}"
        events.append(_event(row["opened_at"], "incident", text, revision=row["revision"]))
    return events


def _audit(connection: Connection, targets: list[str]) -> list[Row]:
    events = []
    for row in _where(connection, audit, audit.c.target.in_(targets)):
        reason = f" ({row['reason']})" if row["reason"] else ""
        events.append(_event(row["at"], "audit", f"{row['who']}: {row['action']}{reason}"))
    return events


def _where(connection: Connection, table: Table, condition: ColumnElement[bool]) -> list[Row]:
    return fetch(connection, select(table).where(condition))
