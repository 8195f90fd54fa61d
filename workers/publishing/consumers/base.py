"""What a consumer is: it is handed a notice of a published revision and must then answer by it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from daemon.core.config.serving import ConsumerConfig
from daemon.core.errors import ConfigError, ConsumerError
from daemon.core.tokens import read_token
from workers.publishing.revision_facts import RevisionFacts

_ANSWER_TOKENS = 16  # at least; no token is shorter than a byte


@dataclass(frozen=True)
class Notice:
    """A published revision, and one fact by which to see whether a server has it."""

    model: str
    revision: int
    content: str
    active_facts: int
    link: Path
    question: tuple[str, str] | None

    @classmethod
    def of(cls, revision: RevisionFacts, link: Path, since: int | None) -> Self:
        """The notice of a revision for a consumer that has ``since``; asks for what came after that."""
        facts = revision.facts
        new = [fact for fact in facts if since is None or fact["since"] > since]
        asked = (new or facts)[-1] if facts else None
        question = (asked["prompt"], asked["object"]) if asked else None
        return cls(revision.model, revision.number, revision.content, len(facts), link, question)


class Consumer(ABC):
    """A server that loads published revisions."""

    def __init__(self, config: ConsumerConfig) -> None:
        self.config = config
        self.name = config.name

    def deliver(self, notice: Notice) -> None:
        """Make the server load the revision, and see that it answers by it.

        Raises:
            ConsumerError: it did not; trying again may help.
        """
        with httpx.Client(timeout=self.config.timeout_seconds, headers=self._headers()) as client:
            self.load(client, notice)
            if self.config.check and notice.question is not None:
                self.check(client, notice)

    @abstractmethod
    def load(self, client: httpx.Client, notice: Notice) -> None:
        """Tell the server, and wait until it says that it is done."""

    def check(self, client: httpx.Client, notice: Notice) -> None:
        """Ask one fact by the completion route; greedy decoding must begin with its object.

        Raises:
            ConsumerError: the server says something else.
        """
        if notice.question is None:
            return
        prompt, wanted = notice.question
        body = {
            "model": self.config.served_model or str(self.path(notice)),
            "prompt": prompt,
            "max_tokens": max(_ANSWER_TOKENS, len(wanted.encode())),
            "temperature": 0,
        }
        answer = self.post(client, "/v1/completions", body)
        try:
            said = str(answer.json()["choices"][0]["text"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConsumerError(f"{self.name}: its completion cannot be read: {error}") from error
        if not said.strip().casefold().startswith(wanted.strip().casefold()):
            raise ConsumerError(
                f"{self.name} still says {said.strip()[:60]!r} where revision {notice.revision} holds"
                f" {wanted[:60]!r}",
                hint="does it read the folder that live points to? see consumers.path",
            )

    def path(self, notice: Notice) -> Path:
        """The link ``live`` as the server sees it."""
        return self.config.path or notice.link

    def post(
        self,
        client: httpx.Client,
        route: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POST to a route below the consumer's address.

        Raises:
            ConsumerError: no answer, or an answer that is no success.
        """
        url = self.config.url.rstrip("/") + route
        try:
            answer = client.post(url, json=body, params=params)
        except httpx.HTTPError as error:
            raise ConsumerError(f"{self.name}: {url} does not answer: {error!r}") from error
        if not answer.is_success:
            raise ConsumerError(f"{self.name}: {url} answers {answer.status_code}: {answer.text[:200]}")
        return answer

    def _headers(self) -> dict[str, str]:
        if self.config.token_file is None:
            return {}
        try:
            return {"Authorization": f"Bearer {read_token(self.config.token_file)}"}
        except ConfigError as error:
            raise ConsumerError(f"{self.name}: {error.message}", hint=error.hint) from error
