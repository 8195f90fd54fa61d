"""When blobs of head are damaged: solve the tensors anew from the pairs, or go back to where all is sound.

Damaged bytes are never loaded. The pairs say what the tensors must be; where pairs are lost too, head becomes
the newest revision that is sound, and the corrections that this takes back wait to be written again.
"""

from dataclasses import dataclass

import torch
from sqlalchemy import Connection, RowMapping, select

from daemon.core.blobs import require_sound
from daemon.core.errors import CorruptBlobError, NotFoundError, StoreError
from daemon.core.ledger.chain import head
from daemon.core.ledger.incidents import record_recovery
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.core.ledger.settlement import reverted_by, wait_again
from daemon.core.log import get_logger
from workers.editing.editor import Editor
from workers.revisions.facts import active_pairs
from workers.revisions.loading import DRIFT, drift, load_tensors
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store

log = get_logger("errata.recovery")
WHO = "store"


@dataclass(frozen=True)
class Rebuilt:
    """How head compares with what its facts amount to; ``number`` is head afterwards."""

    revision: int
    drift: dict[str, float | None]  # tensor -> relative difference; None: the stored one cannot be read
    number: int

    @property
    def agrees(self) -> bool:
        """Whether every stored tensor is what its facts amount to, up to rounding."""
        return all(part is not None and part <= DRIFT for part in self.drift.values())


def rebuild(ledger: Ledger, store: Store, editor: Editor, model: str, who: str, *, mend: bool) -> Rebuilt:
    """Solve head from W0 and its stored pairs and compare; with ``mend`` make that head where they part.

    Raises:
        CorruptBlobError, StoreError: pairs are damaged or missing, so nothing can be said.
        StaleHeadError: head moved meanwhile.
    """
    with ledger.read() as connection:
        row = head(connection, model)
        pairs = active_pairs(connection, model, row["number"])
    editor.restore(load_pairs(store, pairs, editor.layers))
    solved = editor.published()
    found = Rebuilt(
        row["number"], {name: _drift(store, row, name, new) for name, new in solved.items()}, row["number"]
    )
    if found.agrees or not mend:
        return found
    tensors = {name: store.put({name: tensor}) for name, tensor in solved.items()}
    norms = {str(layer): total for layer, (_, total) in editor.delta_norms().items()}
    reason = f"revision {row['number']} was solved anew from its facts"
    number = ledger.rebuild(model, tensors, norms, who, reason, expected_head=row["number"])
    return Rebuilt(found.revision, found.drift, number)


def recover(ledger: Ledger, store: Store, editor: Editor, model: str, why: str) -> int:
    """Make head loadable again after damage was found; returns its number and leaves an incident.

    Raises:
        NotFoundError: not even the base is sound.
    """
    with ledger.read() as connection:
        damaged = head(connection, model)["number"]
    try:
        number = rebuild(ledger, store, editor, model, WHO, mend=True).number
        done = f"{why}; solved anew from its facts in revision {number}"
        with ledger.write() as connection:
            record_recovery(connection, ledger.clock.now(), model, damaged, done)
    except CorruptBlobError as error:
        number = _fall_back(ledger, store, model, f"{why}; {error.message}")
    log.error("recovered", model=model, damaged=damaged, head=number, why=why)
    return number


def _fall_back(ledger: Ledger, store: Store, model: str, why: str) -> int:
    """Go back to the newest sound revision, and let what that takes back wait again."""
    with ledger.read() as connection:
        current = head(connection, model)["number"]
        target = _newest_sound(connection, store, model)

    def settle(connection: Connection, number: int) -> None:
        # the disk failed, not the facts
        wait_again(connection, reverted_by(connection, model, number), "its weights were damaged on disk")
        done = f"{why}; fell back to revision {target}"
        record_recovery(connection, ledger.clock.now(), model, current, done, number)

    return ledger.rollback(model, target, WHO, why, current, settle)


def _newest_sound(connection: Connection, store: Store, model: str) -> int:
    query = select(revisions).where(revisions.c.model == model, revisions.c.kept)
    for row in connection.execute(query.order_by(revisions.c.number.desc())).mappings().all():
        pairs = {pair.blob for pair in active_pairs(connection, model, row["number"])}
        try:
            for blob in (*row["tensors"].values(), *sorted(pairs)):
                require_sound(store.root, blob)
        except StoreError:
            continue
        return int(row["number"])
    raise NotFoundError(f"no revision of {model!r} is sound", hint="errata restore brings a backup")


def _drift(store: Store, row: RowMapping, name: str, solved: torch.Tensor) -> float | None:
    """Relative Frobenius distance of the stored tensor from the solved one."""
    try:
        stored = load_tensors(store, {name: row["tensors"][name]})[name]
    except (KeyError, CorruptBlobError):
        return None
    return drift(stored, solved)
