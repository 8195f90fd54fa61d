"""The consumer vLLM, which reloads the folder that it was started with and drops its prefix cache.

The server must have been started on the link ``live`` (as it sees it: ``consumers.path``) with
``VLLM_SERVER_DEV_MODE=1``, which opens the routes used here. They check no token, so no one else may reach
such a server. Tested against a fake of the routes, not against vLLM.
"""

import httpx

from workers.publishing.consumers.base import Consumer, Notice


class VLLM(Consumer):
    """Reloads weights by ``/collective_rpc``."""

    def load(self, client: httpx.Client, notice: Notice) -> None:
        """Reload in place, so that answers during the reload may mix both revisions."""
        self.post(client, "/collective_rpc", {"method": "reload_weights"})
        self.post(client, "/reset_prefix_cache")
