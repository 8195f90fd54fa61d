"""Taking a model back: to a revision that was named, or to the last good one."""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, RowMapping, select, update

from daemon.core.clock import to_text
from daemon.core.errors import ConfigError, NotFoundError, StaleHeadError
from daemon.core.ledger.chain import head
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.schema import incidents, revisions
from daemon.core.names import UNSETTLED, IncidentState, RevisionState

Settle = Callable[[Connection, int], None]
"""Called with the number of the new revision, in its transaction."""
_LOOKS = 5  # a busy writer may move head between the look and the rollback


def roll_back(
    ledger: Ledger,
    model: str,
    *,
    to: int | None = None,
    last_good: bool = False,
    who: str,
    reason: str,
    expected_head: int | None = None,
    settle: Settle | None = None,
) -> int:
    """Append a revision with the content of ``to``, or of the last good one; returns the new head.

    Incidents of the revisions that are thereby left behind are closed, in the same transaction;
    ``settle`` is called before that, for what its caller has to say of them.

    Raises:
        ConfigError: neither or both of ``to`` and ``last_good``, or no reason. NotFoundError: no such
        revision, or no good one. StaleHeadError: head is not ``expected_head``, or does not hold still.
    """
    if (to is None) is not last_good:
        raise ConfigError("a rollback needs a revision or the last good one, not both")
    if not reason.strip():
        raise ConfigError("a rollback needs a reason", hint="it stands in the audit and in the revision")
    looks = 0
    while True:
        looks += 1
        target, seen = (to, expected_head) if to is not None else _look(ledger, model, expected_head)
        try:
            return ledger.rollback(
                model, target, who, reason, seen, partial(_settle, ledger, model, target, settle)
            )
        except StaleHeadError:
            if expected_head is not None or looks == _LOOKS:
                raise


def last_good_revision(connection: Connection, head_row: RowMapping, at_most: int | None = None) -> int:
    """The newest revision below head that passed its probes and holds something else than head does.

    ``at_most`` leaves out what is newer than that revision.

    Raises:
        NotFoundError: there is none.
    """
    query = (
        select(revisions.c.number)
        .where(
            revisions.c.model == head_row["model"],
            revisions.c.number < head_row["number"],
            revisions.c.number <= (head_row["number"] if at_most is None else at_most),
            revisions.c.state == RevisionState.LIVE,
            revisions.c.kept,
            revisions.c.content != head_row["content"],
        )
        .order_by(revisions.c.number.desc())
        .limit(1)
    )
    number = connection.execute(query).scalar()
    if number is None:
        raise NotFoundError(
            f"no good revision of {head_row['model']!r} lies below head {head_row['number']}",
            hint="errata revisions lists them; --to names one",
        )
    return int(number)


def _look(ledger: Ledger, model: str, expected_head: int | None) -> tuple[int, int]:
    """The last good revision, and the head from which it was the last good one."""
    with ledger.read() as connection:
        current = head(connection, model)
        return last_good_revision(connection, current), int(
            current["number"]
        ) if expected_head is None else expected_head


def _settle(
    ledger: Ledger, model: str, to: int, settle: Settle | None, connection: Connection, number: int
) -> None:
    """Settle what was open about the revisions between ``to`` and the rollback."""
    if settle is not None:
        settle(connection, number)
    left = (
        incidents.c.model == model,
        incidents.c.revision > to,
        incidents.c.revision < number,
        incidents.c.state.in_(UNSETTLED),
    )
    values = {
        "state": IncidentState.CLOSED,
        "closed_at": to_text(ledger.clock.now()),
        "rollback_revision": number,
    }
    connection.execute(update(incidents).where(*left).values(**values))
