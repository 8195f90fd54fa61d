"""Repeat jobs in threads, by a clock that no step of the machine's clock moves.

APScheduler asks ``datetime.now(zone)`` what is due. Its jobs would stop for as long as that clock steps back,
and a step of years forward would make it list every run between. So its time zone here is one in which it is
always as late as the monotonic clock says.
"""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, tzinfo

from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.job import Job
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

_ZERO = datetime(2000, 1, 1)  # an arbitrary moment at which the monotonic clock shows 0


class MonotonicZone(tzinfo):
    """A time zone whose present is the monotonic clock: ``datetime.now`` asks the zone, which answers so."""

    def fromutc(self, _utc: datetime) -> datetime:
        """Return the monotonic time, whatever the time in UTC."""
        return _ZERO.replace(tzinfo=self) + timedelta(seconds=time.monotonic())

    def utcoffset(self, _moment: datetime | None) -> timedelta:
        """Return no offset, so that moments of this zone compare as they are."""
        return timedelta(0)

    def dst(self, _moment: datetime | None) -> timedelta:
        """Return no offset."""
        return timedelta(0)

    def tzname(self, _moment: datetime | None) -> str:
        """Return a name for logs."""
        return "monotonic"


class Every(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Runs a number of seconds after the last run began, without catching up on missed ones."""

    def __init__(self, seconds: float) -> None:
        self._pause = timedelta(seconds=seconds)

    def get_next_fire_time(self, _previous: datetime | None, now: datetime) -> datetime:
        """Return when to run next."""
        return now + self._pause


class Threads(BaseExecutor):  # type: ignore[misc]  # APScheduler has no types
    """Runs each job in a thread of its own, which does not keep the process from ending.

    A job may wait for a feed's server for long, and what a job does is a transaction or can be repeated.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: set[threading.Thread] = set()
        self.left_at_the_end: set[str] = set()

    def _do_submit_job(self, job: Job, run_times: Sequence[datetime]) -> None:
        thread = threading.Thread(target=self._run, args=(job, run_times), name=job.id, daemon=True)
        self._running.add(thread)
        thread.start()

    def _run(self, job: Job, run_times: Sequence[datetime]) -> None:
        try:
            events = run_job(job, "default", run_times, self._logger.name)
        except BaseException:  # noqa: BLE001  # the thread's edge, as in APScheduler's own executors
            self._run_job_error(job.id, *sys.exc_info()[1:])
        else:
            self._run_job_success(job.id, events)
        finally:
            self._running.discard(threading.current_thread())

    def finish(self, seconds: float) -> list[str]:
        """Wait at most so long for the jobs in progress, and return the names of those that go on."""
        deadline = time.monotonic() + seconds
        for thread in [one for one in list(self._running) if one.name not in self.left_at_the_end]:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sorted(thread.name for thread in list(self._running) if thread.is_alive())


class Repetition:
    """Jobs that are repeated in the background from ``start`` to ``stop``, each in one thread at a time."""

    def __init__(self) -> None:
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._threads = Threads()
        executors = {"default": self._threads}
        self._jobs = BackgroundScheduler(timezone=MonotonicZone(), job_defaults=defaults, executors=executors)

    def add(self, name: str, job: Callable[[], object], seconds: float, *, is_left: bool = False) -> None:
        """Repeat a job every so many seconds. ``stop`` does not wait for one that ``is_left``."""
        if is_left:
            self._threads.left_at_the_end.add(name)
        self._jobs.add_job(job, Every(seconds), id=name, replace_existing=True)

    def start(self) -> None:
        """Begin to repeat the jobs."""
        self._jobs.start()

    def stop(self, seconds: float) -> list[str]:
        """End after the jobs in progress, or after so long, and return the names of jobs that still run."""
        if self._jobs.running:
            self._jobs.shutdown(wait=True)
        return self._threads.finish(seconds)
