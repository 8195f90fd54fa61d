"""Panels and dashboards as plain data in Grafana's schema 39."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SOURCE = {"type": "prometheus", "uid": "errata"}
MODEL = '{model="$model"}'
_COLUMNS = 24  # Grafana's grid


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the legend of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel.

    ``kind`` is Grafana's type. ``thresholds`` are pairs of lowest value and colour, in ascending order.
    """

    title: str
    kind: str
    queries: Sequence[Query]
    help: str = ""
    unit: str = "short"
    width: int = 12
    height: int = 8
    thresholds: Sequence[tuple[float | None, str]] = ((None, "green"),)
    options: Mapping[str, Any] = field(default_factory=dict)
    decimals: int | None = None


def lines(title: str, *queries: Query, **more: Any) -> Panel:
    """Make a panel of curves over time."""
    legend = {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]}}
    return Panel(title, "timeseries", queries, options=legend, **more)


def number(title: str, query: Query, **more: Any) -> Panel:
    """Make a panel of one current number."""
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"}
    return Panel(title, "stat", [query], options=options, **{"width": 4, "height": 4} | more)


def bars(title: str, query: Query, **more: Any) -> Panel:
    """Make a panel of one bar for the current value of each series."""
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal"}
    return Panel(title, "bargauge", [query], options=options, **more)


@dataclass(frozen=True)
class Dashboard:
    """Panels in rows, from top to bottom."""

    uid: str
    title: str
    help: str
    panels: Sequence[Panel]

    def to_json(self) -> dict[str, Any]:
        """Return the dashboard in Grafana's format."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.help,
            "tags": ["errata"],
            "schemaVersion": 39,
            "editable": False,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timezone": "utc",
            "links": [_LINKS],
            "templating": {"list": [_MODEL_VARIABLE]},
            "annotations": {"list": list(_ANNOTATIONS)},
            "panels": list(self._placed()),
        }

    def _placed(self) -> Iterator[dict[str, Any]]:
        x = y = row = 0
        for number_, panel in enumerate(self.panels, start=1):
            if x + panel.width > _COLUMNS:
                x, y, row = 0, y + row, 0
            yield _panel(panel, number_, x, y)
            x, row = x + panel.width, max(row, panel.height)


def _panel(panel: Panel, number_: int, x: int, y: int) -> dict[str, Any]:
    instant = panel.kind != "timeseries"
    steps = [{"value": value, "color": colour} for value, colour in panel.thresholds]
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    return {
        "id": number_,
        "title": panel.title,
        "description": panel.help,
        "type": panel.kind,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "options": dict(panel.options),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": instant,
                "range": not instant,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _annotation(name: str, colour: str, expr: str, text: str) -> dict[str, Any]:
    return {
        "name": name, "enable": True, "iconColor": colour, "datasource": SOURCE, "expr": expr,
        "titleFormat": name, "textFormat": text, "step": "15s", "useValueForTime": False,
    }  # fmt: skip


_ANNOTATIONS = (
    _annotation("revision", "blue", f"changes(errata_revision_head{MODEL}[30s]) > 0", "head moved"),
    _annotation("rollback", "orange", f"increase(errata_rollbacks_total{MODEL}[30s]) > 0", "rolled back"),
    _annotation(
        "incident",
        "red",
        f"delta(errata_incidents_open{MODEL}[30s]) > 0",
        "an incident was opened",
    ),
)
_MODEL_VARIABLE = {
    "name": "model", "label": "model", "type": "query", "datasource": SOURCE, "refresh": 1,
    "query": {"query": "label_values(errata_revision_head, model)", "refId": "model"},
}  # fmt: skip
_LINKS = {"title": "Errata", "type": "dashboards", "tags": ["errata"], "asDropdown": True, "keepTime": True}
