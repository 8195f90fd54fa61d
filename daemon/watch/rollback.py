"""Roll a model back to a given revision, or to the last good one."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, RowMapping, func, select

from daemon.core.errors import ConfigError, NotFoundError, StaleHeadError
from daemon.core.ledger.chain import head
from daemon.core.ledger.incidents import close_left_behind
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import revisions
from daemon.core.names import RevisionState

InTransaction = Callable[[Connection, int], None]
"""Called with the number of the new revision, in its transaction."""
_LOOKS = 5  # times; a busy writer may move head between the look and the rollback


def roll_back(
    ledger: Ledger,
    model: str,
    *,
    to: int | None = None,
    last_good: bool = False,
    who: str,
    reason: str,
    expected_head: int | None = None,
    in_transaction: InTransaction | None = None,
) -> int:
    """Append a revision with the content of ``to`` or of the last good one, and return its number.

    The same transaction closes the open incidents of the revisions that are thereby left behind, after a call
    of ``in_transaction``, which may record something else about them.
    Raises ConfigError for neither or both of ``to`` and ``last_good`` or no reason, NotFoundError for no such
    or no good revision, and StaleHeadError if head is not ``expected_head`` or does not hold still.
    """
    if (to is None) is not last_good:
        raise ConfigError("a rollback needs a revision or the last good one, not both")
    if not reason.strip():
        raise ConfigError("a rollback needs a reason", hint="the audit and the revision record it")

    def close(target: int, connection: Connection, number: int) -> None:
        if in_transaction is not None:
            in_transaction(connection, number)
        close_left_behind(connection, ledger.clock.now(), model, target, number)

    looks = 0
    while True:
        looks += 1
        target, seen = (to, expected_head) if to is not None else _look(ledger, model, expected_head)
        try:
            return ledger.rollback(model, target, who, reason, seen, partial(close, target))
        except StaleHeadError:
            if expected_head is not None or looks == _LOOKS:
                raise


def last_good_revision(connection: Connection, head_row: RowMapping, at_most: int | None = None) -> int:
    """The newest live revision before head (and up to ``at_most``) of other content, or NotFoundError."""
    good = (revisions.c.state == RevisionState.LIVE) & revisions.c.kept
    before = (revisions.c.number < head_row["number"]) & (revisions.c.content != head_row["content"])
    query = select(func.max(revisions.c.number)).where(revisions.c.model == head_row["model"], good, before)
    if at_most is not None:
        query = query.where(revisions.c.number <= at_most)
    number = connection.execute(query).scalar()
    if number is None:
        raise NotFoundError(
            f"no good revision of {head_row['model']!r} lies below head {head_row['number']}",
            hint="errata revisions lists them; --to names one",
        )
    return int(number)


def _look(ledger: Ledger, model: str, expected_head: int | None) -> tuple[int, int]:
    """The last good revision, and the head that it was found for."""
    with ledger.read() as connection:
        current = head(connection, model)
        number = int(current["number"]) if expected_head is None else expected_head
        return last_good_revision(connection, current), number
