"""The session of a worker process with a toy in place of the language model."""

from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from tests.toy import WIDE, ToyEditor
from workers.queue.assemble import SessionHolder, write_base_revision
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
