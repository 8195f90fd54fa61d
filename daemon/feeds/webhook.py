"""A feed whose items are pushed over the API, so that a pull never finds any."""

from typing import Self

from daemon.core.config.feeds import WebhookFeedConfig
from daemon.feeds.base import Cursor, Pull


class WebhookFeed:
    """The name and trust under which ``POST /v1/corrections`` admits items."""

    def __init__(self, config: WebhookFeedConfig) -> None:
        self.name, self.trust = config.name, config.trust

    @classmethod
    def from_config(cls, config: WebhookFeedConfig) -> Self:
        """Make the feed that a ``[[feeds]]`` section describes."""
        return cls(config)

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Return no items."""
        return Pull([], cursor, more=False)
