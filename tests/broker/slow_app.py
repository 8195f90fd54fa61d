"""The Celery application of a toy worker that takes an hour for an edit, for a probe, or for its model.

``SLOW`` names where. With ``DEAF`` it does not hear signals there, as in C code that does not come back.
"""

import os
import signal
import time
from typing import Any

from tests.broker.toy_holder import ToyHolder, make_app, make_session
from workers.session.session import Session

PLACE = os.environ["SLOW"]


def linger(place: str) -> None:
    """Take an hour at the place that is slow."""
    if place != PLACE:
        return
    if os.environ.get("DEAF"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGURG})
    time.sleep(3600)


class SlowHolder(ToyHolder):
    """A session that lingers."""

    def session(self) -> Session:
        if self._session is None:
            linger("model")
            self._session = make_session(self._config)
            self._session._fault = linger
            whole = self._session._probe

            def probe(*arguments: Any) -> Any:
                linger("probe")
                return whole(*arguments)

            self._session._probe = probe  # type: ignore[method-assign]
        return self._session


app = make_app(SlowHolder)
