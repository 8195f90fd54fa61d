"""Revisions with made-up measurements, for tests and benches of the judge."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from daemon.admission.submission import submit
from daemon.core.config.settings import Config
from daemon.core.ledger.ledger import Ledger
from daemon.core.ledger.outcomes import Outcomes, Scale
from daemon.core.ledger.proposals import ProbeRow
from daemon.core.names import ProbeResult
from daemon.watch.judge import judge
from tests.ledgers import make_batch, propose, statement, take_lease

SUITE = "quiz@1"
QUIET = Config(watch={"auto_rollback": False})  # type: ignore[arg-type]
"""A judge that records incidents without a rollback."""
_NUMBERS = count(1)


def suite_row(hits: Sequence[bool], floor: float = 0.0, suite: str = SUITE, name: str = "quiz") -> ProbeRow:
    """Return the result of a multiple-choice probe with these hits."""
    score = sum(hits) / len(hits)
    result = ProbeResult.OK if score >= floor else ProbeResult.DEGRADED
    return ProbeRow(name, 1, result, score, floor, len(hits), 0.1, outcomes=Outcomes.of_hits(suite, hits))


def text_row(nats: Sequence[float], ratio: float = 1.0, ceiling: float = 1.1) -> ProbeRow:
    """Return the result of a perplexity probe with this loss of each paragraph."""
    outcomes = Outcomes(Scale.NATS, "text@1", tuple(nats))
    result = ProbeResult.OK if ratio <= ceiling else ProbeResult.DEGRADED
    return ProbeRow("perplexity_ratio", 1, result, ratio, ceiling, len(nats), 0.1, outcomes=outcomes)


def unknown_row(name: str = "quiz") -> ProbeRow:
    """Return an unknown result of a probe."""
    return ProbeRow(name, 1, ProbeResult.UNKNOWN, None, 0.5, 0, 0.1, {"error": "no answer in 30 s"})


def commit(ledger: Ledger, *rows: ProbeRow) -> int:
    """Commit a revision with one new fact and these measurements, and return its number."""
    submit(ledger, statement(f"Country {next(_NUMBERS)}", "X"), "tester")
    batch = make_batch(ledger)
    assert batch is not None
    return ledger.commit(take_lease(ledger), replace(propose(ledger, batch), probes=list(rows)))


def commit_and_judge(ledger: Ledger, config: Config, *rows: ProbeRow) -> int:
    """Commit such a revision and run the judge once."""
    number = commit(ledger, *rows)
    judge(ledger, config)
    return number


def right(total: int, wrong: Sequence[int] = ()) -> list[bool]:
    """Return hits of ``total`` items, all right but the ``wrong`` ones."""
    missed = set(wrong)
    return [item not in missed for item in range(total)]
