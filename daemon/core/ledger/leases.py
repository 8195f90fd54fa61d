"""Leases with a fencing token that only grows: who may write, and who has been overtaken."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, select, update

from daemon.core.clock import from_text, to_text
from daemon.core.errors import FencedError, LeaseHeldError
from daemon.core.ledger.schema import leases


@dataclass(frozen=True)
class Lease:
    """A lease as its holder knows it; the token is what a commit shows."""

    name: str
    holder: str
    token: int


def acquire(
    connection: Connection, now: datetime, name: str, holder: str, seconds: float, note: str = ""
) -> Lease:
    """Take the lease when it is free, has run out, or is ours; the token grows by one each time.

    Raises:
        LeaseHeldError: somebody else holds it.
    """
    row = connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
    if row is not None and row["holder"] != holder and from_text(row["expires_at"]) > now:
        raise LeaseHeldError(f"{name} is held by {row['holder']} until {row['expires_at']}")
    return _take(
        connection, now, name, holder, seconds, note, exists=row is not None, token=row["token"] if row else 0
    )


def overtake(connection: Connection, now: datetime, name: str, holder: str) -> Lease:
    """Take a token without waiting; the lease runs out at once and its holder is refused at commit."""
    row = connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
    return _take(
        connection, now, name, holder, 0.0, "", exists=row is not None, token=row["token"] if row else 0
    )


def _take(
    connection: Connection,
    now: datetime,
    name: str,
    holder: str,
    seconds: float,
    note: str,
    *,
    exists: bool,
    token: int,
) -> Lease:
    values = {
        "holder": holder,
        "token": token + 1,
        "expires_at": to_text(now + timedelta(seconds=seconds)),
        "note": note,
    }
    if exists:
        connection.execute(update(leases).where(leases.c.name == name).values(**values))
    else:
        connection.execute(insert(leases).values(name=name, **values))
    return Lease(name, holder, token + 1)


def check(connection: Connection, lease: Lease) -> None:
    """Refuse a holder whose token is no longer the newest.

    Raises:
        FencedError: a newer token was given out.
    """
    token = connection.execute(select(leases.c.token).where(leases.c.name == lease.name)).scalar()
    if token != lease.token:
        raise FencedError(f"{lease.name}: token {lease.token} was overtaken by {token}")


def renew(connection: Connection, now: datetime, lease: Lease, seconds: float) -> None:
    """Move the end of the lease; the token stays.

    Raises:
        FencedError: a newer token was given out.
    """
    check(connection, lease)
    expires = to_text(now + timedelta(seconds=seconds))
    connection.execute(update(leases).where(leases.c.name == lease.name).values(expires_at=expires))


def release(connection: Connection, now: datetime, lease: Lease) -> None:
    """Let the lease run out now, if it is still ours."""
    mine = (leases.c.name == lease.name) & (leases.c.token == lease.token)
    connection.execute(update(leases).where(mine).values(expires_at=to_text(now), note=""))


def current_note(connection: Connection, now: datetime, name: str) -> str | None:
    """What the holder of an unexpired lease says it works on; None when nobody holds it."""
    row = connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
    return None if row is None or from_text(row["expires_at"]) <= now else str(row["note"])
