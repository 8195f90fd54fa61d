"""End a worker within seconds of SIGTERM, and give what it was doing back to the queue.

Celery's main process receives the signal and waits for the task in the pool's child. The child is told by a
signal of its own, leaves the task by a KeyboardInterrupt, and rejects its message, which is delivered again.
The attempt is not counted as a failure. What takes too long is killed: the child ends with its main process.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from billiard import active_children  # type: ignore[import-untyped]
from celery import Celery, bootsteps
from celery.exceptions import Reject
from celery.signals import celeryd_init, worker_process_init

from daemon.core.ending import Ending
from daemon.core.log import get_logger
from daemon.core.orphans import end_with_parent

log = get_logger("errata.worker")
_LIMIT_SECONDS = 7.0  # below the time limit of the supervisor, which then kills the rest
_INTERRUPT = signal.SIGURG  # billiard handles SIGTERM itself; this one does nothing to a child without a task


class Interruption:
    """Ends the task in progress when its process is asked to end."""

    def __init__(self) -> None:
        self._asked = self._in_task = False

    def listen(self) -> None:
        """Begin to listen, in the process that runs the tasks."""
        signal.signal(_INTERRUPT, self._interrupt)

    @contextmanager
    def task(self) -> Iterator[None]:
        """Run a task in the block. Raises celery's Reject, which sends it again, where it is interrupted."""
        again = Reject("the worker ends", requeue=True)
        try:
            self._in_task = True
            if self._asked:
                raise again
            yield
        except KeyboardInterrupt:
            log.warning("interrupted, because the worker ends; it is sent again")
            raise again from None
        finally:
            self._in_task = False

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._in_task:
            self._in_task = False  # once: a second one would hit the cleaning up
            raise KeyboardInterrupt


def end_in_time(application: Celery) -> Interruption:
    """Let the workers of an application end within the time limit, and return what interrupts a task."""
    interruption, main = Interruption(), os.getpid()
    ending = Ending(_LIMIT_SECONDS, on_ask=_interrupt_children)

    def began(**_: Any) -> None:
        ending.listen(with_handlers=False)

    def forked(**_: Any) -> None:
        signal.set_wakeup_fd(-1)  # that pipe is read by the main process
        end_with_parent(main)
        interruption.listen()

    celeryd_init.connect(began, weak=False)
    worker_process_init.connect(forked, weak=False)
    application.steps["worker"].add(HangUp)
    return interruption


class HangUp(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets SIGHUP end the worker like SIGTERM, where Celery would start it again."""

    def start(self, _worker: Any) -> None:
        """Install the handler, after Celery installed its own."""
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))


def _interrupt_children() -> None:
    for child in active_children():
        with suppress(OSError):
            os.kill(child.pid, _INTERRUPT)
