"""The embedded set-up: Redis, one editing worker, scheduler and API in one process tree."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import func, select

from daemon.api.app import make_app
from daemon.core.broker import CELERY_URL_FILE, URL_FILE, ping, worker_arguments
from daemon.core.config.feeds import JsonlFeedConfig
from daemon.core.config.settings import CONFIG_VARIABLE, Config
from daemon.core.ending import Ending
from daemon.core.errors import ConfigError, NotFoundError, UnavailableError
from daemon.core.fsio import write_durably
from daemon.core.http_server import HttpServer
from daemon.core.ledger import chain
from daemon.core.ledger.heartbeats import ENDING, Heart
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.publications import publications_by_place
from daemon.core.ledger.schema import batches, corrections, feeds, revisions
from daemon.core.log import get_logger
from daemon.core.names import LIVE_LINK, BatchState, CorrectionState, ProcessRole, RevisionState
from daemon.embedded.children import Child, end_leftover, stop_all
from daemon.embedded.lock import only_one
from daemon.embedded.redis_server import PrivateRedis
from daemon.scheduling.dispatch import CeleryQueue
from daemon.scheduling.scheduler import Scheduler

log = get_logger("errata.run")
_WATCH_SECONDS = 0.5  # between looks at the children: a death is noticed at once for a human
_LIMIT_SECONDS = 9.5  # from a signal to the end by force: within 10 s everything has ended
_CHILDREN_SECONDS = 8.0  # from a signal to SIGKILL for the children, which leaves Redis a second
_LAST_PUBLICATION_SECONDS = 300.0  # that --once waits for the publisher, which copies a model
_CHILD_NAMES = ("prepare", "worker", "publish", "serve")


class Supervisor:
    """Starts, watches and stops all parts that one machine needs."""

    def __init__(
        self,
        config: Config,
        config_file: Path | None,
        *,
        log_folder: Path | None = None,
        with_model: bool = True,
    ) -> None:
        self.config, self._with_model = config, with_model
        self._environment = dict(os.environ)
        if config_file is not None:
            self._environment[CONFIG_VARIABLE] = str(config_file.resolve())
        self._log_folder = log_folder
        self._stopping = threading.Event()
        self._running: list[Child] = []
        self._asked_at = math.inf

    def stop(self) -> None:
        """Let ``run`` return within the time limit. What is in work by then comes again."""
        self._asked_at = min(self._asked_at, time.monotonic())
        self._stopping.set()

    def run(self, *, once: bool = False) -> None:
        """Start all parts and watch them until ``stop``, or with ``once`` until nothing waits.

        Raises UnavailableError without Redis or model, or while another supervisor uses this data_dir, and
        ConfigError if a feed that was never read has no file.
        """
        with ExitStack() as stack:
            stack.enter_context(only_one(self.config.run_path))
            for name in _CHILD_NAMES:  # also those that are not configured any more
                end_leftover(self._lock_file(name), name)
            stack.enter_context(self._redis())
            ledger = Ledger.open_migrated(self.config.ledger_url)
            stack.callback(ledger.close)
            _require_feeds(ledger, self.config)
            model, every = self.config.model.name, self.config.schedule.heartbeat_seconds
            heart = stack.enter_context(Heart(ledger, model, ProcessRole.DAEMON, every))
            stack.callback(self._stop_children)
            if self._with_model and not self._prepare(ledger):
                return
            for child in self._children():
                self._running.append(child)
                child.start()
            scheduler = Scheduler(ledger, self.config, CeleryQueue(self.config))
            scheduler.start()
            stack.callback(scheduler.stop)
            server = HttpServer(make_app(ledger, self.config), self.config.api.host, self.config.api.port)
            server.start()
            stack.callback(server.stop)
            stack.callback(self._ask_children)
            log.info("running", data_dir=str(self.config.data_dir), api=self.config.api.port)
            self._watch(scheduler, heart, once=once)
            heart.state = ENDING

    def _watch(self, scheduler: Scheduler, heart: Heart, *, once: bool) -> None:
        ends_at: float | None = None
        while not self._stopping.wait(_WATCH_SECONDS):
            heart.state = "leads" if scheduler.leads else "waits until another daemon ends"
            for child in self._running:
                child.watch()
            if self._private_redis is not None and not self._private_redis.alive():
                log.warning("Redis ended unexpectedly, restarting it")
                self._private_redis.start()
            if once and scheduler.feeds_at_end and drained(scheduler.ledger, self.config):
                ends_at = ends_at or time.monotonic() + _LAST_PUBLICATION_SECONDS
                if is_published(scheduler.ledger, self.config) or time.monotonic() > ends_at:
                    return

    @contextmanager
    def _redis(self) -> Iterator[None]:
        """Check the configured Redis, or start a private one and write its address to a file."""
        self._private_redis: PrivateRedis | None = None
        if self.config.redis_url is not None:
            ping(self.config)
            yield
            return
        server = PrivateRedis(self.config.data_dir / "redis")
        server.start()
        self._private_redis = server
        for name, url in ((URL_FILE, server.url), (CELERY_URL_FILE, server.celery_url)):
            write_durably(self.config.run_path / name, url.encode(), mode=0o600)
        try:
            yield
        finally:
            for name in (URL_FILE, CELERY_URL_FILE):
                (self.config.run_path / name).unlink(missing_ok=True)
            server.stop()

    def _prepare(self, ledger: Ledger) -> bool:
        """Found revision 0 by the workers' command, unless it exists, and return whether it is there.

        It is not after ``stop``. Raises UnavailableError if the command fails.
        """
        with ledger.read() as connection:
            try:
                chain.head(connection, self.config.model.name)
            except NotFoundError:
                log.info("preparing the model, which happens once")
            else:
                return True
        child = self._child("prepare", [sys.executable, "-m", "daemon.cli", "prepare"])
        self._running.append(child)
        child.start()
        while not child.wait(_WATCH_SECONDS):
            if self._stopping.is_set():
                return False
        self._running.remove(child)
        if child.status != 0:
            raise UnavailableError("the model could not be prepared", hint="run errata prepare")
        return True

    def _children(self) -> list[Child]:
        """The worker, and the publisher and completion server if they are configured."""
        if not self._with_model:
            return []
        errata = [sys.executable, "-m", "daemon.cli"]
        children = [self._child("worker", [sys.executable, *worker_arguments(self.config)])]
        if self.config.publish.follow:
            children.append(self._child("publish", [*errata, "publish", "--follow"]))
        if self.config.serve.enabled:
            children.append(self._child("serve", [*errata, "serve"]))
        return children

    def _child(self, name: str, command: Sequence[str]) -> Child:
        log_file = None
        if self._log_folder is not None:
            self._log_folder.mkdir(parents=True, exist_ok=True)
            log_file = self._log_folder / f"{name}.log"
        return Child(name, command, self._environment, self._lock_file(name), log_file)

    def _lock_file(self, name: str) -> Path:
        return self.config.run_path / f"{name}.lock"

    def _stop_children(self) -> None:
        """Stop the children within what is left of the time limit."""
        stop_all(self._running, self._asked_at + _CHILDREN_SECONDS)

    def _ask_children(self) -> None:
        """Let the children begin to end while scheduler and API do."""
        self._asked_at = time.monotonic()
        for child in self._running:
            child.terminate()

    def kill(self) -> None:
        """Kill what runs, because this process ends by force. Redis ends by itself, in order."""
        for child in self._running:
            child.kill()


def drained(ledger: Ledger, config: Config) -> bool:
    """Whether no correction or batch waits and every revision has been judged."""
    model = config.model.name
    open_states = (CorrectionState.PENDING, CorrectionState.QUEUED)
    open_batches = (BatchState.OPEN, BatchState.SENT)
    queries = (
        select(func.count()).where(corrections.c.model == model, corrections.c.state.in_(open_states)),
        select(func.count()).where(batches.c.model == model, batches.c.state.in_(open_batches)),
        select(func.count()).where(revisions.c.model == model, revisions.c.state == RevisionState.CANDIDATE),
    )
    with ledger.read() as connection:
        return not any(connection.execute(query).scalar() for query in queries)


def is_published(ledger: Ledger, config: Config) -> bool:
    """Whether the link ``live`` shows the live revision, where a publisher is to see to it."""
    if not config.publish.follow:
        return True
    model = config.model.name
    with ledger.read() as connection:
        newest = chain.live(connection, model)
        places = publications_by_place(connection, model)
    held = places[LIVE_LINK]["held"] if LIVE_LINK in places else None
    return newest is None or held == newest["number"]


def _require_feeds(ledger: Ledger, config: Config) -> None:
    """Raise ConfigError if a feed's file is missing, unless it was read before and may be rotating."""
    with ledger.read() as connection:
        mine = feeds.c.model == config.model.name
        rows = connection.execute(select(feeds.c.name, feeds.c.cursor).where(mine)).all()
    known = {row.name for row in rows if row.cursor}
    for feed in config.feeds:
        if isinstance(feed, JsonlFeedConfig) and feed.name not in known and not feed.path.exists():
            missing = f"feed {feed.name}: the file {feed.path} does not exist"
            raise ConfigError(missing, hint="create it, or correct the path")


def run_command(
    config: Config, config_file: Path | None, *, once: bool = False, with_model: bool = True
) -> None:
    """Run until SIGTERM, SIGINT or SIGHUP, without the model only scheduler and API.

    Raises ConfigError without model and ``redis_url``, because workers could not reach the broker.
    """
    if not with_model and config.redis_url is None:
        raise ConfigError("--no-worker needs redis_url", hint="other hosts cannot reach a private Redis")
    supervisor = Supervisor(config, config_file, with_model=with_model)
    Ending(_LIMIT_SECONDS, on_ask=supervisor.stop, on_force=supervisor.kill).listen()
    supervisor.run(once=once)
