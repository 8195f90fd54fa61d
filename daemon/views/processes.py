"""Which processes live, by their heartbeats."""

from sqlalchemy import Connection, select

from daemon.core.clock import Clock
from daemon.core.ledger.heartbeats import Life, age_seconds, life
from daemon.core.ledger.schema import workers
from daemon.core.names import ProcessRole
from daemon.views.rows import Row

_ORDER = (Life.ALIVE, Life.LOST, Life.ENDED)


def process_list(connection: Connection, clock: Clock, model: str) -> list[Row]:
    """Return the processes of a model by role, those that live first, with the age of their heartbeats."""
    rows = connection.execute(select(workers).where(workers.c.model == model)).mappings().all()
    found = [
        {key: row[key] for key in ("role", "name", "state")}
        | {"life": life(clock, row).value, "heartbeat_age_seconds": age_seconds(clock, row)}
        | {key: row[key] for key in ("seen_at", "device", "memory_bytes", "gpu_memory_bytes", "model")}
        for row in rows
    ]
    roles = list(ProcessRole)
    return sorted(
        found,
        key=lambda row: (roles.index(row["role"]), _ORDER.index(row["life"]), row["heartbeat_age_seconds"]),
    )


def first_of_role(processes: list[Row], role: ProcessRole) -> Row | None:
    """Return a process of the role: one that lives, else a lost one, else one that ended, else None."""
    return next((row for row in processes if row["role"] == role), None)


def lost_roles(processes: list[Row]) -> list[Row]:
    """Return a process of each role of which none lives and one was lost."""
    first = (first_of_role(processes, role) for role in ProcessRole)
    return [row for row in first if row is not None and row["life"] == Life.LOST]
