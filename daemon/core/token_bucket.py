"""A token bucket with a rate and a burst, which limits incoming items."""

from daemon.core.clock import Clock


class TokenBucket:
    """At most ``per_second`` items in the long run (0: no limit) and ``burst`` at once."""

    def __init__(self, clock: Clock, per_second: float, burst: int) -> None:
        self._clock, self._per_second, self._burst = clock, per_second, float(burst)
        self._tokens, self._at = float(burst), clock.monotonic()

    def available(self, wanted: int) -> int:
        """Return how many of ``wanted`` items may come now."""
        if self._per_second <= 0:
            return wanted
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        return min(wanted, int(self._tokens))

    def take(self, count: int) -> None:
        """Subtract the tokens of ``count`` items that came."""
        self._tokens -= count
