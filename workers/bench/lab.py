"""The bench's own set-up: a model with statistics, and a fresh editor for each recipe."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch

from workers.editing.editor import Associations, Editor
from workers.editing.model import EditableModel
from workers.editing.recipes import Recipe
from workers.editing.statistics import Progress, load_or_compute

Item = TypeVar("Item")
_UNIT_ROWS, _UNIT_TOKENS = 8, 125


@dataclass
class Lab:
    """One model for all runs; whoever takes an editor starts from the base weights."""

    model: EditableModel
    statistics: Path
    corpus: Path | None
    progress: Progress | None = None

    def editor(self, recipe: Recipe) -> Editor:
        """A fresh editor; the model is put back to its base weights by ``release``."""
        found = load_or_compute(self.model, recipe.layers, self.statistics, self.corpus, self.progress)
        return Editor(self.model, found, recipe)

    def release(self, editor: Editor) -> None:
        """Take an editor's changes out of the model."""
        editor.restore(Associations([], {}, {}))


def engine() -> str:
    """A name of the code that edits: rows that two engines gave do not belong into one table."""
    digest = hashlib.sha256()
    folder = resources.files("workers.editing")
    for name in sorted(one.name for one in folder.iterdir() if one.name.endswith(".py")):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def forward_unit(model: EditableModel, repeats: int = 3) -> float:
    """Seconds of one forward pass over 8 sequences of 125 tokens, the fastest of some: the unit of cost."""
    vocabulary = model.lm.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (_UNIT_ROWS, _UNIT_TOKENS), generator=generator).to(model.device)
    return min(timed(lambda: model.lm(input_ids=ids, use_cache=False)) for _ in range(repeats))


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes, the device's queue included."""
    _settle()
    start = time.perf_counter()
    work()
    _settle()
    return time.perf_counter() - start


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Consecutive parts of at most ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
