"""Who is told of a published revision: one file a kind of server, one protocol, one way to make them."""

from collections.abc import Sequence

from daemon.core.config.serving import ConsumerConfig
from workers.publishing.consumers.base import Consumer, Notice
from workers.publishing.consumers.sglang import SGLang
from workers.publishing.consumers.vllm import VLLM
from workers.publishing.consumers.webhook import Webhook

__all__ = ["Consumer", "Notice", "make_consumers"]


def make_consumers(configured: Sequence[ConsumerConfig]) -> list[Consumer]:
    """The configured consumers, in their order."""
    kinds: dict[str, type[Consumer]] = {"webhook": Webhook, "vllm": VLLM, "sglang": SGLang}
    return [kinds[one.kind](one) for one in configured]
