"""Bringing an editor to a revision: memory from the stored pairs, weights from the published tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sqlalchemy import RowMapping

from daemon.core.errors import CorruptBlobError, StoreError
from workers.editing.editor import Editor
from workers.revisions.facts import Pair
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store

# published dtypes round (bf16: 4e-3); a relative difference below this is the same memory
DRIFT = 1e-2


@dataclass(frozen=True)
class Loaded:
    """The revision that an editor holds."""

    number: int
    tensors: Mapping[str, str]


def load_head(store: Store, editor: Editor, revision: RowMapping, pairs: Sequence[Pair]) -> Loaded:
    """Rebuild the memories from W0 and the active pairs and put the published tensors into the model.

    The memory is a pure function of the base weights, the statistics and the pairs; the published tensors
    are what was probed. They must agree up to rounding.

    Raises:
        CorruptBlobError, StoreError: a blob is damaged or missing, or tensors and pairs tell two stories.
    """
    published = load_tensors(store, revision["tensors"])
    editor.restore(load_pairs(store, pairs, editor.layers))
    for name, tensor in editor.published().items():
        if name not in published:
            raise StoreError(
                f"revision {revision['number']} has no {name}", hint="the recipe edits other layers"
            )
        apart = drift(published[name], tensor)
        if not apart <= DRIFT:
            raise CorruptBlobError(
                f"revision {revision['number']}: {name} differs by {apart:.2e} from what its facts amount to",
                hint="errata rebuild compares and mends",
            )
    editor.show(published)
    return Loaded(int(revision["number"]), dict(revision["tensors"]))


def drift(stored: torch.Tensor, solved: torch.Tensor) -> float:
    """Relative Frobenius distance of a stored tensor from the solved one; both of one shape, any dtype."""
    stored = stored.double()
    return float((solved.cpu().double() - stored).norm() / stored.norm())


def load_tensors(store: Store, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The published tensors of a revision, each checked against its sha256.

    Raises:
        CorruptBlobError, StoreError: a blob is damaged or missing.
    """
    return {name: store.get(blob)[name] for name, blob in names.items()}
