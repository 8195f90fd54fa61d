"""The clock as a dependency, so that tests can set the time."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for display and leases, and monotonic time for durations."""

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


def to_text(moment: datetime) -> str:
    """Format a moment as ISO 8601 in UTC with microseconds, so that text order is time order."""
    # strftime would not pad the years before 1000, which would then sort as the newest
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def from_text(text: str) -> datetime:
    """Parse what ``to_text`` returned."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
