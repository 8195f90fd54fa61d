"""The Celery application of a worker process: ``celery -A workers.queue.app worker``."""

import os
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_process_shutdown

from daemon.core.broker import ROLE_VARIABLE, celery_app
from daemon.core.config.settings import load_config
from daemon.core.log import configure_logging
from daemon.core.names import ProcessRole
from daemon.core.tracing import configure_tracing
from workers.queue.assemble import SessionHolder, make_heart
from workers.queue.interruption import end_in_time
from workers.queue.tasks import add_tasks


def _make() -> Celery:
    config = load_config()
    application = celery_app(config)
    role = ProcessRole(os.environ.get(ROLE_VARIABLE, ProcessRole.WORKER))
    heart = make_heart(config, role)
    interruption = end_in_time(application)
    add_tasks(application, config, SessionHolder(config, heart), interruption)
    # kept by the signals themselves, which otherwise hold them weakly; threads must begin after the fork
    worker_process_init.connect(lambda **_: heart.start(), weak=False)
    worker_process_shutdown.connect(lambda **_: heart.stop(), weak=False)
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
