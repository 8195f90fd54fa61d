"""A time limit on Python code in this process's main thread."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from daemon.core.errors import ProbeError


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End the block with an exception after ``seconds``, without any limit outside the main thread.

    Code that never returns to Python is not interrupted. Celery's hard limit then ends the process, and the
    attempt's record names the probe.

    Raises:
        ProbeError: the block took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(_number: int, _frame: FrameType | None) -> None:
        raise ProbeError(f"no answer in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
