"""A web hook: one POST with what was published; what follows is the receiver's business."""

import httpx

from workers.publishing.consumers.base import Consumer, Notice


class Webhook(Consumer):
    """POSTs revision, content hash and path as JSON to the configured address."""

    def load(self, client: httpx.Client, notice: Notice) -> None:
        """Tell the hook; any 2xx answer is consent."""
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
        """Nothing to ask: a hook answers no completions."""
