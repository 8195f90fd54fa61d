"""Bring an older ledger to the schema of this code, unless an older Errata still works on it."""

import os
import socket
from datetime import datetime

from sqlalchemy import Engine, text

from daemon.core.clock import to_text
from daemon.core.errors import UnavailableError
from daemon.core.ledger.database import migrate, newest_version, schema_version, transaction


def upgrade(engine: Engine, now: datetime, *, beside_others: bool = False) -> tuple[str | None, str]:
    """Migrate the ledger, and return its schema before and after.

    Raises UnavailableError if a daemon or a worker holds a lease on an older ledger, whose commands would
    be refused from then on, unless ``beside_others``, and LedgerError for a ledger of a newer Errata.
    """
    before, newest = schema_version(engine), newest_version()
    if before is not None and before < newest and not beside_others:
        _require_nobody(engine, now)
    migrate(engine)
    return before, newest


def _require_nobody(engine: Engine, now: datetime) -> None:
    # plain SQL: the table of an older schema may have other columns than this code knows
    query = text("SELECT name, holder, expires_at FROM leases WHERE expires_at > :now")
    with transaction(engine, write=False) as connection:
        rows = connection.execute(query, {"now": to_text(now)}).all()
    held = [row for row in rows if not _is_gone(row.holder)]
    if held:
        who = ", ".join(f"{row.holder} ({row.name} until {row.expires_at[:19]}Z)" for row in held)
        raise UnavailableError(
            f"an older Errata works on this ledger: {who}",
            hint="stop it and run errata migrate; if it is gone, wait until then or add --force",
        )


def _is_gone(holder: str) -> bool:
    """Whether the holder of a lease was a process of this host that has ended."""
    host, _, pid = holder.rpartition(":")
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
