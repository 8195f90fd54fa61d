"""The Celery application of a worker with a toy in place of the language model."""

from celery import Celery

from daemon.core.broker import celery_app
from daemon.core.config.settings import load_config
from tests.broker.toy_holder import ToyHolder
from workers.queue.interruption import end_in_time
from workers.queue.tasks import add_tasks


def make() -> Celery:
    config = load_config()
    application = celery_app(config)
    add_tasks(application, config, ToyHolder(config), end_in_time(application))
    return application


app = make()
