"""The clock as a dependency, so that tests can set the time."""

import math
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

_APART = timedelta(microseconds=1)  # between statements that came together
_MOST_AHEAD = timedelta(hours=12)  # a date more than a day ahead would be refused as one in the future
_STEP_SECONDS = 1.0  # what time servers correct at once is more, what they correct by and by is less


class Clock(Protocol):
    """Wall time for dates, and monotonic time for durations and leases."""

    def now(self) -> datetime:
        """The wall time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never decrease."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        """The wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment, of which only differences are meaningful."""
        return time.monotonic()


class Dating:
    """Gives dates to statements that bear none, so that the one that came later has the later date.

    Where the clock was set back, the dates go on from the last one, unless that is half a day ahead.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: datetime | None = None
        self._lock = threading.Lock()

    def first_of(self, count: int) -> datetime:
        """Return the date of the first of so many statements, which are a microsecond apart."""
        with self._lock:
            now = self._clock.now()
            is_behind = self._last is not None and now < self._last <= now + _MOST_AHEAD
            first = self._last + _APART if self._last is not None and is_behind else now
            self._last = first + max(0, count - 1) * _APART
            return first


class StepWatch:
    """Notices that the wall clock was set, because it then moves otherwise than the monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._difference = self._measure()
        self._stepped_at = -math.inf
        self.has_looked = False

    @property
    def seconds_since_step(self) -> float:
        """Seconds since a look found a step, infinite before the first one."""
        return self._clock.monotonic() - self._stepped_at

    def look(self) -> float:
        """Return by how many seconds the clock was set since the last look, 0 where it was not."""
        self.has_looked = True
        difference = self._measure()
        step, self._difference = difference - self._difference, difference
        if abs(step) < _STEP_SECONDS:
            return 0.0
        self._stepped_at = self._clock.monotonic()
        return step

    def _measure(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()


def boot_id() -> str:
    """Return the same text for all processes that share a monotonic clock, which is one boot of a machine.

    Where the system has none, each process is on its own.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return secrets.token_hex(8)


def to_text(moment: datetime) -> str:
    """Format a moment as ISO 8601 in UTC with microseconds, so that text order is time order."""
    # strftime would not pad the years before 1000, which would then sort as the newest
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def from_text(text: str) -> datetime:
    """Parse what ``to_text`` returned."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
