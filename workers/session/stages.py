"""Measure how long each stage of an attempt takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from daemon.core.ledger.ledger import Ledger
from daemon.core.tracing import span


class Stages:
    """Seconds that each stage of an attempt took."""

    def __init__(self, ledger: Ledger) -> None:
        self._clock = ledger.clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``."""
        start = self._clock.monotonic()
        try:
            with span(stage):
                yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + self._clock.monotonic() - start
