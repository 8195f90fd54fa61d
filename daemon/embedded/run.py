"""The embedded set-up: Redis, one editing worker, scheduler and API in one process tree."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from sqlalchemy import func, select

from daemon.api.app import make_app
from daemon.core.broker import CELERY_URL_FILE, URL_FILE, ping, worker_arguments
from daemon.core.config.feeds import JsonlFeedConfig
from daemon.core.config.settings import CONFIG_VARIABLE, Config
from daemon.core.errors import ConfigError, NotFoundError, UnavailableError
from daemon.core.fsio import write_durably
from daemon.core.ledger import chain
from daemon.core.ledger.heartbeats import Heart
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import batches, corrections, feeds, revisions
from daemon.core.log import get_logger
from daemon.core.names import BatchState, CorrectionState, ProcessRole, RevisionState
from daemon.embedded.children import Child
from daemon.embedded.lock import only_one
from daemon.embedded.redis_server import PrivateRedis
from daemon.scheduling.dispatch import CeleryQueue
from daemon.scheduling.scheduler import Scheduler

log = get_logger("errata.run")
_WATCH_SECONDS = 0.5  # between looks at the children: a death is noticed at once for a human
_API_START_SECONDS = 10.0  # binding a port takes milliseconds, a busy machine may delay it


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

    def stop(self) -> None:
        """Let ``run`` return after the work in progress."""
        self._stopping.set()

    def run(self, *, once: bool = False) -> None:
        """Start all parts and watch them until ``stop``, or with ``once`` until nothing waits.

        Raises UnavailableError without Redis or model, or while another supervisor uses this data_dir, and
        ConfigError if a feed that was never read has no file.
        """
        with ExitStack() as stack:
            stack.enter_context(only_one(self.config.run_path))
            stack.enter_context(self._redis())
            ledger = Ledger.open_migrated(self.config.ledger_url)
            stack.callback(ledger.close)
            _require_feeds(ledger, self.config)
            model, every = self.config.model.name, self.config.schedule.heartbeat_seconds
            heart = stack.enter_context(Heart(ledger, model, ProcessRole.DAEMON, every))
            if self._with_model:
                self._prepare(ledger)
            children = self._children()
            for child in children:
                child.start()
                stack.callback(child.stop, self.config.edit.task_seconds)
            scheduler = Scheduler(ledger, self.config, CeleryQueue(self.config))
            scheduler.start()
            stack.callback(scheduler.stop)
            stack.enter_context(self._api(ledger))
            log.info("running", data_dir=str(self.config.data_dir), api=self.config.api.port)
            self._watch(children, scheduler, heart, once=once)

    def _watch(self, children: Sequence[Child], scheduler: Scheduler, heart: Heart, *, once: bool) -> None:
        while not self._stopping.wait(_WATCH_SECONDS):
            heart.state = "leads" if scheduler.leads else "waits until another daemon ends"
            for child in children:
                child.watch()
            if self._private_redis is not None and not self._private_redis.alive():
                log.warning("Redis ended unexpectedly, restarting it")
                self._private_redis.start()
            if once and scheduler.feeds_at_end and drained(scheduler.ledger, self.config):
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

    def _prepare(self, ledger: Ledger) -> None:
        """Found revision 0 by the workers' command, unless it exists."""
        with ledger.read() as connection:
            try:
                chain.head(connection, self.config.model.name)
            except NotFoundError:
                log.info("preparing the model, which happens once")
            else:
                return
        command = [sys.executable, "-m", "daemon.cli", "prepare"]
        if subprocess.run(command, env=self._environment, check=False).returncode != 0:
            raise UnavailableError("the model could not be prepared", hint="run errata prepare")

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
        return Child(name, command, self._environment, log_file)

    @contextmanager
    def _api(self, ledger: Ledger) -> Iterator[None]:
        """Run the HTTP API in a thread, or raise UnavailableError if its port cannot be bound."""
        app, host, port = make_app(ledger, self.config), self.config.api.host, self.config.api.port
        server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, name="api", daemon=True)
        thread.start()
        deadline = time.monotonic() + _API_START_SECONDS
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not server.started:
            raise UnavailableError(f"the API cannot listen on {host}:{port}", hint="change api.port")
        try:
            yield
        finally:
            server.should_exit = True
            thread.join(timeout=10)


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
    """Run until SIGTERM or SIGINT, without the model only scheduler and API.

    Raises ConfigError without model and ``redis_url``, because workers could not reach the broker.
    """
    if not with_model and config.redis_url is None:
        raise ConfigError("--no-worker needs redis_url", hint="other hosts cannot reach a private Redis")
    supervisor = Supervisor(config, config_file, with_model=with_model)

    def ask_to_stop(_number: int, _frame: FrameType | None) -> None:
        supervisor.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask_to_stop)
    supervisor.run(once=once)
