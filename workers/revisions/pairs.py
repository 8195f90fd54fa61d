"""Associations on disk: one blob for a batch, one row for a fact, keys and values of each edited layer."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from daemon.core.errors import StoreError
from workers.editing.editor import Associations
from workers.revisions.facts import Pair
from workers.revisions.store import Store


def save_pairs(store: Store, associations: Associations) -> str:
    """Write one blob: ``keys.L`` [n, d_in] and ``values.L`` [n, d_out], fp32, for each edited layer L."""
    tensors = {f"keys.{layer}": keys for layer, keys in associations.keys.items()}
    tensors |= {f"values.{layer}": values for layer, values in associations.values.items()}
    return store.put(tensors)


def load_pairs(store: Store, pairs: Sequence[Pair], layers: Sequence[int]) -> Associations:
    """Read associations in the order of ``pairs``, each blob once.

    Raises:
        CorruptBlobError, StoreError: a blob is damaged or missing, or lacks one of ``layers``.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for position, pair in enumerate(pairs):
        rows[pair.blob].append(position)
    keys: dict[int, list[torch.Tensor]] = {layer: [torch.empty(0)] * len(pairs) for layer in layers}
    values: dict[int, list[torch.Tensor]] = {layer: [torch.empty(0)] * len(pairs) for layer in layers}
    for blob, positions in rows.items():
        tensors = store.get(blob)
        for layer in layers:
            if f"keys.{layer}" not in tensors:
                raise StoreError(
                    f"blob {blob[:12]}… has no layer {layer}",
                    hint="edit.recipe edits other layers than the chain was written with",
                )
            for position in positions:
                keys[layer][position] = tensors[f"keys.{layer}"][pairs[position].row]
                values[layer][position] = tensors[f"values.{layer}"][pairs[position].row]
    return Associations(
        ids=[pair.correction_id for pair in pairs],
        keys={layer: torch.stack(rows_) for layer, rows_ in keys.items()} if pairs else {},
        values={layer: torch.stack(rows_) for layer, rows_ in values.items()} if pairs else {},
    )
