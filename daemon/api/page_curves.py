"""SVG curves of probe scores over revisions, with their bounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from daemon.core.ledger.schema import probe_results
from daemon.core.metrics import CEILING_PROBES

WIDTH, HEIGHT = 320, 90  # of a curve, in units of its view box
_MARGIN = 6  # the same units: a point at the edge is drawn whole
_REVISIONS = 80  # newest ones that are drawn: four units apart


@dataclass(frozen=True)
class Curve:
    """The scores and bounds of one probe as SVG lines, and the points that are not ok."""

    probe: str
    kind: str
    newest: float
    bound: float | None
    result: str
    first: int
    last: int
    line: str
    bound_line: str
    bad: tuple[tuple[float, float, int], ...]


def curves(connection: Connection, model: str, head: int) -> list[Curve]:
    """A curve for each probe with a score in the newest revisions, sorted by name."""
    query = select(probe_results).where(
        probe_results.c.model == model,
        probe_results.c.revision > head - _REVISIONS,
        probe_results.c.score.is_not(None),
    )
    by_probe: dict[str, dict[int, Any]] = {}
    for row in connection.execute(query.order_by(probe_results.c.id)).mappings():
        by_probe.setdefault(row["probe"], {})[row["revision"]] = row
    return [_curve(probe, [rows[n] for n in sorted(rows)]) for probe, rows in sorted(by_probe.items())]


def _curve(probe: str, rows: Sequence[Any]) -> Curve:
    numbers = [int(row["revision"]) for row in rows]
    scores = [float(row["score"]) for row in rows]
    bounds = [row["bound"] for row in rows]
    values = [*scores, *(bound for bound in bounds if bound is not None)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def at(number: int, value: float) -> tuple[float, float]:
        across = (number - numbers[0]) / ((numbers[-1] - numbers[0]) or 1)
        x = _MARGIN + across * (WIDTH - 2 * _MARGIN)
        return round(x, 1), round(HEIGHT - _MARGIN - (value - low) / span * (HEIGHT - 2 * _MARGIN), 1)

    points = [at(number, score) for number, score in zip(numbers, scores, strict=True)]
    limits = [at(n, b) for n, b in zip(numbers, bounds, strict=True) if b is not None]
    bad = [
        (*point, number)
        for point, number, row in zip(points, numbers, rows, strict=True)
        if row["result"] != "ok"
    ]
    return Curve(
        probe=probe,
        kind="ceiling" if probe in CEILING_PROBES else "floor",
        newest=scores[-1],
        bound=bounds[-1],
        result=rows[-1]["result"],
        first=numbers[0],
        last=numbers[-1],
        line=_line(points),
        bound_line=_line(limits if len(limits) > 1 else [(_MARGIN, y) for _, y in limits] + limits),
        bad=tuple(bad),
    )


def _line(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)
