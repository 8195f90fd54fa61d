"""Generate the answers of several revisions with one model in memory, a token of each in turn."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from workers.models.open import open_model
from workers.revisions.loading import load_tensors, named_revision
from workers.revisions.store import Store
from workers.serving.generation import Sampling, stream


class Answerer:
    """The configured model and the edited tensors of some revisions (None means head)."""

    def __init__(self, config: Config, revisions: Sequence[str | None]) -> None:
        store, name = Store(config.store_path), config.model.name
        ledger = Ledger.open_existing(config.ledger_url)
        with ledger.read() as connection:
            rows = [named_revision(connection, name, text) for text in revisions]
        ledger.close()
        self._sides = [(int(row["number"]), load_tensors(store, row["tensors"])) for row in rows]
        self.model = open_model(config)

    def answers(self, prompt: Sequence[int], sampling: Sampling) -> list[tuple[int, Iterator[str]]]:
        """The number of each revision and an iterator over its answer.

        The iterators may be drawn from in any order.
        """
        return [(number, self._answer(tensors, prompt, sampling)) for number, tensors in self._sides]

    def _answer(
        self, tensors: Mapping[str, torch.Tensor], prompt: Sequence[int], sampling: Sampling
    ) -> Iterator[str]:
        pieces = stream(self.model, prompt, sampling)
        while True:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    self.model.lm.get_parameter(name).copy_(tensor)
            piece = next(pieces, None)
            if piece is None:
                return
            yield piece.text
