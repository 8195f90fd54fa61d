"""Bring an editor to a revision: its memory from the stored pairs, its weights from the blobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from sqlalchemy import Connection, RowMapping

from daemon.core.errors import CorruptBlobError, NotFoundError, StoreError
from daemon.core.ledger.chain import get_revision, head, live
from daemon.core.ledger.revision import parse_revision
from workers.editing.editor import Editor
from workers.revisions.facts import Pair
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store

DRIFT = 1e-2  # relative difference that counts as equal: published dtypes round, bf16 by 4e-3


@dataclass(frozen=True)
class Loaded:
    """The revision that an editor has loaded."""

    number: int
    tensors: Mapping[str, str]


def load_head(store: Store, editor: Editor, revision: RowMapping, pairs: Sequence[Pair]) -> Loaded:
    """Rebuild the memories from W0 and the active pairs, and load the published tensors into the model.

    The memory is a pure function of the base weights, the statistics and the pairs. The published tensors are
    those that were probed. They must agree up to rounding.

    Raises:
        CorruptBlobError, StoreError: a blob is damaged or missing, or tensors and pairs differ.
    """
    published = load_tensors(store, revision["tensors"])
    editor.restore(load_pairs(store, pairs, editor.layers))
    for name, tensor in editor.published().items():
        if name not in published:
            raise StoreError(
                f"revision {revision['number']} has no {name}",
                hint="edit.recipe edits other layers than the chain was written with",
            )
        apart = drift(published[name], tensor)
        if not apart <= DRIFT:
            raise CorruptBlobError(
                f"revision {revision['number']}: {name} differs by {apart:.2e} from what its facts give",
                hint="errata rebuild --mend solves it again",
            )
    editor.show(published)
    return Loaded(int(revision["number"]), dict(revision["tensors"]))


def named_revision(connection: Connection, model: str, name: str | None) -> RowMapping:
    """The revision that a user names: a number, ``live``, ``head``, or None for head.

    Raises:
        NotFoundError: there is no such revision.
    """
    if name is None or name == "head":
        return head(connection, model)
    if name != "live":
        return get_revision(connection, model, parse_revision(name))
    row = live(connection, model)
    if row is None:
        raise NotFoundError("no revision is live yet", hint="errata revisions lists the revisions")
    return row


def drift(stored: torch.Tensor, solved: torch.Tensor) -> float:
    """Relative Frobenius distance of two tensors of one shape and any dtype."""
    stored = stored.double()
    return float((solved.cpu().double() - stored).norm() / stored.norm())


def load_tensors(store: Store, names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The published tensors of a revision, each checked against its sha256.

    Raises:
        CorruptBlobError, StoreError: a blob is damaged or missing.
    """
    return {name: store.get(blob)[name] for name, blob in names.items()}
