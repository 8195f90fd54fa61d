"""The consumer SGLang, whose own route loads weights from a folder and drops its cache.

Tested against a fake of the route, not against SGLang.
"""

import httpx

from daemon.core.errors import ConsumerError
from workers.publishing.consumers.base import Consumer, Notice


class SGLang(Consumer):
    """Updates weights by ``/update_weights_from_disk``."""

    def load(self, client: httpx.Client, notice: Notice) -> None:
        """Load the folder that ``live`` points to.

        Raises:
            ConsumerError: the server refused, and still has its old weights.
        """
        body = {"model_path": str(self.path(notice)), "flush_cache": True}
        answer = self.post(client, "/update_weights_from_disk", body)
        try:
            done, message = bool(answer.json()["success"]), str(answer.json().get("message", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConsumerError(f"{self.name}: its answer has another form: {error}") from error
        if not done:
            raise ConsumerError(f"{self.name} did not load the weights: {message[:200]}")
