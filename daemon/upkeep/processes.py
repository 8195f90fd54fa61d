"""The checks of ``errata doctor`` whether the processes live."""

from daemon.core.config.settings import Config
from daemon.core.findings import Finding
from daemon.core.ledger.heartbeats import Life
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.switches import is_paused
from daemon.core.names import ProcessRole
from daemon.views import figures
from daemon.views.processes import first_of_role, process_list

_COMMANDS = {
    ProcessRole.DAEMON: "errata run",
    ProcessRole.WORKER: "errata run or errata worker",
    ProcessRole.TARGETS: "errata worker --targets",
    ProcessRole.PUBLISHER: "errata run or errata publish --follow",
    ProcessRole.COMPLETIONS: "errata run or errata serve",
}
_EXPECTED = (ProcessRole.DAEMON, ProcessRole.WORKER)  # every installation has these
_PATIENCE = 180.0  # seconds that a due correction may wait for a worker, which may be loading its model


def examine_processes(ledger: Ledger, config: Config) -> list[Finding]:
    """Return a finding for each role that is expected or was seen.

    A lost process is a problem, and no worker is one while corrections wait. What ended in order is none.
    """
    with ledger.read() as connection:
        processes = process_list(connection, ledger.clock, config.model.name)
        waiting = figures.queue(connection, ledger.clock.now(), config.model.name)
        paused = is_paused(connection, config.model.name)
    late = waiting.oldest_age_seconds > _PATIENCE + config.edit.batch_age_seconds and not paused
    findings = []
    for role in ProcessRole:
        row, fix = first_of_role(processes, role), f"{_COMMANDS[role]} starts one; its log says why it ended"
        wanted = late and role == ProcessRole.WORKER
        wait = f"; {waiting.pending + waiting.queued} corrections wait" if wanted else ""
        if row is None:
            if role in _EXPECTED:
                detail = f"none has been seen yet{wait}"
                findings.append(Finding(role, not wanted, detail, fix if wanted else ""))
            continue
        detail = f"{row['name']} {row['state']}, heard of {row['heartbeat_age_seconds']:.0f} s ago"
        if row["life"] == Life.ALIVE:
            findings.append(Finding(role, True, detail))
        elif row["life"] == Life.LOST:
            findings.append(Finding(role, False, f"lost: {detail}, did not end in order{wait}", fix))
        else:
            findings.append(Finding(role, not wanted, f"{detail}{wait}", fix if wanted else ""))
    return findings
