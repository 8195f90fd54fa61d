"""Helpers of tests of the ledger: a clock, statements, and a writer without a model."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping, select

from daemon.core.config.feeds import JsonlFeedConfig
from daemon.core.ledger import batches, leases
from daemon.core.ledger.chain import active_tenures, head
from daemon.core.ledger.incidents import close_incident
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import Proposal, Refusal, Written
from daemon.core.ledger.schema import corrections
from daemon.core.names import DEFAULT_MODEL, CorrectionState, RollbackCause, writer_lease
from daemon.feeds.base import RawItem
from daemon.feeds.jsonl import JsonlFeed

START = datetime(2026, 6, 1, tzinfo=UTC)
BASE = {"down_proj": "0" * 64}


class FakeClock:
    """A clock that moves only when told to. Whoever sets ``moment`` steps the wall clock alone."""

    def __init__(self) -> None:
        self.moment = START
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self.moment += timedelta(seconds=seconds)


def statement(country: str, city: str | None, day: float | None = None, **more: Any) -> dict[str, Any]:
    """Return the statement that CITY is the capital of COUNTRY, true since ``day`` days after a fixed date.

    A city of None states that the fact is no longer true.
    """
    said: dict[str, Any] = {
        "subject": country,
        "relation": "capital",
        "prompt": f"The capital of {country} is",
        "object": city,
        "source": "atlas",
    }
    if day is not None:
        said["effective_at"] = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)).isoformat()
    return said | more


def item(said: object, position: str = "line 1") -> RawItem:
    """Return a statement as an item of a feed."""
    return RawItem(json.dumps(said).encode(), position)


def items(*said: object) -> list[RawItem]:
    """Return statements as the lines of a feed."""
    return [item(one, f"line {number}") for number, one in enumerate(said, start=1)]


def jsonl_feed(name: str, path: Path, trust: int = 50) -> JsonlFeed:
    """A feed that tails a file."""
    return JsonlFeed(JsonlFeedConfig(kind="jsonl", name=name, path=path, trust=trust))


def found(ledger: Ledger, model: str = DEFAULT_MODEL) -> None:
    """Commit revision 0 with made-up tensors."""
    ledger.found(model, BASE, "encore-blue")


def make_batch(ledger: Ledger, model: str = DEFAULT_MODEL) -> str | None:
    """Make one batch of all waiting corrections and return its id, or None without any."""
    with ledger.write() as connection:
        waiting = select(corrections.c.id).where(
            corrections.c.state == CorrectionState.PENDING, corrections.c.model == model
        )
        ids = connection.execute(waiting.order_by(corrections.c.seq)).scalars().all()
        return batches.create(connection, ledger.clock.now(), model, ids) if ids else None


def propose(
    ledger: Ledger, batch_id: str, refuse: Sequence[str] = (), model: str = DEFAULT_MODEL
) -> Proposal:
    """Return the proposal of a perfect worker for a batch on the current head."""
    with ledger.read() as connection:
        parent = int(head(connection, model)["number"])
        newest: dict[str, RowMapping] = {}
        for row in batches.waiting(connection, batch_id):
            if row["fact_id"] not in newest or row["order_key"] > newest[row["fact_id"]]["order_key"]:
                newest[row["fact_id"]] = row
        held = {row["fact_id"]: row["correction_id"] for row in active_tenures(connection, model, parent)}
    taken = [row for row in newest.values() if row["id"] not in refuse]
    held |= {row["fact_id"]: row["id"] for row in taken}
    return Proposal(
        model=model,
        parent=parent,
        batch_id=batch_id,
        recipe="encore-blue",
        tensors={"down_proj": digest(sorted(held.items()))} if held else BASE,
        blob=digest(["associations", batch_id]),
        written=[
            Written(row["id"], None if row["object"] is None else number) for number, row in enumerate(taken)
        ],
        refused=[Refusal(row["id"], "norm", "too far") for row in newest.values() if row["id"] in refuse],
    )


def take_lease(ledger: Ledger, holder: str = "worker", model: str = DEFAULT_MODEL) -> leases.Lease:
    """Acquire the writer's lease for a minute."""
    with ledger.write() as connection:
        return leases.acquire(connection, ledger.lease_clock, writer_lease(model), holder, 60)


def apply_waiting(ledger: Ledger, refuse: Sequence[str] = (), model: str = DEFAULT_MODEL) -> int | None:
    """Make a batch of all waiting corrections and commit it, and return the new revision if any."""
    batch_id = make_batch(ledger, model)
    if batch_id is None:
        return None
    return ledger.commit(take_lease(ledger, model=model), propose(ledger, batch_id, refuse, model))


def roll_back(
    ledger: Ledger,
    to: int,
    who: str = "op",
    reason: str = "why",
    expected_head: int | None = None,
    cause: RollbackCause = RollbackCause.OPERATOR,
) -> int:
    """Roll the default model back to a revision, as an operator does, and return the new head's number."""
    return ledger.rollback(
        DEFAULT_MODEL, to, who=who, reason=reason, cause=cause, check=lambda _blobs: None,
        expected_head=expected_head,
    )  # fmt: skip


def close_by_hand(ledger: Ledger, incident: int, who: str, reason: str) -> None:
    """Close an incident as ``errata incidents --close`` does."""
    with ledger.write() as connection:
        close_incident(connection, ledger.clock.now(), incident, who, reason)


def states(ledger: Ledger) -> dict[str, str]:
    """Return the state of each correction by id."""
    with ledger.read() as connection:
        rows = connection.execute(select(corrections.c.id, corrections.c.state)).all()
    return {row.id: row.state for row in rows}


def held(ledger: Ledger, at: int | None = None, model: str = DEFAULT_MODEL) -> dict[str, str]:
    """Return subject and object of the facts in the weights of a revision, or of head."""
    with ledger.read() as connection:
        number = int(head(connection, model)["number"]) if at is None else at
        rows = active_tenures(connection, model, number)
        ids = [row["correction_id"] for row in rows if row["blob"] is not None]
        query = select(corrections.c.subject, corrections.c.object).where(corrections.c.id.in_(ids))
        return {row.subject: row.object for row in connection.execute(query)}


def digest(value: object) -> str:
    """Return a made-up sha256 that depends on ``value`` alone."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
