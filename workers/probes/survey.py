"""Run all probes on an existing revision, and record each result before the next probe begins."""

from collections.abc import Callable, Sequence

from sqlalchemy import select

from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.ledger.schema import probe_results
from daemon.core.names import ALL_PROBES, ProbeResult
from workers.probes.base import Probe, ProbeContext, run_probes


def survey(
    ledger: Ledger,
    model: str,
    number: int,
    probes: Sequence[Probe],
    context: ProbeContext,
    yields: Callable[[], bool] = lambda: False,
) -> list[ProbeRow]:
    """Run all probes on a revision and record that they are complete, unless ``yields`` ends the run.

    Each probe is recorded as running before it begins. If it ends the process, that record stays, the result
    is unknown, and later runs on this revision leave the probe out.
    """
    began, fatal = ledger.clock.monotonic(), _unfinished(ledger, model, number)
    rows: list[ProbeRow] = []

    def note(name: str) -> None:
        details = {"running": True, "error": "it ended its process, or is still running"}
        row = ProbeRow(name, 0, ProbeResult.UNKNOWN, None, None, 0, 0.0, details)
        ledger.record_probes(model, number, [row])

    for probe in probes:
        if yields():
            return rows
        results = run_probes([probe], context, ledger.clock, begins=note, fatal=fatal)
        ledger.record_probes(model, number, results)
        rows += results
    unknown = sum(row.result is ProbeResult.UNKNOWN for row in rows)
    seconds = ledger.clock.monotonic() - began
    done = ProbeRow(ALL_PROBES, 1, ProbeResult.OK, None, None, len(rows), seconds, {"unknown": unknown})
    ledger.record_probes(model, number, [done])
    return [*rows, done]


def _unfinished(ledger: Ledger, model: str, number: int) -> frozenset[str]:
    """The probes that began on this revision and whose result was never recorded."""
    mine = (probe_results.c.model == model) & (probe_results.c.revision == number)
    with ledger.read() as connection:
        query = (
            select(probe_results.c.probe, probe_results.c.details).where(mine).order_by(probe_results.c.id)
        )
        newest = {row.probe: row.details for row in connection.execute(query)}
    return frozenset(name for name, details in newest.items() if details.get("running"))
