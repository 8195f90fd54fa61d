"""Recover from damaged blobs of head: solve its tensors again, or roll back to the newest sound revision.

Damaged bytes are never loaded. The tensors follow from the stored pairs. Where pairs are damaged too, head
becomes the newest sound revision, and the corrections that this reverts wait to be written again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from sqlalchemy import Connection, RowMapping, select

from daemon.core.blobs import check_in, require_sound
from daemon.core.errors import CorruptBlobError, NotFoundError, StoreError
from daemon.core.ledger.chain import head
from daemon.core.ledger.holdings import blobs_of
from daemon.core.ledger.incidents import record_recovery
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.core.ledger.settlement import reverted_by, wait_again
from daemon.core.log import get_logger
from daemon.core.names import RollbackCause
from workers.editing.editor import Editor
from workers.revisions.facts import active_pairs
from workers.revisions.loading import DRIFT, drift, load_tensors
from workers.revisions.pairs import load_pairs
from workers.revisions.store import Store

log = get_logger("errata.recovery")
WHO = "store"


@dataclass(frozen=True)
class Rebuilt:
    """How the tensors of head compare with those that its facts give.

    ``revision`` is the head that was compared, ``number`` is head afterwards.
    """

    revision: int
    drift: dict[str, float | None]  # tensor -> relative difference; None: the stored one cannot be read
    number: int

    @property
    def agrees(self) -> bool:
        """Whether every stored tensor equals the solved one up to rounding."""
        return all(part is not None and part <= DRIFT for part in self.drift.values())


def rebuild(ledger: Ledger, store: Store, editor: Editor, model: str, who: str, *, mend: bool) -> Rebuilt:
    """Solve head from W0 and its stored pairs, and compare with its stored tensors.

    With ``mend``, solved tensors that differ become a new revision.

    Raises:
        CorruptBlobError, StoreError: pairs are damaged or missing, so head cannot be solved.
        StaleHeadError: head moved meanwhile.
    """
    with ledger.read() as connection:
        row = head(connection, model)
        pairs = active_pairs(connection, model, row["number"])
    editor.restore(load_pairs(store, pairs, editor.layers))
    solved = editor.published()
    drifts = {name: _drift(store, row, name, new) for name, new in solved.items()}
    compared = Rebuilt(row["number"], drifts, row["number"])
    if compared.agrees or not mend:
        return compared
    tensors = {name: store.put({name: tensor}) for name, tensor in solved.items()}
    norms = {str(layer): total for layer, (_, total) in editor.delta_norms().items()}
    reason = f"revision {row['number']} was solved anew from its facts"
    number = ledger.rebuild(model, tensors, norms, who, reason, expected_head=row["number"])
    return Rebuilt(row["number"], drifts, number)


def mend_tensors(ledger: Ledger, store: Store, editor: Editor, model: str) -> list[str]:
    """Solve every kept revision with damaged tensors from its pairs, and return the blobs that stay damaged.

    A revision follows bit for bit from its facts, so the solved tensors are written under the same names.
    """
    mine = (revisions.c.model == model) & revisions.c.kept
    with ledger.read() as connection:
        chain = connection.execute(select(revisions).where(mine)).mappings().all()
        pairs = {row["number"]: active_pairs(connection, model, row["number"]) for row in chain}
        needed = sorted({blob for row in chain for blob in blobs_of(connection, row)})
    for row in chain:
        if not _unsound(store, row["tensors"].values()):
            continue
        try:
            editor.restore(load_pairs(store, pairs[row["number"]], editor.layers))
        except StoreError as error:
            log.warning("not solved again", revision=row["number"], why=error.message)
            continue
        for name, tensor in editor.published().items():
            store.put({name: tensor})
    return _unsound(store, needed)


def recover(ledger: Ledger, store: Store, editor: Editor, model: str, why: str) -> int:
    """Make head loadable again after damage was found, record an incident and return head's number.

    Raises:
        NotFoundError: no revision is sound, not even the base.
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
    """Roll back to the newest sound revision, and let the reverted corrections wait again."""
    with ledger.read() as connection:
        current = head(connection, model)["number"]
        target = _newest_sound(connection, store, model)

    def note(connection: Connection, number: int) -> None:
        # the disk failed and not the facts, so they are written again
        wait_again(connection, reverted_by(connection, model, number), "its weights were damaged on disk")
        done = f"{why}; fell back to revision {target}"
        record_recovery(connection, ledger.clock.now(), model, current, done, number)

    return ledger.rollback(
        model, target, who=WHO, reason=why, cause=RollbackCause.RECOVERY, check=check_in(store.root),
        expected_head=current, in_transaction=note,
    )  # fmt: skip


def _newest_sound(connection: Connection, store: Store, model: str) -> int:
    query = select(revisions).where(revisions.c.model == model, revisions.c.kept)
    for row in connection.execute(query.order_by(revisions.c.number.desc())).mappings().all():
        try:
            check_in(store.root)(blobs_of(connection, row))
        except StoreError:
            continue
        return int(row["number"])
    raise NotFoundError(f"no revision of {model!r} is sound", hint="errata restore brings back a backup")


def _unsound(store: Store, blobs: Iterable[str]) -> list[str]:
    """Those of the blobs that are missing or damaged."""
    unsound = []
    for blob in blobs:
        try:
            require_sound(store.root, blob)
        except StoreError:
            unsound.append(blob)
    return unsound


def _drift(store: Store, row: RowMapping, name: str, solved: torch.Tensor) -> float | None:
    """The drift of the stored tensor from the solved one, or None where it cannot be read."""
    try:
        stored = load_tensors(store, {name: row["tensors"][name]})[name]
    except (KeyError, CorruptBlobError):
        return None
    return drift(stored, solved)
