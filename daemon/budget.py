"""How much comes in and how much is written: a token bucket a feed, and corrections an hour for the model."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, func, select

from daemon.core.clock import Clock, to_text
from daemon.core.schema import batches, corrections


class TokenBucket:
    """At most ``per_second`` items in the long run, ``burst`` at once; 0 a second is no limit."""

    def __init__(self, clock: Clock, per_second: float, burst: int) -> None:
        self._clock, self._per_second, self._burst = clock, per_second, float(burst)
        self._tokens, self._at = float(burst), clock.monotonic()

    def room(self, wanted: int) -> int:
        """How many of ``wanted`` items may come now."""
        if self._per_second <= 0:
            return wanted
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return min(wanted, int(self._tokens))

    def take(self, count: int) -> None:
        """Note that items came."""
        self._tokens -= count


def edits_left(connection: Connection, now: datetime, model: str, per_hour: int) -> int | None:
    """How many corrections may still be put into batches this hour; None: as many as come.

    What waits for the budget is replaced by what is newer, so that the next hour writes the newest values.
    """
    if per_hour <= 0:
        return None
    since = to_text(now - timedelta(hours=1))
    recent = select(batches.c.id).where(batches.c.model == model, batches.c.created_at > since)
    made = select(func.count()).select_from(corrections).where(corrections.c.batch_id.in_(recent))
    return max(0, per_hour - int(connection.execute(made).scalar_one()))
