"""The Celery application and session of a worker with a toy in place of the language model."""

from celery import Celery

from daemon.core.broker import celery_app
from daemon.core.config.settings import Config, load_config
from daemon.core.ledger.ledger import Ledger
from tests.toy import WIDE, ToyEditor
from workers.queue.assemble import SessionHolder, write_base_revision
from workers.queue.interruption import end_in_time
from workers.queue.tasks import add_tasks
from workers.revisions.store import Store
from workers.session.session import Session


class ToyHolder(SessionHolder):
    """The session of this process, on a toy."""

    def session(self) -> Session:
        if self._session is None:
            self._session = make_session(self._config)
        return self._session


def make_session(config: Config) -> Session:
    """A session whose chain is founded."""
    ledger, store, editor = Ledger.open(config.ledger_url), Store(config.store_path), ToyEditor(WIDE)
    write_base_revision(ledger, store, editor, config)
    return Session(ledger, store, editor, config)


def make_app(holder: type[ToyHolder]) -> Celery:
    """The application of a worker process whose session a holder keeps."""
    config = load_config()
    application = celery_app(config)
    add_tasks(application, config, holder(config), end_in_time(application))
    return application
