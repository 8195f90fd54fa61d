"""A tiny model as a Hugging Face folder, with a chain of revisions whose tensors are in a store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from daemon.admission.submission import submit
from daemon.core.config.settings import Config, load_config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.core.names import RevisionState
from tests.ledgers import make_batch, propose, take_lease
from tests.numerics.models import random_model
from workers.editing.model import EditableModel, load_model
from workers.revisions.store import Store

LAYERS = (0, 1)


class TinyHouse:
    """An installation with a tiny model on the disk, whose edits are random weights."""

    def __init__(self, folder: Path, family: str = "llama", **sections: Mapping[str, Any]) -> None:
        torch.set_num_threads(1)  # a second thread slows so small a model down
        self.folder = folder
        self.base = folder / "base"
        made = random_model(family)
        made.lm.float().save_pretrained(self.base)
        made.tokenizer.save_pretrained(self.base)
        self.file = folder / "errata.toml"
        settings: dict[str, Any] = {"model": {"path": str(self.base), "device": "cpu"}, **sections}
        self.file.write_text(tomli_w.dumps(settings))
        self.config: Config = load_config(self.file)
        self.ledger = Ledger.open(self.config.ledger_url)
        self.store = Store(self.config.store_path)
        self.model: EditableModel = load_model(self.base, "cpu")
        self._found()

    def tensors(self, seed: int) -> dict[str, torch.Tensor]:
        """Return the weights of the revision of ``seed``, where 0 is the base."""
        chance = torch.Generator().manual_seed(seed)
        weights = {}
        for layer in LAYERS:
            weight = self.model.stored_weight(layer).detach()
            noise = torch.randn(weight.shape, generator=chance) if seed else torch.zeros(weight.shape)
            weights[self.model.tensor_name(layer)] = weight + 0.3 * noise
        return weights

    def edit(self, seed: int, *said: Mapping[str, Any], live: bool = True) -> int:
        """Commit a revision with the weights of ``seed`` that holds the statements."""
        for one in said:
            submit(self.ledger, dict(one), "tester")
        batch = make_batch(self.ledger)
        assert batch is not None
        blobs = {name: self.store.put({name: tensor}) for name, tensor in self.tensors(seed).items()}
        proposal = replace(propose(self.ledger, batch), tensors=blobs)
        number = self.ledger.commit(take_lease(self.ledger), proposal)
        if live:
            self.judge(number)
        return number

    def judge(self, number: int, state: RevisionState = RevisionState.LIVE) -> None:
        """Set the state of a revision, as the judge does."""
        with self.ledger.write() as connection:
            connection.execute(revisions.update().where(revisions.c.number == number).values(state=state))

    def answers(self, folder: Path, prompts: Sequence[str]) -> list[str]:
        """Return the answers of the model in a folder."""
        return load_model(folder, "cpu").greedy(prompts, 6)

    def _found(self) -> None:
        blobs = {name: self.store.put({name: tensor}) for name, tensor in self.tensors(0).items()}
        self.ledger.found(self.config.model.name, blobs, "encore-blue")


def manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an exported folder."""
    content: dict[str, Any] = json.loads((folder / "errata.json").read_text())
    return content
