"""The sections about published folders, the completion server and consumers."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from daemon.core.config.base import LOOPBACK, Section
from daemon.core.names import NAME_PATTERN


class PublishConfig(Section):
    """Published folders of revisions, and the link ``live`` to the newest good one."""

    follow: bool = Field(True, description="errata run publishes each revision that passed its probes")
    path: Path = Field(
        Path("published"), description="parent of the folders, in data_dir and on its file system"
    )
    keep_folders: int = Field(3, ge=1, description="published folders kept besides the live one")
    poll_seconds: float = Field(1.0, gt=0, description="time between checks for a new live revision")


class ServeConfig(Section):
    """OpenAI's completion routes, answered by the live revision, on loopback only unless there is a token."""

    enabled: bool = Field(False, description="errata run also starts errata serve, with a second model")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8766, ge=0, le=65535, description="port (0: a free one)")
    token_file: Path | None = Field(None, description="file with the bearer token of the clients")
    poll_seconds: float = Field(0.5, gt=0, description="time between checks for a new live revision")
    queue_bound: int = Field(256, ge=1, description="requests that may wait before others are refused")
    max_tokens: int = Field(512, ge=1, description="longest answer in tokens")

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        if self.host not in LOOPBACK and self.token_file is None:
            raise ValueError("serve.token_file is needed to listen on other than loopback")
        return self


class ConsumerConfig(Section):
    """A server that is told to load each published revision."""

    kind: Literal["webhook", "vllm", "sglang"] = Field(description="kind of the server, for its routes")
    name: str = Field(pattern=NAME_PATTERN, description="name in ledger and logs")
    url: str = Field(pattern=r"^https?://[^\s]+$", description="address of the server or of the webhook")
    token_file: Path | None = Field(None, description="file with the bearer token to send")
    path: Path | None = Field(None, description="path of the link live on that server (none: the same path)")
    served_model: str = Field("", description="model name that the server answers to (empty: its path)")
    check: bool = Field(True, description="ask the server for one changed fact afterwards (not for webhooks)")
    timeout_seconds: float = Field(300.0, gt=0, description="longest wait for one response")
