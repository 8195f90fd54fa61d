"""The interface of a consumer: it is notified of a published revision and must then answer with it."""

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

_ANSWER_TOKENS = 16  # tokens to ask for at least; a longer object has at most as many tokens as bytes


@dataclass(frozen=True)
class Notice:
    """A published revision, with a fact that shows whether a server has loaded it."""

    model: str
    revision: int
    content: str
    active_facts: int
    link: Path
    question: tuple[str, str] | None

    @classmethod
    def of(cls, revision: RevisionFacts, link: Path, since: int | None) -> Self:
        """Make the notice for a consumer that has revision ``since``, with a newer fact as its question."""
        facts = revision.facts
        new = [fact for fact in facts if since is None or fact["since"] > since]
        newest = (new or facts)[-1] if facts else None
        question = (newest["prompt"], newest["object"]) if newest else None
        return cls(revision.model, revision.number, revision.content, len(facts), link, question)


class Consumer(ABC):
    """A server that loads published revisions."""

    def __init__(self, config: ConsumerConfig) -> None:
        self.config = config
        self.name = config.name

    def deliver(self, notice: Notice) -> None:
        """Make the server load the revision, and check that it answers with it.

        Raises:
            ConsumerError: it did not. Another try may succeed.
        """
        with httpx.Client(timeout=self.config.timeout_seconds, headers=self._headers()) as client:
            self.load(client, notice)
            if self.config.check and notice.question is not None:
                self.check(client, notice)

    @abstractmethod
    def load(self, client: httpx.Client, notice: Notice) -> None:
        """Make the server load the revision, and wait until it has."""

    def check(self, client: httpx.Client, notice: Notice) -> None:
        """Ask the notice's question by the completion route, and compare the beginning of the answer.

        Raises:
            ConsumerError: the answer does not begin with the fact's object.
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
            text = str(answer.json()["choices"][0]["text"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConsumerError(f"{self.name}: its completion has another form: {error}") from error
        if not text.strip().casefold().startswith(wanted.strip().casefold()):
            raise ConsumerError(
                f"{self.name} still answers {text.strip()[:60]!r} where revision {notice.revision} has"
                f" {wanted[:60]!r}",
                hint="check that it reads the folder that live points to (consumers.path)",
            )

    def path(self, notice: Notice) -> Path:
        """The path of the link ``live`` on the server."""
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
            ConsumerError: the server does not answer, or not with success.
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
