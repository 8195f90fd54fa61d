"""A feed whose items are pushed over the API, so that a pull never finds any."""

from daemon.core.config.feeds import WebhookFeedConfig
from daemon.feeds.base import Cursor, Pull


class WebhookFeed:
    """The name and trust under which ``POST /v1/corrections`` admits items."""

    def __init__(self, config: WebhookFeedConfig) -> None:
        self.name, self.trust = config.name, config.trust

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Return no items."""
        return Pull([], cursor, more=False)
