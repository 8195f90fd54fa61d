"""Leases with a fencing token that only grows, so that a holder who was overtaken is refused.

A lease is measured by the monotonic clock, which no step of the wall clock moves. Processes of one boot share
that clock. What another host, or an earlier boot, has left is watched: it is over when it was not renewed for
its length. The date in ``expires_at`` is for people.
"""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, RowMapping, insert, select, update

from daemon.core.clock import Clock, boot_id, from_text, to_text
from daemon.core.errors import FencedError, LeaseHeldError
from daemon.core.ledger.schema import leases
from daemon.core.log import get_logger

log = get_logger("errata.leases")
_UNKNOWN_SECONDS = 20.0  # the length of a lease that an older Errata wrote, which stored its end alone


@dataclass(frozen=True)
class Lease:
    """A lease as its holder knows it. A commit is checked by its token."""

    name: str
    holder: str
    token: int


class LeaseClock:
    """Tells whether leases are over, and remembers since when it has seen one that it cannot date."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._boot = boot_id()
        self._seen: dict[str, tuple[tuple[int, float], float]] = {}

    def stamp(self, seconds: float) -> dict[str, str | float]:
        """Return the columns of a lease that is taken or renewed now for so many seconds."""
        expires = to_text(self._clock.now() + timedelta(seconds=seconds))
        monotonic = self._clock.monotonic()
        return {"expires_at": expires, "seconds": seconds, "boot": self._boot, "renewed": monotonic}

    def is_over(self, row: RowMapping, unknown: float = _UNKNOWN_SECONDS) -> bool:
        """Whether nobody holds the lease of a row any more, which has length ``unknown`` if it has none."""
        if row["seconds"] is None and from_text(row["expires_at"]) <= self._clock.now():
            return True
        length = unknown if row["seconds"] is None else float(row["seconds"])
        age = self._clock.monotonic() - float(row["renewed"])
        if length <= 0 or (row["boot"] == self._boot and age >= 0):
            return length <= 0 or age >= length
        return self._was_watched_for(row, length)

    def _was_watched_for(self, row: RowMapping, length: float) -> bool:
        """Whether a lease of another monotonic clock has stayed the same for its length in this process."""
        now, state = self._clock.monotonic(), (int(row["token"]), float(row["renewed"]))
        before = self._seen.get(row["name"])
        if before is None or before[0] != state or before[1] > now:
            self._seen[row["name"]] = (state, now)
            log.warning(
                "a lease of another host or boot: taken over unless it is renewed",
                lease=row["name"], holder=row["holder"], dated=row["expires_at"], within_seconds=length,
            )  # fmt: skip
            return False
        return now - before[1] >= length


def acquire(
    connection: Connection, clock: LeaseClock, name: str, holder: str, seconds: float, note: str = ""
) -> Lease:
    """Take a lease that is free, is over or belongs to ``holder``, else raise LeaseHeldError.

    Its token grows by one.
    """
    row = _find(connection, name)
    if row is not None and row["holder"] != holder:
        if not clock.is_over(row, seconds):
            raise LeaseHeldError(f"{name} is held by {row['holder']} until {row['expires_at']}")
        if row["note"]:  # its holder never gave it back
            log.warning("lease taken over", lease=name, holder=row["holder"], dated=row["expires_at"])
    return _take(connection, clock, name, holder, seconds, note)


def overtake(connection: Connection, clock: LeaseClock, name: str, holder: str) -> Lease:
    """Take a newer token without waiting, so that the present holder is refused. It is over at once."""
    return _take(connection, clock, name, holder, 0.0, "")


def _take(
    connection: Connection, clock: LeaseClock, name: str, holder: str, seconds: float, note: str
) -> Lease:
    mine = leases.c.name == name
    before = connection.execute(select(leases.c.token).where(mine)).scalar()
    token = (before or 0) + 1
    values = {"holder": holder, "token": token, "note": note, **clock.stamp(seconds)}
    change = insert(leases).values(name=name) if before is None else update(leases).where(mine)
    connection.execute(change.values(**values))
    return Lease(name, holder, token)


def check(connection: Connection, lease: Lease) -> None:
    """Raise FencedError if a newer token than the lease's was given out."""
    token = connection.execute(select(leases.c.token).where(leases.c.name == lease.name)).scalar()
    if token != lease.token:
        raise FencedError(f"{lease.name}: token {lease.token} was overtaken by {token}")


def renew(connection: Connection, clock: LeaseClock, lease: Lease, seconds: float) -> None:
    """Begin the length of the lease again. Its token stays, and a newer one raises FencedError."""
    check(connection, lease)
    connection.execute(update(leases).where(leases.c.name == lease.name).values(**clock.stamp(seconds)))


def release(connection: Connection, clock: LeaseClock, lease: Lease) -> None:
    """End the lease now, if nobody has taken it since."""
    mine = (leases.c.name == lease.name) & (leases.c.token == lease.token)
    connection.execute(update(leases).where(mine).values(note="", **clock.stamp(0.0)))


def current_note(connection: Connection, clock: LeaseClock, name: str) -> str | None:
    """The note of a lease that is not over, or None when nobody holds it."""
    row = _find(connection, name)
    return None if row is None or clock.is_over(row) else str(row["note"])


def current_holder(connection: Connection, clock: LeaseClock, name: str) -> str | None:
    """The holder of a lease that is not over, or None when nobody holds it."""
    row = _find(connection, name)
    return None if row is None or clock.is_over(row) else str(row["holder"])


def _find(connection: Connection, name: str) -> RowMapping | None:
    return connection.execute(select(leases).where(leases.c.name == name)).mappings().one_or_none()
