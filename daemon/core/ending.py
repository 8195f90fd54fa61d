"""End a process within a time limit after SIGTERM, SIGINT or SIGHUP, whatever it is doing.

Python's handlers wait until the main thread comes back from C code. The signals are therefore read by a
thread, from the pipe of ``signal.set_wakeup_fd``. Everything that Errata does may be killed at any moment, so
a process that needs too long is ended by force, and what was in work comes again.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from daemon.core.log import get_logger

log = get_logger("errata.ending")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LIMIT_SECONDS = 8.0  # for a process alone; its supervisor waits a little longer and is done within 10 s
_AGAIN_SECONDS = 1.0  # a second signal after this is somebody's impatience, before it a tool that sends two


def _nothing() -> None:
    pass


class Ending:
    """The wish that this process ends.

    ``asked`` is set at the first signal. ``on_ask`` is called then, and ``on_force`` before an end by force,
    both in a thread. The process ends by force after ``seconds``, or at a second signal.
    """

    def __init__(
        self,
        seconds: float = LIMIT_SECONDS,
        *,
        on_ask: Callable[[], None] = _nothing,
        on_force: Callable[[], None] = _nothing,
    ) -> None:
        self.asked = threading.Event()
        self._seconds, self._on_ask, self._on_force = seconds, on_ask, on_force

    def listen(self, *, with_handlers: bool = True) -> None:
        """Begin to listen, in the main thread. A signal that is ignored, as by nohup, stays so.

        Without ``with_handlers`` the handlers are somebody else's, and only the limit is ours.
        """
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        if with_handlers:
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, _noticed)
        threading.Thread(target=self._watch, args=(read,), name="ending", daemon=True).start()

    def _watch(self, read: int) -> None:
        _wait_for_signal(read, None)
        self.asked.set()
        first = time.monotonic()
        if self._seconds > 0:
            threading.Thread(target=self._on_ask, name="ending-asked", daemon=True).start()
        while (left := first + self._seconds - time.monotonic()) > 0:
            if _wait_for_signal(read, left) and time.monotonic() - first >= _AGAIN_SECONDS:
                log.warning("ended by a second signal; what was in work comes again")
                break
        else:
            if self._seconds > 0:
                log.warning("ended at the time limit; what was in work comes again", seconds=self._seconds)
        self._on_force()
        os._exit(0)


def _wait_for_signal(read: int, seconds: float | None) -> bool:
    """Wait for one of the signals at most so long, and return whether it came."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([read], [], [], left)[0]:
            return False
        if any(number in SIGNALS for number in os.read(read, 64)):
            return True


def _noticed(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the pipe gets only signals that have a handler in Python."""
