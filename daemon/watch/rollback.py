"""Roll a model back to a given revision, or to the last good one."""

from collections.abc import Callable, Collection
from pathlib import Path

from sqlalchemy import Connection, RowMapping, select

from daemon.core.blobs import check_in
from daemon.core.errors import ConfigError, NotFoundError, StaleHeadError, StoreError
from daemon.core.ledger.chain import find_revision, head
from daemon.core.ledger.holdings import blobs_of
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.core.log import get_logger
from daemon.core.names import RevisionState, RollbackCause

log = get_logger("errata.rollback")
InTransaction = Callable[[Connection, int], None]
"""Called with the number of the new revision, in its transaction."""
_LOOKS = 5  # times; a busy writer may move head between the look and the rollback


def roll_back(
    ledger: Ledger,
    model: str,
    store: Path,
    *,
    to: int | None = None,
    last_good: bool = False,
    who: str,
    reason: str,
    cause: RollbackCause = RollbackCause.OPERATOR,
    expected_head: int | None = None,
    in_transaction: InTransaction = lambda _connection, _number: None,
) -> int:
    """Append a revision with the content of ``to`` or of the last good one, and return its number.

    Raises ConfigError for neither or both of ``to`` and ``last_good`` or no reason, NotFoundError for no such
    or no good revision, StaleHeadError if head is not ``expected_head`` or does not hold still, and
    CorruptBlobError if ``to`` needs a blob that is missing or damaged in ``store``.
    """
    if (to is None) is not last_good:
        raise ConfigError("a rollback needs a revision or the last good one, not both")
    if not reason.strip():
        raise ConfigError("a rollback needs a reason", hint="the audit and the revision record it")
    looks = 0
    while True:
        looks += 1
        target, seen = (to, expected_head) if to is not None else _look(ledger, model, store, expected_head)
        try:
            return ledger.rollback(
                model, target, who=who, reason=reason, cause=cause, check=check_in(store), expected_head=seen,
                in_transaction=in_transaction,
            )  # fmt: skip
        except StaleHeadError:
            if expected_head is not None or looks == _LOOKS:
                raise


def taken_back_warning(connection: Connection, model: str, number: int) -> str:
    """Who took a revision back and why, or that the judge rejected it, or nothing."""
    row = find_revision(connection, model, number)
    by = None if row is None else row["taken_back_by"]
    rollback = None if by is None else find_revision(connection, model, by)
    if rollback is None:
        rejected = row is not None and row["state"] == RevisionState.REJECTED
        return f"the judge rejected revision {number}" if rejected else ""
    who = rollback["who"] or "somebody"
    cause = f" ({rollback['cause']})" if rollback["cause"] else ""
    return f"revision {number} was taken back by {who}{cause} in revision {by}: {rollback['reason']}"


def last_good_revision(
    connection: Connection,
    head_row: RowMapping,
    store: Path,
    at_most: int | None = None,
    accused: Collection[str] = (),
) -> int:
    """The newest sound live revision that head holds, of other content than head and none of ``accused``.

    What a rollback took back is not live. One that needs a blob which is missing or damaged in ``store`` is
    passed over. Raises NotFoundError if there is none up to ``at_most``.
    """
    good = (revisions.c.state == RevisionState.LIVE) & revisions.c.kept
    other = revisions.c.content.not_in({head_row["content"], *accused})
    before = (revisions.c.number < head_row["number"]) & other
    query = select(revisions).where(revisions.c.model == head_row["model"], good, before)
    if at_most is not None:
        query = query.where(revisions.c.number <= at_most)
    for row in connection.execute(query.order_by(revisions.c.number.desc())).mappings():
        try:
            check_in(store)(blobs_of(connection, row))
        except StoreError as error:
            log.warning("passed over", revision=row["number"], why=error.message)
            continue
        return int(row["number"])
    raise NotFoundError(
        f"no good revision of {head_row['model']!r} lies sound below head {head_row['number']}",
        hint="errata revisions lists them; --to names one, and errata scrub lists damaged blobs",
    )


def _look(ledger: Ledger, model: str, store: Path, expected_head: int | None) -> tuple[int, int]:
    """The last good revision, and the head that it was found for."""
    with ledger.read() as connection:
        current = head(connection, model)
        number = int(current["number"]) if expected_head is None else expected_head
        return last_good_revision(connection, current, store), number
