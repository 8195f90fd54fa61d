"""Sections of the configuration about what leaves the installation: folders, completions, consumers."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from daemon.core.config.base import LOOPBACK, Section
from daemon.core.names import NAME_PATTERN


class PublishConfig(Section):
    """Folders of revisions for others, and the link ``live`` to the newest good one."""

    follow: bool = Field(True, description="errata run publishes each revision that passed its probes")
    path: Path = Field(
        Path("published"), description="where the folders are; in data_dir, on its file system"
    )
    keep_folders: int = Field(3, ge=1, description="published folders that stay beside the live one")
    poll_seconds: float = Field(1.0, gt=0, description="between looks for a new live revision")


class ServeConfig(Section):
    """OpenAI's completion routes, answered by the live revision; loopback unless a token guards them."""

    enabled: bool = Field(False, description="errata run starts errata serve; it holds a second model")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8766, ge=0, le=65535, description="port; 0 picks a free one")
    token_file: Path | None = Field(None, description="file with the bearer token that clients must bear")
    poll_seconds: float = Field(0.5, gt=0, description="between looks for a new live revision")
    queue_bound: int = Field(256, ge=1, description="requests that may wait; more are told to come later")
    max_tokens: int = Field(512, ge=1, description="longest answer in tokens")

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.host not in LOOPBACK and self.token_file is None:
            raise ValueError("serve.token_file is needed to listen on other than loopback")
        return self


class ConsumerConfig(Section):
    """A server that is told of each published revision and made to load it."""

    kind: Literal["webhook", "vllm", "sglang"] = Field(description="which of its routes are called")
    name: str = Field(pattern=NAME_PATTERN, description="name in ledger and logs")
    url: str = Field(pattern=r"^https?://[^\s]+$", description="address of the server; of the hook itself")
    token_file: Path | None = Field(None, description="file with the bearer token to send")
    path: Path | None = Field(
        None, description="the link live as that server sees it; none: the same path as here"
    )
    served_model: str = Field("", description="model name that the server answers to; empty: its path")
    check: bool = Field(True, description="ask one changed fact of the server afterwards (not the webhook)")
    timeout_seconds: float = Field(300.0, gt=0, description="longest wait for one answer")
