"""The overview that ``errata status`` prints and ``GET /v1/status`` returns."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from daemon.core.clock import Clock, to_text
from daemon.core.ledger.chain import find_revision
from daemon.core.ledger.switches import is_paused
from daemon.core.names import ProcessRole, QuarantineState
from daemon.views import chain, figures, lists
from daemon.views.processes import lost_roles, process_list


def status(connection: Connection, clock: Clock, model: str) -> dict[str, Any]:
    """Return head, live, queue, corrections, probes, incidents, feeds and processes, ready for JSON."""
    now = clock.now()
    head = figures.head_number(connection, model)
    row = None if head is None else find_revision(connection, model, head)
    quarantined = figures.quarantine_by_reason(connection)
    return {
        "at": to_text(now),
        "model": model,
        "head": head,
        "live": figures.live_number(connection, model),
        "active_facts": row["active_facts"] if row else 0,
        "paused": is_paused(connection, model),
        "queue": asdict(figures.queue(connection, now, model)),
        "corrections": _of_model(figures.corrections_by_state(connection), model),
        "batches": _of_model(figures.batches_by_state(connection), model),
        "quarantine_held": sum(
            n for (of, _, state), n in quarantined.items() if of == model and state == QuarantineState.HELD
        ),
        "probes": chain.probes_in_force(connection, model),
        "norms": dict(row["norms"]) if row else {},
        "incidents_open": figures.incidents_open(connection, model),
        "feeds": lists.feed_list(connection, now, model),
        "processes": (found := process_list(connection, clock, model)),
        "workers": [row for row in found if row["role"] == ProcessRole.WORKER][:5],
        "lost": [row["role"] for row in lost_roles(found)],
        "switches_on": [s for s in lists.switch_list(connection) if s["is_on"] and s["model"] == model],
    }


def _of_model(counts: figures.Counts, model: str) -> dict[str, int]:
    by_state: Counter[str] = Counter()
    for (name, state, *_), count in counts.items():
        if name == model:
            by_state[state] += count
    return dict(sorted(by_state.items()))
