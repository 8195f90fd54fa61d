"""A feed that others push to: its items come in over the API, so a pull never finds any."""

from typing import Self

from daemon.core.config.feeds import WebhookFeedConfig
from daemon.feeds.base import Cursor, Pull


class WebhookFeed:
    """The name and trust under which ``POST /v1/corrections`` admits."""

    def __init__(self, config: WebhookFeedConfig) -> None:
        self.name, self.trust = config.name, config.trust

    @classmethod
    def from_config(cls, config: WebhookFeedConfig) -> Self:
        """The feed that a ``[[feeds]]`` section describes."""
        return cls(config)

    def pull(self, cursor: Cursor, limit: int) -> Pull:
        """Nothing, at any time."""
        return Pull([], cursor, more=False)
