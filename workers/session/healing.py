"""Try a portion of what an automatic rollback took back, and write again what does no harm."""

from collections.abc import Sequence

from sqlalchemy import RowMapping

from daemon.core.ledger import batches, leases
from daemon.core.ledger.healing import conclude, end_healing, is_overruled
from daemon.core.log import get_logger
from workers.session.bisect import Trial, broken_probes
from workers.session.lease import LeaseKeeper
from workers.session.rehearsal import Rehearsal
from workers.session.working_copy import WorkingCopy

log = get_logger("errata.healing")


def heal(copy: WorkingCopy, keeper: LeaseKeeper, batch: RowMapping) -> bool:
    """Bisect a portion on a copy of head, and return whether there was anything to try.

    Raises:
        FencedError: a newer rollback took the lease. Nothing has changed, and the portion is tried again.
        ProbeError: a probe could not be measured; nothing has changed.
    """
    ledger, model, rollback = copy.ledger, batch["model"], batch["rollback"]
    with ledger.read() as connection:
        ids = [row["id"] for row in batches.up_for_bisect(connection, batch["id"])]
        overruled = is_overruled(connection, model, rollback)
        broken = broken_probes(connection, model, rollback)
    if overruled:
        with ledger.write() as connection:
            end_healing(connection, ledger.clock.now(), batch, "somebody rolled back after it")
        return False
    trial = _tried(copy, keeper, ids, broken)
    with ledger.write() as connection:
        leases.check(connection, keeper.lease)
        now, size = ledger.clock.now(), copy.config.edit.batch_size
        culprits, waiting = conclude(connection, now, batch, trial.culprits, trial.good, trial.trials, size)
    log.info("healed", revision=rollback, culprits=len(culprits), waiting=len(waiting), trials=trial.trials)
    return bool(ids)


def _tried(copy: WorkingCopy, keeper: LeaseKeeper, ids: Sequence[str], broken: set[str]) -> Trial:
    """Try corrections on head's weights, which are as they were afterwards."""

    def require_lease(_judged: int, _total: int) -> None:
        with copy.ledger.read() as connection:
            leases.check(connection, keeper.lease)

    copy.load()
    before = copy.editor.snapshot()
    try:
        trial = Trial(Rehearsal(copy), broken, len(ids), require_lease)
        trial.admit(ids)
    finally:
        copy.editor.rollback_to(before)
    return trial
