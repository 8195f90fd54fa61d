"""The Celery application of a worker process: ``celery -A workers.queue.app worker``."""

from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_process_init

from daemon.core.broker import celery_app
from daemon.core.config.settings import load_config
from daemon.core.log import configure_logging
from daemon.core.tracing import configure_tracing
from workers.queue.tasks import add_tasks


def _make() -> Celery:
    config = load_config()
    application = celery_app(config)
    add_tasks(application, config)
    return application


@setup_logging.connect  # type: ignore[untyped-decorator]
def _logs(**_: Any) -> None:
    """Configure our logs instead of Celery's."""
    config = load_config()
    configure_logging(config.log.level, json_lines=config.log.json_lines)


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _traces(**_: Any) -> None:
    """Configure tracing in the pool's child, since its threads must begin after the fork."""
    configure_tracing("errata-worker")


app = _make()
