"""Leases with a fencing token that only grows, so that a holder who was overtaken is refused."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, select, update

from daemon.core.clock import from_text, to_text
from daemon.core.errors import FencedError, LeaseHeldError
from daemon.core.ledger.schema import leases


@dataclass(frozen=True)
class Lease:
    """A lease as its holder knows it. A commit is checked by its token."""

    name: str
    holder: str
    token: int


def acquire(
    connection: Connection, now: datetime, name: str, holder: str, seconds: float, note: str = ""
) -> Lease:
    """Take a lease that is free, has expired or belongs to ``holder``, else raise LeaseHeldError.

    Its token grows by one.
    """
    row = connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
    if row is not None and row["holder"] != holder and from_text(row["expires_at"]) > now:
        raise LeaseHeldError(f"{name} is held by {row['holder']} until {row['expires_at']}")
    return _take(connection, now, name, holder, seconds, note)


def overtake(connection: Connection, now: datetime, name: str, holder: str) -> Lease:
    """Take a newer token without waiting, so that the present holder is refused. It expires at once."""
    return _take(connection, now, name, holder, 0.0, "")


def _take(connection: Connection, now: datetime, name: str, holder: str, seconds: float, note: str) -> Lease:
    mine = leases.c.name == name
    before = connection.execute(select(leases.c.token).where(mine)).scalar()
    token = (before or 0) + 1
    values = {"holder": holder, "token": token, "note": note}
    values |= {"expires_at": to_text(now + timedelta(seconds=seconds))}
    change = insert(leases).values(name=name) if before is None else update(leases).where(mine)
    connection.execute(change.values(**values))
    return Lease(name, holder, token)


def check(connection: Connection, lease: Lease) -> None:
    """Raise FencedError if a newer token than the lease's was given out."""
    token = connection.execute(select(leases.c.token).where(leases.c.name == lease.name)).scalar()
    if token != lease.token:
        raise FencedError(f"{lease.name}: token {lease.token} was overtaken by {token}")


def renew(connection: Connection, now: datetime, lease: Lease, seconds: float) -> None:
    """Move the end of the lease, whose token stays, or raise FencedError if a newer one was given out."""
    check(connection, lease)
    expires = to_text(now + timedelta(seconds=seconds))
    connection.execute(update(leases).where(leases.c.name == lease.name).values(expires_at=expires))


def release(connection: Connection, now: datetime, lease: Lease) -> None:
    """End the lease now, if nobody has taken it since."""
    mine = (leases.c.name == lease.name) & (leases.c.token == lease.token)
    connection.execute(update(leases).where(mine).values(expires_at=to_text(now), note=""))


def current_note(connection: Connection, now: datetime, name: str) -> str | None:
    """The note of an unexpired lease, or None when nobody holds it."""
    row = connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
    return None if row is None or from_text(row["expires_at"]) <= now else str(row["note"])
