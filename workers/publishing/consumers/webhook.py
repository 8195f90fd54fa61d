"""The consumer web hook, which gets one POST that describes the published revision."""

import httpx

from workers.publishing.consumers.base import Consumer, Notice


class Webhook(Consumer):
    """POSTs revision, content hash and path as JSON to the configured address."""

    def load(self, client: httpx.Client, notice: Notice) -> None:
        """Send the notice, for which any 2xx answer counts as success."""
        body = {
            "event": "published",
            "model": notice.model,
            "revision": notice.revision,
            "content": notice.content,
            "active_facts": notice.active_facts,
            "path": str(self.path(notice)),
        }
        self.post(client, "", body)

    def check(self, client: httpx.Client, notice: Notice) -> None:
        """Check nothing, because a web hook answers no completions."""
