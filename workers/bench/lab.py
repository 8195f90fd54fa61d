"""The set-up of a bench: a model with statistics, and a fresh editor for each recipe."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch

from workers.bench.baselines.registry import method
from workers.editing.editor import Associations, Editor
from workers.editing.model import EditableModel
from workers.editing.recipes import Recipe
from workers.editing.statistics import Progress, load_or_compute

Item = TypeVar("Item")
_UNIT_ROWS, _UNIT_TOKENS = 8, 125


@dataclass
class Lab:
    """One model for all runs, at its base weights whenever no editor is taken."""

    model: EditableModel
    statistics: Path
    corpus: Path | None
    progress: Progress | None = None

    def editor(self, recipe: Recipe) -> Editor:
        """Return a fresh editor, to be given back by ``release``."""
        statistics = load_or_compute(self.model, recipe.layers, self.statistics, self.corpus, self.progress)
        return method(recipe.name).load()(self.model, statistics, recipe)

    def release(self, editor: Editor) -> None:
        """Take an editor's changes out of the model."""
        editor.restore(Associations([], {}, {}))


def engine() -> str:
    """Return a hash of the code that edits: rows of two versions do not belong into one table."""
    digest = hashlib.sha256()
    for folder in (resources.files("workers.editing"), resources.files("workers.bench.baselines")):
        for name in sorted(one.name for one in folder.iterdir() if one.name.endswith(".py")):
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def forward_unit(model: EditableModel, repeats: int = 3) -> float:
    """Return the unit of cost: seconds of the fastest of some passes over 8 sequences of 125 tokens."""
    vocabulary = model.lm.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (_UNIT_ROWS, _UNIT_TOKENS), generator=generator).to(model.device)
    return min(timed(lambda: model.lm(input_ids=ids, use_cache=False)) for _ in range(repeats))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes, the device's queue included."""
    wait_for_device()
    start = time.perf_counter()
    work()
    wait_for_device()
    return time.perf_counter() - start


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Return consecutive parts of at most ``size`` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def wait_for_device() -> None:
    """Wait until the accelerator, if there is one, has done what is queued."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
