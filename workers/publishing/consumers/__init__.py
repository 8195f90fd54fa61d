"""The consumers of published revisions, one file for each kind of server."""

from collections.abc import Sequence

from daemon.core.config.serving import ConsumerConfig
from workers.publishing.consumers.base import Consumer, Notice
from workers.publishing.consumers.sglang import SGLang
from workers.publishing.consumers.vllm import VLLM
from workers.publishing.consumers.webhook import Webhook

__all__ = ["Consumer", "Notice", "make_consumers"]


def make_consumers(configured: Sequence[ConsumerConfig]) -> list[Consumer]:
    """Make the configured consumers, in their order."""
    kinds: dict[str, type[Consumer]] = {"webhook": Webhook, "vllm": VLLM, "sglang": SGLang}
    return [kinds[one.kind](one) for one in configured]
