"""The repeated jobs of the daemon, of which one process leads.

``Scheduler.tick`` does each job once, and ``start`` repeats them. One scheduler leads for each model of a
ledger. Others wait until its lease is given back or was not renewed for its length.
"""

from collections.abc import Callable
from functools import partial

from daemon.admission.admit import backlog, pull_feed
from daemon.admission.auto_pause import pause_if_poisoned
from daemon.admission.policy import Policy
from daemon.core.config.settings import Config
from daemon.core.errors import ErrataError, FencedError, LeaseHeldError
from daemon.core.ledger import leases
from daemon.core.ledger.dates import settle_dates
from daemon.core.ledger.feeds import note_error
from daemon.core.ledger.heartbeats import process_name
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.switches import is_feed_paused
from daemon.core.log import get_logger
from daemon.core.names import AdmissionOutcome, scheduler_lease
from daemon.core.token_bucket import TokenBucket
from daemon.feeds.base import Feed, make_feed
from daemon.scheduling.dispatch import Queue, make_batches, reconcile, send_open
from daemon.scheduling.repetition import Repetition
from daemon.scheduling.surveys import ask_for_survey
from daemon.upkeep.store import (
    collect_garbage,
    is_scrub_due,
    require_free_space,
    scrub,
    scrub_published,
)
from daemon.watch.judge import judge

log = get_logger("errata.scheduler")
_STOP_SECONDS = 5.0  # for the jobs in progress: a transaction takes less, a feed's server may take longer


class Scheduler:
    """The jobs of the daemon over one ledger."""

    def __init__(self, ledger: Ledger, config: Config, queue: Queue) -> None:
        self.ledger, self.config, self.queue = ledger, config, queue
        self.feeds: list[Feed] = [make_feed(feed) for feed in config.feeds]
        self._sections = {feed.name: feed for feed in config.feeds}
        self._buckets = {
            feed.name: TokenBucket(ledger.clock, feed.items_per_second, feed.burst_items)
            for feed in config.feeds
        }
        self._policy = Policy.of(config.admission)
        self._unread = {feed.name for feed in self.feeds}
        self._lease: leases.Lease | None = None
        self._waits = False
        self._jobs = Repetition()

    @property
    def feeds_at_end(self) -> bool:
        """Whether the last pull of every feed found its end."""
        return not self._unread

    @property
    def leads(self) -> bool:
        """Whether this scheduler does the jobs, and no other one."""
        return self._lease is not None

    def start(self) -> None:
        """Repeat the jobs in the background until ``stop``."""
        every = self.config.schedule
        self._jobs.add("lead", self.lead, every.lease_seconds / 3)
        for feed in self.feeds:  # a feed that waits for its server delays no other
            pull = partial(self.pull_one, feed)
            self._jobs.add(f"pull {feed.name}", pull, every.pull_seconds, is_left=True)
        self._jobs.add("dispatch", self.dispatch, every.dispatch_seconds)
        self._jobs.add("reconcile", self.reconcile, every.reconcile_seconds)
        self._jobs.add("judge", self.judge, every.judge_seconds)
        self._jobs.add("survey", self.survey, every.judge_seconds)
        self._jobs.add("keep", self.keep, every.keep_seconds)
        self.lead()
        self._jobs.start()

    def stop(self) -> None:
        """End after the jobs in progress, without those that take long, and release the lease."""
        if unfinished := self._jobs.stop(_STOP_SECONDS):
            log.warning("ended during jobs, which are done again later", jobs=unfinished)
        if self._lease is not None:
            lease, self._lease = self._lease, None
            with self.ledger.write() as connection:
                leases.release(connection, self.ledger.lease_clock, lease)

    def tick(self) -> None:
        """Do each job once, in the order in which a correction meets them."""
        self.lead()
        for job in (self.pull, self.dispatch, self.reconcile, self.judge):
            job()

    def lead(self) -> bool:
        """Take or renew the lease of the leading scheduler, and return whether this one leads."""
        name, seconds = scheduler_lease(self.config.model.name), self.config.schedule.lease_seconds
        clock = self.ledger.lease_clock
        with self.ledger.write() as connection:
            try:
                if self._lease is not None:
                    leases.renew(connection, clock, self._lease, seconds)
                else:
                    self._lease = leases.acquire(connection, clock, name, process_name(), seconds, "leads")
                    log.info("leads", token=self._lease.token)
                self._waits = False
            except LeaseHeldError as error:
                self._lease = None
                if not self._waits:
                    log.warning("waits until another scheduler ends", why=str(error))
                self._waits = True
            except FencedError:
                log.warning("another scheduler leads now")
                self._lease = None
        return self._lease is not None

    def pull(self) -> None:
        """Read what is new in every feed, until the queue is full."""
        for feed in self.feeds:
            self.pull_one(feed)

    def pull_one(self, feed: Feed) -> None:
        """Read what is new in one feed, unless it is paused."""
        if self._lease is not None and not self._is_paused(feed):
            self._guarded(f"pull {feed.name}", partial(self._pull_one, feed), feed.name)

    def dispatch(self) -> None:
        """Make batches of waiting corrections and send the outbox."""
        self._guarded("dispatch", self._dispatch)

    def _dispatch(self) -> None:
        require_free_space(self.ledger, self.config)
        make_batches(self.ledger, self.config)
        send_open(self.ledger, self.config.model.name, self.queue)

    def reconcile(self) -> None:
        """Send batches again that Redis lost or a dead worker left."""
        self._guarded("reconcile", self._reconcile)

    def _reconcile(self) -> None:
        require_free_space(self.ledger, self.config)
        reconcile(self.ledger, self.config, self.queue)

    def judge(self) -> None:
        """Judge new revisions by their probes."""
        self._guarded("judge", lambda: judge(self.ledger, self.config))

    def keep(self) -> None:
        """Delete blobs that no revision needs, and check the others when that is due."""
        # the age of a file is of the wall clock: one that was just written may look old after a step
        if self.ledger.step_watch.seconds_since_step > self.config.store.grace_seconds:
            self._guarded("collect", lambda: collect_garbage(self.ledger, self.config))
        self._guarded("scrub", self._scrub_when_due)

    def _scrub_when_due(self) -> None:
        with self.ledger.read() as connection:
            due = is_scrub_due(connection, self.ledger, self.config)
        if due:
            scrub(self.ledger, self.config)
            scrub_published(self.ledger, self.config)

    def survey(self) -> None:
        """Ask for a run of all probes when it is due."""
        self._guarded("survey", lambda: ask_for_survey(self.ledger, self.config, self.queue))

    def _pull_one(self, feed: Feed) -> None:
        section, bucket, model = self._sections[feed.name], self._buckets[feed.name], self.config.model.name
        while self._queue_accepts() and (limit := bucket.available(section.chunk_items)):
            report = pull_feed(self.ledger, feed, limit, model, self._policy)
            bucket.take(len(report.decisions))
            if report.counts[AdmissionOutcome.QUARANTINED] and pause_if_poisoned(
                self.ledger, model, feed.name, section.quarantine_limit
            ):
                return
            if not report.more:
                self._unread.discard(feed.name)
                return
            self._unread.add(feed.name)

    def _queue_accepts(self) -> bool:
        with self.ledger.read() as connection:
            return backlog(connection, self.config.model.name) < self.config.edit.queue_bound

    def _is_paused(self, feed: Feed) -> bool:
        with self.ledger.read() as connection:
            return is_feed_paused(connection, self.config.model.name, feed.name)

    def _guarded(self, job: str, work: Callable[[], object], feed: str | None = None) -> None:
        """Run a job if this scheduler leads, and log its failure. The next tick tries again."""
        if self._lease is None:
            return
        try:
            settle_dates(self.ledger)
            work()
        except ErrataError as error:
            log.warning("job failed", job=job, code=error.code, error=str(error))
            if feed is not None:
                with self.ledger.write() as connection:
                    now, model = self.ledger.clock.now(), self.config.model.name
                    note_error(connection, now, model, feed, str(error))
